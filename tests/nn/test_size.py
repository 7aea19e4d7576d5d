"""Sizes that were not measured, predicted from what else is known."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from unbraid.nn import SizePredictor, size_features


@pytest.fixture
def cells():
    """Features of very different scales, and sizes with a log-normal spread of 0.3."""
    rng = np.random.default_rng(0)
    f = rng.normal(size=(5_000, 4)) * [1.0, 100.0, 0.01, 0.0] + [3.0, 0.0, 0.0, 7.0]
    log_size = 6.0 + 0.5 * (f[:, 0] - 3.0) - 0.002 * f[:, 1] + rng.normal(0, 0.3, 5_000)
    return torch.as_tensor(f, dtype=torch.float32), torch.as_tensor(np.exp(log_size), dtype=torch.float32)


def test_before_it_is_fitted_the_size_is_the_typical_one(cells):
    found = SizePredictor(250.0)(cells[0])
    torch.testing.assert_close(found.mean, torch.full((5_000,), 250.0), rtol=1e-4, atol=0.0)
    torch.testing.assert_close(found.sample(), found.mean, rtol=1e-4, atol=0.0)


def test_it_is_a_ridge_regression_of_logarithms(cells):
    predictor = SizePredictor(1.0)
    predictor.fit(*cells)
    f, y = cells[0].double().numpy(), cells[1].double().log().numpy()
    x = (f - f.mean(0)) / np.where(f.std(0) > 0, f.std(0, ddof=1), 1.0)
    expected = Ridge(alpha=1.0).fit(x, y)
    found = predictor(cells[0])
    np.testing.assert_allclose(found.loc.numpy(), expected.predict(x), rtol=1e-4)
    assert float(predictor.deviation) == pytest.approx(0.3, rel=0.03)
    # expected sizes, not medians
    ratio = float((cells[1] / found.mean).mean())
    assert ratio == pytest.approx(1.0, abs=0.02)


def test_draws_have_the_spread_of_what_is_not_explained(cells):
    predictor = SizePredictor(1.0)
    predictor.fit(*cells)
    draws = predictor(cells[0][:1]).sample((4_000,)).log()
    assert float(draws.std()) == pytest.approx(0.3, rel=0.06)


def test_predictions_stay_within_what_was_seen(cells):
    predictor = SizePredictor(1.0)
    predictor.fit(*cells)
    far = torch.tensor([[1e6, 0.0, 0.0, 7.0], [-1e6, 0.0, 0.0, 7.0]])
    logs = cells[1].log()
    torch.testing.assert_close(predictor(far).loc, torch.stack([logs.max(), logs.min()]), rtol=1e-4, atol=1e-4)


def test_cells_without_counts_and_too_few_cells_teach_nothing(cells):
    f, sizes = cells
    with_empty = SizePredictor(1.0)
    with_empty.fit(torch.cat([f, f[:10] + 50]), torch.cat([sizes, torch.zeros(10)]))
    alone = SizePredictor(1.0)
    alone.fit(f, sizes)
    torch.testing.assert_close(with_empty(f).mean, alone(f).mean)
    untaught = SizePredictor(250.0)
    untaught.fit(f[:1], sizes[:1])
    untaught.fit(f[:0], sizes[:0])
    assert float(untaught(f[:1]).mean) == pytest.approx(250.0)


def test_more_features_than_cells(cells):
    rng = np.random.default_rng(1)
    f = torch.as_tensor(rng.normal(size=(6, 30)), dtype=torch.float32)
    predictor = SizePredictor(1.0)
    predictor.fit(f, cells[1][:6])
    assert torch.isfinite(predictor(f).mean).all()


def test_it_is_saved(cells):
    predictor, other = SizePredictor(1.0), SizePredictor(1.0)
    predictor.fit(*cells)
    other.load_state_dict(predictor.state_dict())
    torch.testing.assert_close(other(cells[0]).mean, predictor(cells[0]).mean)


def test_features_are_blank_where_nothing_is_known():
    code, known = torch.ones(3, 2), torch.tensor([True, False, True])
    mask = {"rna": torch.tensor([True, True, False])}
    found = size_features(code, known, {"rna": torch.tensor([10.0, 100.0, 5.0])}, mask)
    expected = [[1, 1, 1, np.log(10)], [0, 0, 1, np.log(100)], [1, 1, 0, 0]]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert size_features(code, known, {}, mask).shape == (3, 2)
