"""The head of the shared codes: canonical axes, scales, and the joint code."""

import numpy as np
import pytest
import torch
from sklearn.cross_decomposition import CCA

import unbraid as ub
from unbraid.module._code_head import CodeHead
from unbraid.module._contrastive import centered

NAMES = ["a", "b", "c"]


def outputs(n=500, n_modalities=2, seed=0):
    """Outputs of encoders that share two dimensions, mixed, off centre and on odd scales."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(n, 2))
    raw = {}
    for k, m in enumerate(NAMES[:n_modalities]):
        own = np.hstack([shared + 0.3 * rng.normal(size=(n, 2)), rng.normal(size=(n, 2))])
        mixing = np.linalg.qr(rng.normal(size=(4, 4)))[0] * [10, 20, 15, 5]
        raw[m] = torch.as_tensor(own @ mixing + k, dtype=torch.float32)
    return raw, shared


def everywhere(raw):
    return {m: torch.ones(len(x), dtype=torch.bool) for m, x in raw.items()}


def test_canonical_codes_are_uncorrelated_of_unit_variance_and_ordered():
    raw, _ = outputs()
    head = CodeHead(["a", "b"], 4, sphere=False, canonical=True)
    head.fit(raw, everywhere(raw))
    codes = {m: head(m, x).numpy() for m, x in raw.items()}
    for z in codes.values():
        np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-4)
        np.testing.assert_allclose(np.cov(z.T, bias=True), np.eye(4), atol=0.05)  # the ridge
    cross = codes["a"].T @ codes["b"] / len(codes["a"])
    np.testing.assert_allclose(cross - np.diag(np.diag(cross)), 0, atol=0.05)
    np.testing.assert_allclose(head.correlation, np.diag(cross), atol=0.01)
    x, y = CCA(4, scale=False, max_iter=5000).fit_transform(raw["a"].numpy(), raw["b"].numpy())
    expected = [np.corrcoef(x[:, j], y[:, j])[0, 1] for j in range(4)]
    np.testing.assert_allclose(head.correlation, expected, atol=0.01)


def test_joint_canonical_code_is_the_posterior_mean_and_recovers_what_is_shared():
    raw, shared = outputs(n_modalities=3)
    mask = everywhere(raw)
    head = CodeHead(NAMES, 4, sphere=False, canonical=True)
    head.fit(raw, mask)
    codes = {m: head(m, x) for m, x in raw.items()}
    rho = head.correlation
    torch.testing.assert_close(head.joint(codes, mask), rho.sqrt() * sum(codes.values()) / (1 + 2 * rho))
    joint = head.joint(codes, mask).numpy()[:, :2]
    fit = np.linalg.lstsq(joint, shared, rcond=None)[0]
    assert 1 - ((joint @ fit - shared) ** 2).mean() / shared.var() > 0.95


def test_absent_modalities_do_not_count():
    raw, _ = outputs(n_modalities=3)
    mask = everywhere(raw)
    mask["b"] = torch.arange(500) % 3 > 0
    spoilt = {**raw, "b": raw["b"].masked_fill(~mask["b"].unsqueeze(1), 1e6)}
    heads = [CodeHead(NAMES, 4, sphere=False, canonical=canonical) for canonical in (True, True, False, False)]
    for head, values in zip(heads, (raw, spoilt, raw, spoilt), strict=True):
        head.fit(values, mask)
    for one, two in (heads[:2], heads[2:]):
        for name, value in one.state_dict().items():
            torch.testing.assert_close(two.state_dict()[name], value)


@pytest.mark.parametrize("sphere", [True, False])
def test_standardized_codes(sphere):
    raw, _ = outputs()
    raw["a"][:, 2] = 5.0  # constant
    head = CodeHead(["a", "b"], 4, sphere=sphere)
    head.fit(raw, everywhere(raw))
    for m, x in raw.items():
        code = head(m, x)
        if sphere:
            torch.testing.assert_close(code.norm(dim=1), torch.ones(500))
        found = head.standardized(m, code)
        torch.testing.assert_close(found.mean(dim=0), torch.zeros(4), atol=1e-4, rtol=0)
        expected = torch.ones(4)
        if m == "a" and not sphere:
            expected[2] = 0.0
        torch.testing.assert_close(found.std(dim=0, correction=0), expected, atol=1e-3, rtol=0)


def test_a_modality_without_training_cells_is_left_as_it_is():
    raw, _ = outputs(n_modalities=3)
    mask = everywhere(raw)
    mask["c"][:] = False
    for canonical in (True, False):
        head = CodeHead(NAMES, 4, sphere=False, canonical=canonical)
        head.fit(raw, mask)
        assert all(torch.isfinite(value).all() for value in head.state_dict().values())


def test_rows_are_centred_by_their_group():
    x, groups = torch.randn(40, 3), torch.arange(40) % 3 + 5
    found = centered(x, groups)
    for g in groups.unique():
        rows = groups == g
        torch.testing.assert_close(found[rows], x[rows] - x[rows].mean(dim=0))
    assert centered(x, None) is x


@pytest.mark.parametrize("objective", ["deep_cca", "vicreg", "barlow_twins"])
def test_correlation_objectives_earn_nothing_by_telling_batches_apart(objective):
    """Shifting the codes of one batch changes no correlation and costs the offset."""
    mdata = ub.data.simulate.citeseq(60, n_genes=20, n_proteins=8, seed=0)
    ub.model.CLIP.setup_mudata(mdata, batch_key="batch")
    model = ub.model.CLIP(mdata, n_shared=4, n_hidden=8, shared_objective=objective)
    module, batch = model.module, model.adata_manager.create_torch_dataset()[np.arange(60)]
    torch.manual_seed(0)
    codes = {m: torch.randn(60, 4) for m in module.modalities}
    shifted = {m: code + 5.0 * batch["batch"].unsqueeze(1) for m, code in codes.items()}
    before, after = (module.shared_terms(c, batch) for c in (codes, shifted))
    torch.testing.assert_close(after[objective][1](), before[objective][1](), rtol=1e-4, atol=1e-4)
    assert before["batch_offset"][1]() < 0.1
    assert after["batch_offset"][1]() > 0.8
    assert after["batch_offset"][0] == 4.0
    ub.model.CLIP.setup_mudata(mdata)
    free = ub.model.CLIP(mdata, n_shared=4, shared_objective=objective)
    assert free.module.shared_terms(codes, batch)["batch_offset"][0] == 0.0
