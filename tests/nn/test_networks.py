import math

import numpy as np
import pytest
import scanpy as sc
import torch
from torch import nn

from unbraid.nn import MLP, BinomialThinning, InputLayer, ModalitySpec, NoiseDropout, PerModality


@pytest.fixture(autouse=True)
def seeded():
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


# --- MLP --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_layers", [1, 2, 4])
@pytest.mark.parametrize("norm", [None, "layer"])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_mlp_layers(n_layers, norm, dropout):
    network = MLP(7, 3, n_hidden=5, n_layers=n_layers, norm=norm, dropout=dropout)
    block = [nn.Linear, *([nn.LayerNorm] if norm else []), nn.ReLU, *([nn.Dropout] if dropout else [])]
    assert [type(layer) for layer in network.layers] == block * (n_layers - 1) + [nn.Linear]
    linear = [(layer.in_features, layer.out_features) for layer in network.layers if isinstance(layer, nn.Linear)]
    widths = [7] + [5] * (n_layers - 1) + [3]
    assert linear == list(zip(widths[:-1], widths[1:], strict=True))
    assert all(layer.p == dropout for layer in network.layers if isinstance(layer, nn.Dropout))
    assert network(torch.randn(6, 7)).shape == (6, 3)
    assert network(torch.randn(0, 7)).shape == (0, 3)


def test_mlp_is_what_its_layers_say():
    network = MLP(4, 2, n_hidden=6, n_layers=2)
    x = torch.randn(5, 4)
    (w1, b1), (w2, b2) = ((layer.weight, layer.bias) for layer in network.layers if isinstance(layer, nn.Linear))
    torch.testing.assert_close(network(x), (x @ w1.T + b1).clamp(min=0) @ w2.T + b2)
    # nothing follows the last layer: outputs have both signs
    outputs = MLP(4, 2, n_layers=1)(torch.randn(100, 4))
    assert (outputs < 0).any()
    assert (outputs > 0).any()


def test_mlp_weights():
    linear = [layer for layer in MLP(200, 50, n_hidden=300, weight_std=0.01).layers if isinstance(layer, nn.Linear)]
    for layer in linear:
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.03)
        assert layer.weight.abs().max() > 0.03  # normal, not uniform
        assert abs(layer.weight.mean().item()) < 4 * 0.01 / math.sqrt(layer.weight.numel())
        bound = 1 / math.sqrt(layer.in_features)  # biases as PyTorch draws them
        assert layer.bias.abs().max() <= bound
        assert layer.bias.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.2)
    default = MLP(200, 50, n_hidden=300).layers[0]
    assert default.weight.std().item() == pytest.approx(1 / math.sqrt(3 * 200), rel=0.03)


@pytest.mark.parametrize("n_layers", [0, -1])
def test_mlp_needs_a_layer(n_layers):
    with pytest.raises(ValueError, match=f"`n_layers` must be at least 1, got {n_layers}"):
        MLP(2, 2, n_layers=n_layers)


# --- PerModality ------------------------------------------------------------------------------------

NAMES = ["rna", "a.b", "type", "keys", "", "0", "forward", "Ü ß"]


def test_any_name_of_a_modality():
    networks = {name: nn.Linear(2, i + 1) for i, name in enumerate(NAMES)}
    per_modality = PerModality(networks)
    assert list(per_modality) == NAMES
    for name, network in networks.items():
        assert per_modality[name] is network
    assert len(list(per_modality.parameters())) == 2 * len(NAMES)
    # and it can be saved and loaded
    copy = PerModality({name: nn.Linear(2, i + 1) for i, name in enumerate(NAMES)})
    copy.load_state_dict(per_modality.state_dict())
    x = torch.randn(3, 2)
    for name in NAMES:
        assert torch.equal(copy[name](x), per_modality[name](x))


# --- InputLayer -------------------------------------------------------------------------------------

