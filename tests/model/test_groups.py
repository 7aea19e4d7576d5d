"""``group_key``: cells that are replicates of one another, such as profiles of one compound."""

import numpy as np
import pandas as pd
import pytest
import torch

import unbraid as ub
from unbraid.data import split_indices

WHOLE = {"train_size": 1.0}
pytestmark = pytest.mark.filterwarnings("ignore:.*too few:UserWarning")


def grouped(mdata, n_groups=12, seed=0):
    codes = np.random.default_rng(seed).integers(n_groups, size=mdata.n_obs)
    mdata.obs["compound"] = pd.Categorical([f"compound {k}" for k in codes])
    return mdata


def same(case, one, two):
    for name, values in case.latents(one).items():
        np.testing.assert_array_equal(values, case.latents(two)[name], err_msg=name)


# ---- every model ------------------------------------------------------------------------------


def test_cells_without_replicates_are_as_without_groups(case, make_mdata):
    mdata, named, empty = make_mdata(), make_mdata(), make_mdata()
    named.obs["compound"] = named.obs_names
    empty.obs["compound"] = None
    plain = case.train(case.build(mdata, {"batch_key": "batch"}), **WHOLE)
    for other in (named, empty):
        setup = {"batch_key": "batch", "group_key": "compound"}
        same(case, plain, case.train(case.build(other, setup), **WHOLE))


def test_replicates_are_on_one_side_of_a_random_split(case, make_mdata):
    if not case.neural:
        pytest.skip("trains on all cells")
    mdata = grouped(make_mdata())
    model = case.train(case.build(mdata, {"group_key": "compound"}), validation_size=0.3)
    compound = mdata.obs["compound"].to_numpy()
    train, validation = set(compound[model.train_indices_]), set(compound[model.validation_indices_])
    assert validation
    assert not train & validation


def test_groups_are_saved_and_a_query_needs_none(case, make_mdata, tmp_path):
    model = case.fit(grouped(make_mdata()), {"group_key": "compound"})
    model.save(tmp_path / "run")
    loaded = type(model).load(tmp_path / "run", grouped(make_mdata()))
    same(case, model, loaded)
    assert loaded.registry_["setup_args"]["group_key"] == "compound"
    query = type(model).load_query_data(make_mdata(seed=3), model)
    assert np.isfinite(query.get_latent_representation()).all()
    case.train(query)


# ---- what they do -----------------------------------------------------------------------------

CONTRASTS = [
    "CLIP",
    "DisentangledSSL",
    "IndiSeek",
    "JointOpt",
    "FOCAL",
    "FactorizedCL",
    "InfoDisen",
    "FactorCL",
    "CoMM",
]


@pytest.mark.parametrize("name", [*CONTRASTS, "IDMVAE", "SwapVAE"])
def test_replicates_are_no_negatives(name, make_mdata):
    """With all cells replicates of one another there is nobody to be told apart from."""
    mdata = make_mdata()
    mdata.obs["compound"] = "one"
    cls = getattr(ub.model, name)
    cls.setup_mudata(mdata, group_key="compound")
    options = {} if name in ("CLIP", "CoMM") else {"n_specific": 4}
    model = cls(mdata, n_shared=4, n_hidden=8, **options)
    model.train(max_epochs=1, progress_bar=False, train_size=1.0, seed=0, accelerator="cpu")
    contrasts = ("info_nce", "specific_info_nce", "views_info_nce", "cross_information", "only_rna", "all")
    found = [key for key in model.history if key.removesuffix("_train").split("/")[-1] in contrasts]
    assert found
    for key in found:
        assert abs(float(model.history[key].iloc[-1].iloc[0])) < 1e-6, key


