"""Codes of Unbraid: batches, absent modalities, conditions, retrieval."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unbraid.metrics import retrieval
from unbraid.objectives import canonical_log_ratio

# ---- batches, absence, condition --------------------------------------------------------------------


def test_three_modalities_of_which_cells_lack_some(counts, latents):
    found = latents(counts)
    assert set(found) == {"joint"} | {f"{kind} {m}" for kind in ("shared", "specific") for m in ("rna", "prot", "atac")}
    for name, z in found.items():
        assert np.isfinite(z).all()
        assert len(z) == (150 if name == "joint" else counts.adata[name.split()[1]].n_obs)
        assert z.std() > 0.05
    # next to nothing, of the few cells that were held out
    assert counts.report().interval[1] > 0
    assert "at least -" not in str(counts.report())


def test_networks_find_what_three_modalities_share_though_cells_lack_some(folded, trained, latents):
    mdata = folded(700, 3, missing=0.3)
    epochs = {"shared": 4, "scratch": 0, "residual": 1, "specific": 1}
    model = trained(mdata, None, epochs, {"batch_size": 64, "validation_size": 0.25}, lr=0.01)
    information = model.report().candidates["information"]
    assert information["shared"] > information["linear"] + 0.1
    assert model.report().chosen == "shared"
    assert all(np.isfinite(z).all() for z in latents(model).values())


def test_what_batches_have_in_common_is_not_shared(folded, trained):
    mdata = folded(400)
    batch = np.arange(400) % 2
    mdata.obs["batch"] = batch.astype(str)
    for adata in mdata.mod.values():
        adata.X += 5 * batch[:, None].astype(np.float32)
    training, told = {"batch_size": 64, "validation_size": 0.25}, {}
    for key in (None, "batch"):
        model = trained(
            mdata, {"batch_key": key}, {"shared": 6, "scratch": 0, "residual": 2, "specific": 2}, training, lr=0.01
        )
        z = model.get_latent_representation()
        told[key] = max(abs(np.corrcoef(column, batch)[0, 1]) for column in z.T)
    assert told[None] > 0.8
    assert told["batch"] < 0.15
    assert model.report().chosen == "shared"
    assert np.isfinite(model.reconstruct("a")).all()
    # the mean of its batch is put back
    np.testing.assert_allclose(
        model.reconstruct("a")[batch == 1].mean(axis=0), mdata["a"].X[batch == 1].mean(axis=0), atol=0.4
    )


@pytest.mark.parametrize("condition", ["own", "joint"])
def test_specific_codes_may_be_free_of_the_joint_code(make_mdata, remake, condition, trained, latents):
    mdata = make_mdata(150)
    model = trained(mdata, None, 1, {"batch_size": 64, "validation_size": 0.4}, condition=condition)
    before = latents(model)
    alone = model.get_latent_representation(remake(mdata, prot=None), "specific", "rna")
    same = np.abs(alone - before["specific rna"]).max() < 1e-4
    assert same == (condition == "own")  # what a cell's proteins say goes into its joint code
    for m in ("rna", "prot"):
        assert np.isfinite(model.reconstruct(m)).all()
        assert np.isfinite(model.impute(m)).all()
    codes = {"rna": torch.tensor([[1.0] * model.module.n_shared])}
    rho = model.module.candidate.kept_correlation
    expected = rho if condition == "own" else rho.sqrt()
    found = model.module.expected_condition("prot", codes, {"rna": torch.ones(1, dtype=torch.bool)})
    torch.testing.assert_close(found[0], expected)


def test_the_expected_code_of_a_modality_is_its_mean_given_the_others(counts):
    module = counts.module
    rho = module.candidate.kept_correlation.double().numpy()
    rng = np.random.default_rng(0)
    codes = {m: torch.as_tensor(rng.standard_normal((4, len(rho))), dtype=torch.float32) for m in ("rna", "atac")}
    mask = {m: torch.ones(4, dtype=torch.bool) for m in codes}
    found = module.expected_condition("prot", codes, mask).numpy()
    for j, r in enumerate(rho):
        covariance = np.eye(3) * (1 - r) + r
        weights = np.linalg.solve(covariance[1:, 1:], covariance[1:, 0])
        expected = weights[0] * codes["rna"][:, j].numpy() + weights[1] * codes["atac"][:, j].numpy()
        np.testing.assert_allclose(found[:, j], expected, rtol=1e-3, atol=1e-4)


# ---- retrieval --------------------------------------------------------------------------------------


def test_dot_products_rank_like_the_likelihood_ratio(neural):
    query = neural.get_retrieval_representation("a", role="query", indices=range(100))
    target = neural.get_retrieval_representation("b", role="target")
    assert query.dtype == target.dtype == np.float32
    assert query.shape[1] == target.shape[1] == len(neural.report().correlations) + 1
    batch = neural.adata_manager.create_torch_dataset()[np.arange(800)]
    with torch.no_grad():
        codes = neural.module.pair_codes(batch)
    rho = (torch.as_tensor(neural.report().correlations) - 1 / np.sqrt(160)).clamp(min=0)  # 160 validation cells
    ratio = canonical_log_ratio(codes["a"][:100], codes["b"], rho).numpy()
    difference = query @ target.T - ratio
    np.testing.assert_allclose(difference, difference[:, :1].repeat(800, axis=1), atol=1e-2)
    assert difference[:, 0].std() > 0.1  # the constant is the query's own
    # and find more partners among cells not trained on than the cosine of shared codes
    held_out = neural.validation_indices_
    vectors = [
        neural.get_retrieval_representation(m, role=r, indices=held_out) for m, r in (("a", "query"), ("b", "target"))
    ]
    shared = [neural.get_latent_representation(kind="shared", modality=m, indices=held_out) for m in "ab"]
    assert retrieval(*vectors, metric="dot").mrr > retrieval(*shared).mrr


def test_retrieval_vectors_are_one_per_cell(counts):
    for role in ("query", "target"):
        vectors = counts.get_retrieval_representation("prot", role=role)
        lacks = ~counts.adata.obs_names.isin(counts.adata["prot"].obs_names)
        assert len(vectors) == 150
        assert np.isnan(vectors[lacks]).all()
        assert np.isfinite(vectors[~lacks]).all()
    with pytest.raises(ValueError, match="`role`"):
        counts.get_retrieval_representation("prot", role="both")
    with pytest.raises(KeyError, match="No modality 'proteins'"):
        counts.get_retrieval_representation("proteins")


def test_the_joint_code_is_regressed_out_of_a_linear_split_too(folded, trained):
    model = trained(folded(), condition="joint")
    train = model.train_indices_
    cells = model.adata_manager.create_torch_dataset()[train]
    joint = model.get_latent_representation(indices=train)
    expected = np.linalg.lstsq(joint, model.module.components(cells)["a"].numpy(), rcond=None)[0]
    np.testing.assert_allclose(model.module.maps["a"].explained, expected, atol=1e-4)
