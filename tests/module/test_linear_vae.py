"""Linear-Gaussian models: bounds computed apart with the same noise, and log evidence that is known exactly."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from torch import nn

from unbraid.module import MultimodalVAE
from unbraid.nn import ModalitySpec

# --- a linear module: three modalities of two features, one shared and one private dimension -------------

tensor = lambda values, *shape: torch.tensor(values, dtype=torch.float64).reshape(shape or -1)
LINEAR_X = tensor([1.053, 1.776, -2.553, -0.138, 1.014, 1.352, 0.654, 1.497, 0.29, 0.551, 0.179, -1.074], 3, 2, 2)
EPS_Z = tensor([0.968, 0.096, 0.574, 1.448, -1.246, 0.744, -1.885, 0.432, 0.203, -0.543, -1.077, -0.062, -0.41, 0.098,
    -0.908, 0.546, -1.036, -0.304, -0.392, 1.268, -1.496, -0.414, 1.182, -0.658], 3, 4, 2)  # fmt: skip
EPS_W = tensor([-1.239, 0.283, -0.29, 0.835, -0.92, 0.191, 0.666, 1.036, -1.106, 1.424, -0.901, -1.513, -0.955, 0.155,
    -0.322, 0.44, 0.496, 0.318, -0.255, 1.814, -2.216, -1.734, -0.507, -1.255], 3, 4, 2)  # fmt: skip
EPS_R = tensor([-2.556, -0.795, -0.749, -2.449, 0.859, 1.299, 1.234, -0.508, 0.148, -1.121, 0.206, -0.674, 0.41,
    -0.343, 1.034, 0.827, 1.239, -1.605, -1.82, 0.405, -0.577, 0.398, 0.299, 0.18, 0.919, 0.557, 0.472, -0.894, 1.725,
    0.127, 1.107, 0.327, 1.269, 0.154, 0.218, 0.138, -0.709, -0.572, -0.147, -0.117, -0.983, 2.357, -0.981, -0.306,
    2.445, -0.66, 0.766, 0.661, -0.208, -1.429, -1.553, -0.008, 0.421, -2.156, 0.153, -0.654, 0.895, 0.176, -0.801,
    -0.424, 0.048, 1.35, 3.051, 0.366, 0.13, 0.713, 0.046, 0.71, 0.469, 0.087, -0.706, 0.25], 3, 3, 4, 2)  # fmt: skip
E_Z, E_W = (
    tensor([-0.423, 0.19, -0.29, 0.636, 0.646, 0.899], 3, 2),
    tensor([-0.799, -0.865, 0.178, -0.431, 0.604, 0.197], 3, 2),
)
B_Z, B_W = tensor([-0.005, 0.277, -0.181]), tensor([0.061, 0.042, 0.179])
LV_Z, LV_W = tensor([-1.245, -0.976, -0.916]), tensor([-1.046, -0.674, -1.158])
C_Z, C_W = (
    tensor([-0.225, -0.681, 0.598, 0.036, -0.862, 2.002], 3, 2),
    tensor([-0.364, -0.116, 0.394, 1.748, -0.148, 0.703], 3, 2),
)
C_0 = tensor([0.02, -0.293, 0.158, 0.204, -0.048, -0.003], 3, 2)
LV_X, LV_R = tensor([-0.3, -0.305, -0.078]), tensor([0.125, -0.094, 0.058])
NAMES = "abc"
LINEAR_WIDTHS = dict.fromkeys(NAMES, 2)


def linear_module(**options):
    """Encoders and decoders are affine, the scales of posteriors constants, those of likelihoods at their start."""
    scales = (LV_X / 2).exp()
    module = MultimodalVAE(
        [
            ModalitySpec(m, 2, "normal", "identity", mean=np.zeros(2), standard_deviation=np.full(2, scale))
            for m, scale in zip(NAMES, scales.tolist(), strict=True)
        ],
        1,
        1,
        encoders=nn.Identity(),
        decoders={m: nn.Linear(2, 2) for m in NAMES},
        posterior_scale="exp",
        **options,
    ).double()
    with torch.no_grad():
        if hasattr(module, "auxiliary_scales"):
            module.auxiliary_scales.copy_(LV_R.unsqueeze(1))
        for k, m in enumerate(NAMES):
            head, decoder, zero = module.encoders[m].head, module.decoders[m].network, torch.zeros(2)
            head.weight.copy_(torch.stack([E_Z[k], zero, E_W[k], zero]))
            head.bias.copy_(torch.stack([B_Z[k], LV_Z[k], B_W[k], LV_W[k]]))
            decoder.weight.copy_(torch.stack([C_Z[k], C_W[k]], 1) / scales[k])
            decoder.bias.copy_(C_0[k] / scales[k])
    return module


def linear_batch(make_batch, present=("abc", "abc")):
    batch = make_batch(present, widths=LINEAR_WIDTHS)
    batch["x"] = {m: LINEAR_X[k] * batch["mask"][m].unsqueeze(1) for k, m in enumerate(NAMES)}
    return batch


def exact_log_evidence(present):
    """Of the two cells, by the joint normal distribution of what they have."""
    found = []
    for cell, names in enumerate(present):
        rows = [NAMES.index(m) for m in names]
        covariance = np.outer(*2 * [C_Z[rows].flatten().numpy()])
        for i, k in enumerate(rows):
            block = np.outer(C_W[k], C_W[k]) + np.exp(LV_X[k].item()) * np.eye(2)
            covariance[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] += block
        found.append(multivariate_normal.logpdf(LINEAR_X[rows, cell].flatten(), C_0[rows].flatten(), covariance))
    return np.array(found)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # computed apart, with the same noise
        ({}, 16.647546453045166),
        ({"beta": 2.5}, 19.365720117461287),
        ({"n_importance": 4}, 18.252204956118188),
        ({"n_importance": 4, "estimator": "iwae"}, 15.437902741000379),
        ({"n_importance": 4, "estimator": "dreg"}, 15.437902741000379),
    ],
)
def test_known_bounds_of_mmvae_plus(make_batch, monkeypatch, options, expected):
    k = options.get("n_importance", 1)
    noise = [EPS_Z.transpose(0, 1), EPS_W.transpose(0, 1), *(EPS_R[:, d].transpose(0, 1) for d in range(3))]
    noise = iter([eps[:k].unsqueeze(-1) for eps in noise])

    def given(shape, dtype, device):
        eps = next(noise)
        assert eps.shape == shape
        return eps

    monkeypatch.setattr(torch.distributions.normal, "_standard_normal", given)
    loss = linear_module(**options).loss(linear_batch(make_batch), "vae").loss
    assert loss.item() == pytest.approx(expected, rel=1e-6)  # means and scales of features are float32


@pytest.mark.parametrize("present", [("abc", "abc"), ("ab", "c")])
@pytest.mark.parametrize("experts", ["moe", "poe", "mopoe"])
def test_evidence_is_exact_and_bounded(make_batch, experts, present):
    torch.manual_seed(0)
    module = linear_module(experts=experts, specific="auxiliary" if experts == "moe" else "posterior")
    batch, exact = linear_batch(make_batch, present), exact_log_evidence(present)
    if present == ("abc", "abc"):
        assert exact.mean() == pytest.approx(-10.972683953667278, rel=1e-10)  # computed apart
    with torch.no_grad():
        for m in NAMES:  # wide posteriors, which importance weights need
            module.encoders[m].head.weight.mul_(0.3)
            module.encoders[m].head.bias.copy_(tensor([0.0, 1.0, 0.0, 0.5]))
        found = module.log_evidence(repeated(batch, 40), 2_000).numpy().reshape(40, 2)
        one = module.log_evidence(repeated(batch, 500), 1).numpy().reshape(500, 2).mean(1)
    error = found.std(0) / math.sqrt(40)
    assert error.max() < 0.02
    np.testing.assert_array_less(abs(found.mean(0) - exact), 4 * error + 0.005)
    # one sample: the ELBO
    assert one.mean() + 4 * one.std() / math.sqrt(500) < exact.mean()


def repeated(batch, times):
    again = lambda value: value.repeat(times, *[1] * (value.ndim - 1))
    return {
        key: {m: again(value) for m, value in values.items()} if isinstance(values, dict) else again(values)
        for key, values in batch.items()
    }


# --- learning ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "n_bounds"),
    [
        ({"n_specific": 0, "experts": "moe", "estimator": "dreg", "n_importance": 4}, 1),
        ({"n_specific": 1, "experts": "poe", "specific": "posterior"}, 3),  # the loss has the sum of three
    ],
    ids=["mmvae", "dmvae"],
)
def test_learns_linear_gaussian_data(make_batch, options, n_bounds):
    rng = np.random.default_rng(0)
    shared, noise = np.array([[1.5], [-1.0], [1.0], [2.0]]), 0.6
    covariance = shared @ shared.T + noise**2 * np.eye(4)
    x = rng.multivariate_normal(np.zeros(4), covariance, size=1_500).astype(np.float32)
    exact = multivariate_normal.logpdf(x[1_000:], np.zeros(4), covariance).mean()
    torch.manual_seed(1)  # from 0 and 8, of 0 to 9, DMVAE ends in an optimum 1 nat lower
    values = {"a": x[:, :2], "b": x[:, 2:]}
    module = MultimodalVAE(
        [
            ModalitySpec(m, 2, "normal", "identity", mean=v[:1_000].mean(0), standard_deviation=v[:1_000].std(0))
            for m, v in values.items()
        ],
        1,
        encoders=nn.Identity(),
        decoders={m: nn.Linear(1 + options["n_specific"], 2) for m in "ab"},
        **options,
    )

    def batch(rows):
        given = make_batch(["ab"] * len(rows), widths={"a": 2, "b": 2})
        return {**given, "x": {m: torch.from_numpy(v[rows]) for m, v in values.items()}}

    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)  # scales move ten times as fast
    for _ in range(400):
        optimizer.zero_grad()
        module.loss(batch(rng.integers(0, 1_000, 100)), "vae").loss.backward()
        optimizer.step()
    with torch.no_grad():
        test = batch(np.arange(1_000, 1_500))
        found = module.log_evidence(test, 100).mean().item()
        bound = -module.loss(test, "vae").loss.item() / n_bounds
    assert bound < found
    assert exact - 0.1 < found < exact + 0.02  # of 4 features