RNG = np.random.default_rng(0)
COUNTS = RNG.negative_binomial(1, 0.2, size=(12, 6)).astype(np.float32)
COUNTS[3] = 0  # an empty cell
VALUES = (RNG.normal(size=(12, 6)) * [1, 10, 0.1, 3, 5, 0] + [0, 4, -2, 1, 1, 7]).astype(
    np.float32
)  # the last is constant


def layer(transform, values, reference=1.0, likelihood="normal"):
    mean, deviation = values.mean(axis=0, dtype=np.float64), values.std(axis=0, dtype=np.float64)
    deviation[np.ptp(values, axis=0) == 0] = 0.0
    return InputLayer(ModalitySpec("m", values.shape[1], likelihood, transform, mean, deviation, reference))


def apply(transform, values, size_factor=None, reference=1.0):
    x = torch.from_numpy(values.copy())
    size = None if size_factor is None else torch.from_numpy(size_factor)
    out = layer(transform, values, reference)(x, size)
    assert torch.equal(x, torch.from_numpy(values))  # the batch is not changed
    assert out.dtype == torch.float32
    assert torch.isfinite(out).all()
    return out.numpy()


def test_log1p_by_total():
    expected = np.log1p(COUNTS / np.maximum(COUNTS.sum(axis=1, keepdims=True), 1) * 250.0)
    out = apply("log1p", COUNTS, reference=250.0)
    np.testing.assert_allclose(out, expected, rtol=1e-5)
    assert (out[3] == 0).all()


def test_log1p_by_given_size_factors():
    sizes = RNG.uniform(0.5, 2, size=12).astype(np.float32)
    expected = np.log1p(COUNTS / sizes[:, None] * 1.3)
    np.testing.assert_allclose(apply("log1p", COUNTS, sizes, reference=1.3), expected, rtol=1e-5)
    # depth cancels
    np.testing.assert_allclose(apply("log1p", 2 * COUNTS, 2 * sizes, reference=1.3), expected, rtol=1e-5)


def test_clr():
    logs = np.log1p(COUNTS)
    out = apply("clr", COUNTS)
    np.testing.assert_allclose(out, logs - logs.mean(axis=1, keepdims=True), atol=1e-6)
    np.testing.assert_allclose(out.sum(axis=1), 0, atol=1e-5)
    assert (out[3] == 0).all()


def test_scale_keeps_relative_scales():
    deviation = VALUES.std(axis=0, dtype=np.float64)
    expected = (VALUES - VALUES.mean(axis=0)) / np.sqrt(np.mean(deviation**2))
    out = apply("scale", VALUES)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    assert np.mean(out.var(axis=0)) == pytest.approx(1, rel=1e-4)
    assert out[:, 1].std() / out[:, 0].std() == pytest.approx(deviation[1] / deviation[0], rel=1e-4)


def test_standardize():
    deviation = VALUES.std(axis=0, dtype=np.float64)
    expected = (VALUES - VALUES.mean(axis=0)) / np.where(deviation > 1e-9, deviation, 1)
    out = apply("standardize", VALUES)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    np.testing.assert_allclose(out.std(axis=0), [1, 1, 1, 1, 1, 0], atol=1e-5)  # the constant feature is zero


def test_identity():
    np.testing.assert_array_equal(apply("identity", VALUES), VALUES)


@pytest.mark.parametrize("transform", ["scale", "standardize"])
def test_all_features_constant(transform):
    values = np.full((4, 3), 2.5, dtype=np.float32)
    assert (apply(transform, values) == 0).all()


@pytest.mark.parametrize("transform", ["log1p", "clr", "scale", "standardize", "identity"])
def test_one_cell_at_a_time_and_nothing_trained(transform):
    network = layer(transform, COUNTS, reference=9.0)
    x = torch.from_numpy(COUNTS)
    alone = torch.cat([network(row[None]) for row in x])
    torch.testing.assert_close(alone, network(x), rtol=0, atol=1e-6)
    assert network(x[:0]).shape == (0, 6)
    assert list(network.parameters()) == []
    # statistics are saved with the model
    assert set(network.state_dict()) == ({"center", "inverse_scale"} if "s" == transform[0] else set())


