"""Small Unbraid models that several files ask, and what makes them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from mudata import MuData

import unbraid as ub

QUIET = {"seed": 0, "accelerator": "cpu", "progress_bar": False}
SMALL = {"n_hidden": 32, "n_layers": 2, "ridge": 0.01}


@pytest.fixture(scope="session")
def folded():
    """Two shared latents, of which the second modality has the square of one: no linear map finds that."""

    def make(n_obs=800, modalities=2, seed=0, missing=0.0):
        rng = np.random.default_rng(seed)
        z = rng.standard_normal((n_obs, 2))
        names, mod = np.array([f"cell_{i}" for i in range(n_obs)]), {}
        for m in "abc"[:modalities]:
            second = z[:, 1] ** 2 - 1 if m == "b" else z[:, 1]
            latents = np.column_stack([z[:, 0], second, rng.standard_normal((n_obs, 2))])
            x = latents @ np.linalg.qr(rng.standard_normal((8, 8)))[0][:4] + 0.1 * rng.standard_normal((n_obs, 8))
            has = rng.random(n_obs) >= missing if m != "a" else np.ones(n_obs, dtype=bool)
            mod[m] = AnnData(x[has].astype(np.float32), obs=pd.DataFrame(index=names[has]))
        return MuData(mod, obs=pd.DataFrame(index=names))

    return make


@pytest.fixture(scope="session")
def build():
    """A small model on freshly set-up data: ``build(mdata, setup, **options)``."""

    def make(mdata, setup=None, **options):
        ub.model.Unbraid.setup_mudata(mdata, **(setup or {}))
        return ub.model.Unbraid(mdata, **{**SMALL, **options})

    return make


@pytest.fixture(scope="session")
def trained(build):
    """The same, trained: ``trained(mdata, setup, epochs, training, **options)``."""

    def make(mdata, setup=None, epochs=0, training=None, **options):
        model = build(mdata, setup, **options)
        model.train(epochs, **QUIET, **(training or {}))
        return model

    return make


@pytest.fixture(scope="session")
def latents():
    """All codes by name: ``latents(model, mdata)``."""

    def read(model, mdata=None):
        found = {"joint": model.get_latent_representation(mdata)}
        for kind in ("shared", "specific"):
            for m in model.modalities:
                if m in (model.adata if mdata is None else mdata).mod:
                    found[f"{kind} {m}"] = model.get_latent_representation(mdata, kind, m)
        return found

    return read


@pytest.fixture(scope="session")
def assert_same():
    """Equal codes, exactly or within a tolerance: ``assert_same(found, expected, **tolerance)``."""

    def check(found, expected, **tolerance):
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            compare = np.testing.assert_allclose if tolerance else np.testing.assert_array_equal
            compare(found[name], values, err_msg=name, **tolerance)

    return check


@pytest.fixture(scope="session")
def neural(folded, trained):
    """Networks found more than the linear map; not to be changed."""
    epochs = {"shared": 10, "scratch": 10, "residual": 2, "specific": 2}
    return trained(folded(), epochs=epochs, training={"batch_size": 128, "validation_size": 0.2}, lr=0.01)


@pytest.fixture(scope="session")
def counts(make_mdata, trained):
    """Counts of three modalities in two batches, with cells that lack some; not to be changed."""
    missing = {"rna": 0.1, "prot": 0.3, "atac": 0.2}
    mdata = make_mdata(150, ("rna", "prot", "atac"), missing=missing)
    training = {"batch_size": 32, "validation_size": 0.4}
    return trained(mdata, {"batch_key": "batch"}, 1, training, input_transform={"prot": "clr"})


@pytest.fixture(scope="session")
def pair(make_mdata, trained):
    """Counts of two modalities, with cells that lack one; not to be changed."""
    return trained(make_mdata(100, missing=0.2), epochs=1, training={"batch_size": 32}, n_shared=3)
