"""Unbraid's way back to the data: reconstruction, translation, imputation, counterfactuals."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch


def lacks(model, *modalities):
    return np.stack([~model.adata.obs_names.isin(model.adata[m].obs_names) for m in modalities]).all(axis=0)


def assert_rows(values, absent, n_features):
    assert values.dtype == np.float32
    assert values.shape == (len(absent), n_features)
    assert np.isnan(values[absent]).all()
    assert np.isfinite(values[~absent]).all()


@pytest.mark.parametrize("m", ["rna", "prot", "atac"])
def test_shapes_and_absent_cells(counts, m):
    p, others = counts.adata[m].n_vars, [n for n in counts.modalities if n != m]
    assert lacks(counts, m).any()
    for use in ("both", "shared", "specific"):
        assert_rows(counts.reconstruct(m, use=use), lacks(counts, m), p)
    for source in others:
        assert_rows(counts.translate(source, m), lacks(counts, source), p)
    assert_rows(counts.impute(m), lacks(counts, *others), p)
    first, second = np.arange(0, 100), np.arange(50, 150)
    absent = lacks(counts, m)
    assert_rows(counts.counterfactual(m, first, second), absent[first] | absent[second], p)
    for values in (counts.reconstruct(m), counts.translate(others[0], m), counts.impute(m)):
        assert np.nanmin(values) >= 0
    assert np.nanmin(counts.reconstruct("prot", transformed=True)) < 0  # centred log ratios


def test_a_reconstruction_resembles_the_data(neural):
    x, both = neural.adata["a"].X, neural.reconstruct("a")
    explained = lambda found: 1 - (found - x).var() / x.var()
    assert explained(both) > 0.9
    assert explained(both) > explained(neural.reconstruct("a", use="shared")) > 0.2
    assert explained(both) > explained(neural.reconstruct("a", use="specific")) > 0.2


def test_translation_tells_what_is_shared_and_no_more(neural):
    # b holds a multiple of the first latent and the square of the second, and two latents of its own: about half
    x, found = neural.adata["b"].X, neural.translate("a", "b")
    shuffled = found[np.random.default_rng(0).permutation(800)]
    assert 0.4 < 1 - (found - x).var() / x.var() < 0.8
    assert 1 - (shuffled - x).var() / x.var() < 0


def test_use_leaves_the_other_code_at_its_mean(neural):
    shared = neural.reconstruct("a", use="shared")
    # cells with other specific codes and equal shared ones would agree: the counterfactual differs, this does not
    module = neural.module
    c = torch.as_tensor(neural.get_latent_representation(kind="shared", modality="a"))
    with torch.no_grad():
        zeros = torch.zeros(800, neural.report().n_specific["a"])
        expected = module.input_layers["a"].inverse(module.decode("a", c, zeros))
    np.testing.assert_allclose(shared, expected, atol=1e-4)


def test_counts_come_back_at_the_size_of_the_cell(counts):
    reference = np.median(np.asarray(counts.adata["rna"].X.sum(axis=1)))
    for m in ("rna", "prot"):
        totals = pd.Series(np.asarray(counts.adata[m].X.sum(axis=1)).ravel(), index=counts.adata[m].obs_names)
        sizes = totals.reindex(counts.adata.obs_names).to_numpy()
        found, some = counts.reconstruct(m).sum(axis=1), sizes > 0
        assert (found[sizes == 0] < 1).all()
        assert np.corrcoef(np.log(found[some]), np.log(sizes[some]))[0, 1] > 0.9
    absent = lacks(counts, "rna") & ~lacks(counts, "prot")
    found = counts.translate("prot", "rna")[absent].sum(axis=1)
    assert absent.sum() > 3
    assert (found / reference > 0.3).all()
    assert (found / reference < 3).all()


def test_of_two_modalities_imputation_is_translation(pair):
    for source, target in (("rna", "prot"), ("prot", "rna")):
        np.testing.assert_array_equal(pair.impute(target), pair.translate(source, target))


def test_of_three_modalities_imputation_from_one_is_its_translation(counts):
    only = lacks(counts, "rna") & ~lacks(counts, "atac")
    assert only.any()
    np.testing.assert_allclose(
        counts.impute("prot")[only], counts.translate("atac", "prot")[only], rtol=1e-4, atol=1e-4
    )
    both = ~lacks(counts, "rna") & ~lacks(counts, "atac")
    assert np.abs(counts.impute("prot")[both] - counts.translate("atac", "prot")[both]).max() > 1e-2


def test_what_is_imputed_does_not_depend_on_what_was_measured(pair, make_mdata, remake):
    mdata = make_mdata(80, seed=4)
    less = remake(mdata, prot=None)
    for ask in (pair.impute, lambda target, data, **options: pair.translate("rna", target, data, **options)):
        known, unknown = ask("prot", mdata, transformed=True), ask("prot", less, transformed=True)
        np.testing.assert_allclose(unknown, known, atol=1e-5)
        assert unknown.shape == (80, 8)
        values = ask("prot", less)
        assert np.isfinite(values).all()
        assert values.min() >= 0
    assert np.isnan(pair.impute("rna", less)).all()  # there is nothing else
    assert np.isnan(pair.reconstruct("prot", less)).all()


def test_a_cell_with_its_own_codes_is_its_reconstruction(counts):
    cells = np.arange(150)
    for transformed in (True, False):
        np.testing.assert_allclose(
            counts.counterfactual("rna", cells, cells, transformed=transformed),
            counts.reconstruct("rna", transformed=transformed),
            atol=1e-4,
        )


def test_a_counterfactual_has_the_codes_of_two_cells(neural):
    first, second = np.arange(400), np.arange(400, 800)
    found = neural.counterfactual("a", first, second)
    c = torch.as_tensor(neural.get_latent_representation(kind="shared", modality="a"))[first]
    s = torch.as_tensor(neural.get_latent_representation(kind="specific", modality="a"))[second]
    with torch.no_grad():
        expected = neural.module.input_layers["a"].inverse(neural.module.decode("a", c, s))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert neural.counterfactual("a", [3, 3, 5], [9, 1, -1]).shape == (3, 8)


def test_a_counterfactual_may_take_the_shared_code_of_another_modality(neural):
    first, second = np.arange(400), np.arange(400, 800)
    found = neural.counterfactual("a", first, second, shared_modality="b")
    codes = {m: neural.get_latent_representation(kind="shared", modality=m) for m in "ab"}
    s = torch.as_tensor(neural.get_latent_representation(kind="specific", modality="a"))[second]
    with torch.no_grad():
        # alone, the other modality tells of the code its correlation times its own
        c = neural.module.candidate.kept_correlation * torch.as_tensor(codes["b"])[first]
        expected = neural.module.input_layers["a"].inverse(neural.module.decode("a", c, s))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    support = neural.counterfactual_support("a", first, first, shared_modality="b")
    assert support.mean() > neural.counterfactual_support("a", first, second, shared_modality="b").mean()


def test_a_counterfactual_has_the_size_of_the_cell_of_its_shared_code(pair):
    has = np.flatnonzero(~lacks(pair, "rna"))
    x = np.asarray(pair.adata["rna"][pair.adata.obs_names[has]].X.sum(axis=1)).ravel()
    order = np.argsort(x)[[20, -1]]
    small, large = has[order]
    found = pair.counterfactual("rna", [small, large], [small, small]).sum(axis=1)
    assert found[1] / found[0] == pytest.approx(x[order[1]] / x[order[0]], rel=0.5)


def test_the_way_back_leaves_gradients_on(pair):
    pair.counterfactual("rna", range(5), range(5))
    pair.impute("rna")
    assert not torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()


def test_errors_of_the_way_back(counts):
    for ask in (
        lambda: counts.reconstruct("proteins"),
        lambda: counts.translate("proteins", "rna"),
        lambda: counts.translate("rna", "proteins"),
        lambda: counts.impute("proteins"),
        lambda: counts.counterfactual("proteins", [0], [0]),
    ):
        with pytest.raises(KeyError, match="No modality 'proteins' in the model"):
            ask()
    with pytest.raises(ValueError, match="`use`"):
        counts.reconstruct("rna", use="all")
    with pytest.raises(ValueError, match="pair cells: got 2 and 1"):
        counts.counterfactual("rna", [0, 1], [0])
    with pytest.raises(IndexError, match="there are 150 observations"):
        counts.reconstruct("rna", indices=[150])


def test_indices_and_single_cells(counts, make_mdata):
    asks = {
        "reconstruct": lambda *a, **k: counts.reconstruct("rna", *a, **k),
        "translate": lambda *a, **k: counts.translate("rna", "atac", *a, **k),
        "impute": lambda *a, **k: counts.impute("prot", *a, **k),
        "retrieval": lambda *a, **k: counts.get_retrieval_representation("atac", *a, **k),
    }
    alone = counts.adata[[7]].copy()
    for name, ask in asks.items():
        whole = ask()
        for indices in ([5, 3, 3], [-1], [7], []):
            np.testing.assert_allclose(ask(indices=indices), whole[indices], rtol=1e-4, atol=1e-4, err_msg=name)
        np.testing.assert_allclose(ask(alone), whole[[7]], rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("transform", ["log1p", "clr", "pearson"])
@pytest.mark.parametrize("given", [False, True])
def test_the_scale_of_size_factors_does_not_matter(make_mdata, remake, transform, given, trained):
    mdata = make_mdata(120)
    totals = np.asarray(mdata["prot"].X).sum(axis=1)
    for adata in mdata.mod.values():
        sizes = np.asarray(adata.X.sum(axis=1)).ravel()
        adata.obs["size"] = np.maximum(sizes, 1) / np.median(sizes) * 1.5
    setup = {"size_factor_key": "size"} if given else None
    model = trained(mdata, setup, input_transform={"prot": transform})
    own = model.reconstruct("prot").sum(axis=1)[mdata.obs_names.get_indexer(mdata["prot"].obs_names)]
    assert np.corrcoef(own, totals)[0, 1] > 0.9
    assert own.mean() == pytest.approx(totals.mean(), rel=0.15)
    # not measured: cells of typical size
    found = model.translate("rna", "prot", remake(mdata, prot=None)).sum(axis=1)
    assert 0.5 * np.median(totals) < np.median(found) < 1.5 * totals.mean()
