"""Losses agree with those of another implementation of the same models, PyPI's ``multivae`` 1.0.3 (Apache-2.0).

The numbers below are its losses per cell, run once with the weights, data and masks that are made here by formula:
float64, encoders and decoders of one hidden layer with tanh, three modalities, normal likelihoods of scale 1, and every
standard normal draw fixed to 0.3. MMVAE and MMVAE+: one sample, ``loss="iwae_looser"``,
``prior_and_posterior_dist="normal"`` or ``"normal_with_softplus"``. DMVAE: one beta for shared and private latents.
MoPoE: its batch is cut into one part per subset, so that cell i has the i-th subset; masks are left out, since it adds
the prior to the product of all modalities only, where we add it to that of all that a cell has.
"""

import math

import numpy as np
import pytest
import torch
from torch import nn

from unbraid.module import MultimodalVAE
from unbraid.nn import ModalitySpec

WIDTHS = {"a": 2, "b": 3, "c": 4}
N, N_HIDDEN, N_SHARED, N_SPECIFIC = 7, 3, 2, 2
PRESENT = {"a": [1, 1, 0, 1, 0, 0, 1], "b": [1, 0, 1, 1, 0, 1, 0], "c": [1, 1, 1, 0, 1, 0, 0]}
SOFTPLUS = {"posterior_scale": "softplus", "prior_scale": math.log(2) + 1e-6}  # softplus(0), as theirs

MMVAE = {"experts": "moe"}
PLUS = {"experts": "moe", "specific": "auxiliary"}
DMVAE = {"experts": "poe", "specific": "posterior"}

KNOWN = [
    (
        "mmvae",
        MMVAE,
        [12.000168022518055, 11.290288086954732, 11.727878036930868, 12.054926910753094, 9.803702692461913,
         14.232817413323618, 10.27362425650475],
        [12.000168022518055, 8.646171185753134, 9.59177033890582, 5.476687408768663, 4.965633774524468,
         5.44519325953136, 1.8292286520823393],
    ),
    (
        "mmvae+",
        PLUS,
        [12.467543964128138, 11.316372163621105, 11.767251569837683, 12.298779703951851, 10.295325509183265,
         14.460119129226639, 10.349953068131867],
        [12.467543964128138, 8.398388467505093, 9.382879658351577, 6.256478627237749, 4.161384136721493,
         5.811396482657439, 2.4854685707853883],
    ),
    (
        "mmvae+, beta 2.5",
        {**PLUS, "beta": 2.5},
        [13.283596028394802, 11.502972572032212, 11.869870337385995, 12.726311688633329, 10.923832284822161,
         15.117611114164909, 10.602495199203204],
        [13.283596028394802, 8.727524291048018, 9.519847884589499, 7.375649930106636, 4.686372107537308,
         6.899017610219271, 2.8644275650218596],
    ),
    (
        "mmvae+, beta 2.5, softplus",
        {**PLUS, **SOFTPLUS, "beta": 2.5},
        [15.290127960830612, 12.328785909210206, 12.28987289960026, 13.893527931728897, 12.778419030624514,
         16.752543836917088, 11.68500792124045],
        [15.290127960830612, 9.723307906236956, 10.180075897534369, 9.33711095947377, 5.958377137212352,
         8.533746564023254, 3.846433722237895],
    ),
    (
        "dmvae",
        DMVAE,
        [58.17087624154027, 50.624740024304515, 51.320789795171734, 55.380335033764865, 49.53001573690994,
         64.4576018140733, 47.6849027869525],
        [58.17087624154027, 27.904262274862973, 30.6760867958592, 21.215707015517754, 9.27774195567095,
         11.362457439650612, 5.446713084040665],
    ),
    (
        "dmvae, beta 2.5",
        {**DMVAE, "beta": 2.5},
        [74.69748982002395, 60.008340372182396, 58.393774852691706, 67.37310362829952, 64.93250330701775,
         77.82096867049188, 58.94875622901796],
        [74.69748982002395, 33.29207449466491, 35.080355312650426, 28.515030656658656, 11.765874313500088,
         13.1500281348291, 6.901752901657673],
    ),
]  # fmt: skip


