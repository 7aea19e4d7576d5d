"""Every model on an accelerator; skipped where there is none."""

import numpy as np
import pytest
import torch

from unbraid.model.base import GenerativeModel

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
BATCH = {"batch_key": "batch"}


def train_on_gpu(case, model):
    return case.train(model, accelerator="gpu") if case.neural else case.train(model)


@pytest.fixture(scope="module")
def on_gpu(case, make_mdata):
    """A model trained on a GPU, on cells of two batches that lack modalities; it stays there."""
    model = train_on_gpu(case, case.build(make_mdata(missing=0.2), BATCH))
    model.to_device("cuda:0")
    return model


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=2e-3, err_msg=name)


def test_a_model_is_where_it_was_trained(case, make_mdata):
    if not case.neural:
        pytest.skip("trains on the processor")
    assert train_on_gpu(case, case.build(make_mdata())).device.type == "cuda"


def test_latents_are_those_of_the_processor(case, on_gpu, make_mdata, tmp_path):
    found = case.latents(on_gpu)
    on_gpu.save(tmp_path / "model")
    loaded = type(on_gpu).load(tmp_path / "model", adata=make_mdata(missing=0.2), accelerator="cpu")
    assert loaded.device.type == "cpu"
    assert_close(case.latents(loaded), found)
    assert_close(case.latents(type(on_gpu).load(tmp_path / "model", adata=make_mdata(missing=0.2))), found)


def test_training_goes_on(case, make_mdata):
    model = train_on_gpu(case, case.build(make_mdata(missing=0.2), BATCH))
    first = case.latents(model)
    train_on_gpu(case, model)
    assert all(np.isfinite(z[np.isfinite(first[name])]).all() for name, z in case.latents(model).items())


def test_a_query_is_mapped(case, on_gpu, make_mdata, tmp_path):
    if not case.neural:
        pytest.skip("trains on the processor")
    query = make_mdata(missing=0.2, seed=3)
    query.obs["batch"] = "new"
    on_gpu.save(tmp_path / "model")
    model = type(on_gpu).load_query_data(query, tmp_path / "model")
    assert model.device.type == "cuda"
    train_on_gpu(case, model)
    assert np.isfinite(model.get_latent_representation()).all()


def test_values_are_decoded(on_gpu, make_mdata):
    cells = np.flatnonzero(make_mdata(missing=0.2).obsm["rna"] & make_mdata(missing=0.2).obsm["prot"])
    for name, arguments in {
        "reconstruct": ("prot",),
        "translate": ("rna", "prot"),
        "impute": ("prot",),
        "counterfactual": ("prot", cells[:2], cells[2:4]),
    }.items():
        if hasattr(on_gpu, name) and (name != "counterfactual" or "specific" in on_gpu.module.kinds):
            found = getattr(on_gpu, name)(*arguments)
            assert np.isfinite(found[cells] if len(found) > 2 else found).all(), name


def test_draws_are_made(on_gpu):
    if not isinstance(on_gpu, GenerativeModel):
        pytest.skip("no draws")
    assert np.isfinite(on_gpu.sample(5, seed=0)["prot"].X).all()
    assert np.isfinite(on_gpu.get_log_likelihood(n_samples=3)).all()
    imputed = on_gpu.impute("prot", interval=0.9)
    assert not (imputed.lower > imputed.upper).any()
    paths = on_gpu.traverse("rna", 0, kind="shared", dimensions=[0], n_steps=3)
    assert np.isfinite(paths).all()