def test_unknown_transform():
    with pytest.raises(ValueError, match="Modality 'm': unknown input transform 'sqrt'; there is: log1p, clr"):
        layer("sqrt", VALUES)


def test_pearson_residuals_are_those_of_scanpy():
    adata = sc.AnnData(COUNTS[COUNTS.sum(axis=1) > 0].copy())
    ours = apply("pearson", adata.X)
    sc.experimental.pp.normalize_pearson_residuals(adata, theta=100, clip=np.inf)
    np.testing.assert_allclose(ours, adata.X, rtol=1e-4, atol=1e-5)
    assert (apply("pearson", COUNTS)[COUNTS.sum(axis=1) == 0] == 0).all()  # nothing is expected of an empty cell


def test_size_factors_of_another_scale_give_the_same_pearson_residuals():
    totals = COUNTS.sum(axis=1)
    ours = apply("pearson", COUNTS, size_factor=3 * totals, reference=3 * float(totals.mean()))
    np.testing.assert_allclose(ours, apply("pearson", COUNTS), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("transform", ["log1p", "clr", "pearson", "scale", "standardize", "identity"])
def test_inverse_undoes_the_transform(transform):
    counts = transform in ("log1p", "clr", "pearson")
    values = COUNTS if counts else VALUES
    there = torch.from_numpy(apply(transform, values, reference=7.0))
    before, size = there.clone(), torch.from_numpy(values.sum(axis=1)) if counts else None
    back = layer(transform, values, reference=7.0).inverse(there, size)
    np.testing.assert_allclose(back, values, rtol=2e-5, atol=2e-5)
    assert torch.equal(there, before)


def test_inverse_of_log1p_by_given_size_factors():
    size = np.linspace(0.5, 3, 12, dtype=np.float32)
    there = torch.from_numpy(apply("log1p", COUNTS, size_factor=size, reference=1.5))
    np.testing.assert_allclose(
        layer("log1p", COUNTS, 1.5).inverse(there, torch.from_numpy(size)), COUNTS, rtol=2e-5, atol=1e-5
    )


@pytest.mark.parametrize("transform", ["log1p", "clr", "pearson"])
def test_inverse_gives_cells_of_typical_size_unless_told(transform):
    own = layer(transform, COUNTS, 40.0)
    there = own(torch.from_numpy(COUNTS.copy()))
    back = own.inverse(there)
    typical = 40.0 if transform == "log1p" else float(COUNTS.mean(axis=0, dtype=np.float64).sum())
    torch.testing.assert_close(back, own.inverse(there, torch.full((12,), typical)))
    if transform == "log1p":  # all cells but the empty one
        np.testing.assert_allclose(back.sum(dim=1), [40.0 * (i != 3) for i in range(12)], rtol=1e-4)
    # with twice the size, about twice the counts
    assert own.inverse(there, torch.full((12,), 2 * typical)).sum() == pytest.approx(2 * back.sum(), rel=0.25)


@pytest.mark.parametrize("transform", ["log1p", "clr", "pearson"])
def test_inverse_of_anything_is_no_negative_count(transform):
    x = torch.randn(50, 6) * 3
    back = layer(transform, COUNTS, 40.0).inverse(x, torch.linspace(0, 100, 50))
    assert torch.isfinite(back).all()
    assert (back >= 0).all()
    assert (back == 0).any()
    assert layer(transform, COUNTS, 40.0).inverse(x[:0]).shape == (0, 6)


# --- NoiseDropout -----------------------------------------------------------------------------------


@pytest.mark.parametrize("n_features", [100, 47, 10])
def test_noise_dropout(n_features):
    x = torch.rand(6000, n_features) + 1  # no zeros of its own
    before = x.clone()
    view = NoiseDropout(noise_std=0.01, dropout=0.1)(x)
    assert torch.equal(x, before)
    same = (view == x).all(dim=1)
    zeros = (view == 0).sum(dim=1)
    dropped = zeros > 0
    noisy = ~same & ~dropped
    for rows in (same, dropped, noisy):
        assert abs(rows.float().mean().item() - 1 / 3) < 4 * math.sqrt(2 / 9 / 6000)
    # exactly so many zeros, everywhere alike, and nothing else is touched
    assert set(zeros[dropped].tolist()) == {n_features // 10}
    assert ((view == x) | (view == 0))[dropped].all()
    rate = (view[dropped] == 0).float().mean(dim=0)
    k, n = n_features // 10 / n_features, int(dropped.sum())
    assert (rate - k).abs().max() < 5 * math.sqrt(k * (1 - k) / n)
    noise = (view - x)[noisy]
    assert noise.std().item() == pytest.approx(0.01, rel=0.02)
    assert abs(noise.mean().item()) < 4 * 0.01 / math.sqrt(noise.numel())
    assert (noise != 0).float().mean() > 0.99
    # every feature has noise of its own
    correlation = torch.corrcoef(noise.T[:2])[0, 1].item()
    assert abs(correlation) < 5 / math.sqrt(len(noise))


def test_noise_dropout_without_dropout_or_noise():
    x = torch.rand(300, 20) + 1
    assert (NoiseDropout(dropout=0.0)(x) != 0).all()
    view = NoiseDropout(noise_std=0.0, dropout=0.5)(x)
    assert set((view == 0).sum(dim=1).tolist()) == {0, 10}
    # fewer than ten features: a tenth of them is none
    assert (NoiseDropout()(x[:, :9]) != 0).all()


@pytest.mark.parametrize("n_features", [10, 19, 30, 60, 70, 90, 230])
def test_noise_dropout_zeroes_a_tenth_rounded_down(n_features):
    counts = (NoiseDropout(noise_std=0.0)(torch.ones(100, n_features)) == 0).sum(dim=1)
    assert set(counts.tolist()) == {0, n_features // 10}


# --- BinomialThinning -------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0.7, 0.2])
@pytest.mark.parametrize("count", [1, 2, 7, 500])
def test_thinning_is_binomial(keep, count):
    n = 20_000
    x = torch.full((n // 10, 10), float(count))
    view = BinomialThinning(keep)(x)
    assert (x == count).all()
    assert (view == view.round()).all()
    assert view.min() >= 0
    assert view.max() <= count
    variance = count * keep * (1 - keep)
    assert abs(view.mean().item() - count * keep) < 4 * math.sqrt(variance / n)
    # the variance of a binomial's sample variance is at most about 2 variance^2 / n, and more for a coin
    kurtosis = (1 - 6 * keep * (1 - keep)) / variance
    assert abs(view.var().item() - variance) < 5 * variance * math.sqrt((2 + max(kurtosis, 0)) / n)


def test_thinning_of_mixed_counts():
    x = torch.from_numpy(COUNTS).repeat(50, 1)
    before = x.clone()
    view = BinomialThinning(0.5)(x)
    assert torch.equal(x, before)
    assert view.shape == x.shape
    assert view.dtype == x.dtype
    assert (view[x == 0] == 0).all()
    assert (view <= x).all()
    assert (view == view.round()).all()
    for count in (1, 2, 5):
        drawn = view[x == count]
        assert abs(drawn.mean().item() - count / 2) < 5 * math.sqrt(count / 4 / len(drawn))
    assert not torch.equal(BinomialThinning(0.5)(x), view)


def test_thinning_at_the_ends():
    x = torch.from_numpy(COUNTS)
    assert torch.equal(BinomialThinning(1.0)(x), x)
    assert torch.equal(BinomialThinning()(torch.zeros(3, 4)), torch.zeros(3, 4))
    assert BinomialThinning()(torch.zeros(0, 4)).shape == (0, 4)
    assert BinomialThinning().keep == 0.7
    for keep in (0.0, -0.1, 1.1):
        with pytest.raises(ValueError, match="`keep` is a probability"):
            BinomialThinning(keep)