def fill(parameters, number):
    """Weights by formula, numbered from ``number``."""
    for k, parameter in enumerate(parameters, start=number):
        values = 0.6 * torch.sin(0.9 * torch.arange(parameter.numel(), dtype=torch.float64) + 1.7 * k)
        parameter.data = values.reshape(parameter.shape)


def module_of(n_specific=N_SPECIFIC, **options):
    spec = lambda m, d: ModalitySpec(m, d, "normal", "identity", mean=np.zeros(d), standard_deviation=np.ones(d))
    latents = N_SHARED + n_specific
    module = MultimodalVAE(
        [spec(m, d) for m, d in WIDTHS.items()],
        N_SHARED,
        n_specific,
        encoders={m: nn.Sequential(nn.Linear(d, N_HIDDEN), nn.Tanh()) for m, d in WIDTHS.items()},
        decoders={
            m: nn.Sequential(nn.Linear(latents, N_HIDDEN), nn.Tanh(), nn.Linear(N_HIDDEN, d)) for m, d in WIDTHS.items()
        },
        likelihood_scale=1.0,
        **{"posterior_scale": "exp", **options},
    ).double()
    for k, m in enumerate(WIDTHS):
        fill([*module.encoders[m].network.parameters(), *module.encoders[m].head.parameters()], 10 * k)
        fill(module.decoders[m].network.parameters(), 10 * k + 4)
    return module


def batch_of(cells, masked):
    x, mask = {}, {}
    for i, (m, d) in enumerate(WIDTHS.items()):
        x[m] = torch.cos(0.7 * torch.arange(N * d, dtype=torch.float64) + i).reshape(N, d)[cells]
        mask[m] = torch.tensor(PRESENT[m], dtype=torch.bool)[cells] if masked else torch.ones(len(x[m])).bool()
        x[m] = x[m] * mask[m].unsqueeze(1)
    n = len(x["a"])
    none = {"categorical": torch.zeros(n, 0, dtype=torch.long), "continuous": torch.zeros(n, 0)}
    return {"x": x, "mask": mask, "size_factor": {}, "batch": torch.zeros(n).long(), **none, "index": torch.arange(n)}


@pytest.fixture(autouse=True)
def fixed_noise(monkeypatch):
    constant = lambda shape, dtype, device: torch.full(shape, 0.3, dtype=dtype, device=device)
    monkeypatch.setattr(torch.distributions.normal, "_standard_normal", constant)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("options", "complete", "incomplete"), [row[1:] for row in KNOWN], ids=[row[0] for row in KNOWN]
)
def test_loss_of_every_cell(options, complete, incomplete, masked):
    module = module_of(N_SPECIFIC if "specific" in options else 0, **options)
    expected = incomplete if masked else complete
    found = [module.loss(batch_of(slice(i, i + 1), masked), "vae").loss.item() for i in range(N)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    # cells of one batch do not know of each other
    together = module.loss(batch_of(slice(None), masked), "vae").loss.item()
    assert together == pytest.approx(np.mean(expected), rel=1e-6)


@pytest.mark.parametrize("options", [row[1] for row in KNOWN[:3]], ids=[row[0] for row in KNOWN[:3]])
def test_importance_weighted_bounds_of_equal_samples_are_the_elbo(options):
    # all draws are the same here, so that the mean of weights is the weight
    n_specific = N_SPECIFIC if "specific" in options else 0
    losses = [
        module_of(n_specific, **options, estimator=name, n_importance=k).loss(batch_of(slice(None), True), "vae").loss
        for name, k in [("elbo", 1), ("iwae", 1), ("iwae", 5), ("dreg", 5)]
    ]
    np.testing.assert_allclose([loss.item() for loss in losses], losses[0].item(), rtol=1e-10)


@pytest.mark.parametrize(("beta", "expected"), [(1.0, 12.007004441910658), (2.5, 12.680726640470414)])
def test_mixture_of_products(monkeypatch, beta, expected):
    monkeypatch.setattr(torch, "multinomial", lambda weights, n: torch.arange(N).unsqueeze(1))
    output = module_of(0, experts="mopoe", beta=beta).loss(batch_of(slice(None), False), "vae")
    assert output.loss.item() == pytest.approx(expected, rel=1e-6)
    assert output.extra_metrics["divergence"].item() == pytest.approx(0.4491481323731708, rel=1e-6)