def test_every_replicate_may_be_found(make_mdata):
    mdata = grouped(make_mdata(), n_groups=5)
    ub.model.CLIP.setup_mudata(mdata, group_key="compound")
    losses = {}
    for positives in ("own", "replicates"):
        torch.manual_seed(0)
        module = ub.model.CLIP(mdata, n_shared=4, n_hidden=8, positives=positives).module
        batch = ub.model.CLIP(mdata).adata_manager.create_torch_dataset()[np.arange(60)]
        losses[positives] = module.loss(batch, "shared").loss.item()
    assert abs(losses["own"] - losses["replicates"]) > 1e-3
    with pytest.raises(ValueError, match="`positives` must be one of 'own', 'replicates'"):
        ub.model.CLIP(mdata, positives="all")
    ub.model.CLIP.setup_mudata(mdata)
    with pytest.raises(ValueError, match="needs a `group_key`"):
        ub.model.CLIP(mdata, positives="replicates")


def test_the_linear_split_does_not_take_replicates_for_evidence():
    """Unrelated modalities measured in many replicates: held-out replicates of known groups would seem predicted."""
    rng = np.random.default_rng(0)
    of = np.repeat(np.arange(40), 15)
    names = [f"well {i}" for i in range(600)]
    x = {m: rng.normal(size=(40, 30))[of] + 0.05 * rng.normal(size=(600, 30)) for m in ("molecule", "phenotype")}
    mdata = _mdata(x, names)
    mdata.obs["compound"] = of.astype(str)
    ranks = {}
    for key in (None, "compound"):
        ub.model.LinearSplit.setup_mudata(mdata, group_key=key)
        model = ub.model.LinearSplit(mdata)
        with pytest.warns(UserWarning, match="No dimension is shared") if key else _nothing():
            model.train(seed=0)
        ranks[key] = model.get_latent_representation().shape[1]
    assert ranks[None] > 5
    assert ranks["compound"] == 1  # what is kept when nothing is found


def test_unbraid_does_not_take_replicates_for_evidence():
    rng = np.random.default_rng(1)
    of = np.repeat(np.arange(120), 6)
    x = {m: rng.normal(size=(120, 20))[of] + 0.05 * rng.normal(size=(720, 20)) for m in ("molecule", "phenotype")}
    mdata = _mdata(x, [f"well {i}" for i in range(720)])
    mdata.obs["compound"] = of.astype(str)
    found = {}
    for key in (None, "compound"):
        ub.model.Unbraid.setup_mudata(mdata, group_key=key)
        model = ub.model.Unbraid(mdata, n_hidden=16, n_layers=2)
        with pytest.warns(UserWarning, match="No dimension is shared") if key else _nothing():
            model.train(max_epochs=2, progress_bar=False, validation_size=0.5, seed=0, accelerator="cpu")
        found[key] = model.report().information
    assert found[None] > 1.0
    assert found["compound"] < 0.3


# ---- splits and mistakes ----------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_sizes_of_a_split_by_groups_are_near_what_was_asked(seed):
    groups = np.random.default_rng(seed).integers(50, size=1000)
    parts = split_indices(1000, train_size=0.6, validation_size=0.2, groups=groups, seed=seed)
    assert sorted(np.concatenate(list(parts.values()))) == list(range(1000))
    assert abs(len(parts["train"]) - 600) < 40
    assert abs(len(parts["validation"]) - 200) < 40
    assert not set(groups[parts["train"]]) & set(groups[parts["validation"]])


def test_mistakes_are_named(make_mdata):
    mdata = grouped(make_mdata())
    with pytest.raises(KeyError, match="`group_key`: no obs column 'compuond' in the MuData. Did you mean 'compound'"):
        ub.model.CLIP.setup_mudata(mdata, group_key="compuond")
    mdata["rna"].obs["drug"] = "x"
    with pytest.raises(KeyError, match="'drug' is an obs column of modality 'rna'"):
        ub.model.CLIP.setup_mudata(mdata, group_key="drug")
    one = make_mdata()
    one.obs["compound"] = "one"
    ub.model.CLIP.setup_mudata(one, group_key="compound")
    ub.model.CLIP(one, n_shared=4, n_hidden=8).train(max_epochs=1, progress_bar=False, accelerator="cpu")


def _mdata(arrays, names):
    from anndata import AnnData
    from mudata import MuData

    return MuData({m: AnnData(x, obs=pd.DataFrame(index=names)) for m, x in arrays.items()})


def _nothing():
    from contextlib import nullcontext

    return nullcontext()
