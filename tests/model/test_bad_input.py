"""What users get wrong: the error names the place and the mend and comes before training, or it works.

One table over all models. Every row is a small MuData, perhaps spoilt, and the calls that follow, or a question to
a trained model; it states the error, or none. Whatever the error, not a single batch may have been drawn.
"""

from __future__ import annotations

import inspect
import signal
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import mudata
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData

import unbraid as ub
from unbraid.model.base import ContrastiveModel as Contrastive
from unbraid.model.base import DisentangledModel as Informed

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Row:
    """One way to go wrong: spoilt data, odd arguments, or (``then``) an odd question to a trained model."""

    name: str
    error: tuple[type[Exception], str] | None = None
    spoil: Callable[[mudata.MuData], Any] = lambda mdata: None
    setup: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    then: Callable[[Any, Any, Callable], Any] | None = None
    neural: bool = False


def values(**change):
    """Spoil values: ``values(rna=lambda x: ...)`` gets a dense float64 matrix and gives another."""

    def spoil(mdata):
        for m, function in change.items():
            x = mdata[m].X
            mdata[m].X = function(np.asarray(x.toarray() if sp.issparse(x) else x, dtype=np.float64))

    return spoil


def put(rows, columns, value):
    """Write a value into a part of a matrix."""

    def function(x):
        x[rows, columns] = value
        return x

    return function


def column(**columns):
    """Add columns to the ``obs`` of the MuData."""

    def spoil(mdata):
        for key, value in columns.items():
            mdata.obs[key] = value

    return spoil


def only(**rows):
    """Keep some cells of some modalities."""

    def spoil(mdata):
        mod = {m: a[rows.get(m, slice(None))].copy() for m, a in mdata.mod.items()}
        return mudata.MuData(mod, obs=mdata.obs[["batch"]])

    return spoil


def renamed_cells(mdata):
    mdata["prot"].obs_names = "other_" + mdata["prot"].obs_names
    return mudata.MuData(dict(mdata.mod))


def duplicated(attribute):
    def spoil(mdata):
        names = getattr(mdata["prot"], attribute).to_numpy(dtype=object, copy=True)
        names[1] = names[0]
        prot = mdata["prot"].copy()
        setattr(prot, attribute, names)
        return mudata.MuData({"rna": mdata["rna"], "prot": prot})

    return spoil


def layer(values):
    def spoil(mdata):
        mdata["rna"].layers["odd"] = values(mdata["rna"].shape)

    return spoil


def batch_inside(mdata):
    mdata["rna"].obs["plate"] = "p1"


def latent(**arguments):
    return lambda model, case, make: model.get_latent_representation(**arguments)


def query(spoil, seed=1):
    def then(model, case, make):
        mdata = make(seed=seed)
        return case.latents(model, spoil(mdata) or mdata)

    return then


N = 60
SET = {"modalities": ["rna", "prot"]}
ROWS = [
    # values
    Row("NaN", (ValueError, r"'rna' \(X\) holds NaN.* 1 cells.*Remove these cells"), values(rna=put(3, 4, np.nan))),
    Row("infinity", (ValueError, r"'prot' \(X\) holds NaN, infinite"), values(prot=put(3, 4, -np.inf))),
    Row("1e300", (ValueError, r"'rna' .*float32-overflowing values in 2 cells"), values(rna=put([3, 5], 4, 1e300))),
    Row(
        "negative counts",
        (ValueError, r"'prot'.*negative values under the count likelihood 'nb'.*`layers`.*'normal'"),
        values(prot=put(0, 0, -1.0)),
        {"likelihoods": {"prot": "nb"}},
    ),
    Row(
        "fractions as bernoulli",
        (ValueError, r"'prot'.*outside \[0, 1\].*'bernoulli'"),
        setup={"likelihoods": {"prot": "bernoulli"}},
    ),
    Row("unknown likelihood", (ValueError, "'rna': unknown likelihood 'nbb'.*'nb'"), setup={"likelihoods": {"rna": "nbb"}}),
    Row("words", (ValueError, r"'rna' \(layers\['odd'\]\) is not numeric"), layer(lambda shape: np.full(shape, "a")), {"layers": {"rna": "odd"}}),
    Row("objects", (ValueError, r"'rna' .* is not numeric"), layer(lambda shape: np.full(shape, None)), {"layers": {"rna": "odd"}}),
    Row("constant modality", (ValueError, "'rna' .* is constant"), values(rna=lambda x: x * 0 + 2)),
    Row("all zero", (ValueError, "'prot' .* is constant"), values(prot=lambda x: x * 0)),
    Row("no values", (ValueError, r"'rna' \(X\) is empty. Name the layer"), lambda mdata: setattr(mdata["rna"], "X", None)),
    Row("negative values", None, values(prot=lambda x: x - 5)),
    Row("zero cells", None, values(rna=put([0, 1, 2], slice(None), 0), prot=put([0, 7], slice(None), 0))),
    Row("zero features", None, values(rna=put(slice(None), [0, 1], 0), prot=put(slice(None), 2, 0))),
    Row("int8", None, values(rna=lambda x: np.full_like(x, 127).astype(np.int8) - (x > 0))),
    Row("huge int64", None, values(rna=lambda x: x.astype(np.int64) * 2**45)),
    Row("huge floats", None, values(prot=lambda x: (x - 3) * 1e30)),
    Row("tiny floats", None, values(prot=lambda x: (x - 3) * 1e-30)),
    Row("boolean", None, values(rna=lambda x: x > 0)),
    # names and cells
    Row("duplicate cells", (ValueError, "'prot' has duplicate cell names.*obs_names_make_unique"), duplicated("obs_names")),
    Row("duplicate features", (ValueError, "'prot' has duplicate feature names.*var_names_make_unique"), duplicated("var_names")),
    Row("one modality", (ValueError, r"at least 2 modalities.*\['rna'\]"), lambda mdata: mudata.MuData({"rna": mdata["rna"]})),
    Row("one named", (ValueError, r"at least 2 modalities.*\['rna'\]"), setup={"modalities": "rna"}),
    Row("named twice", (ValueError, "each named once"), setup={"modalities": ["rna", "prot", "rna"]}),
    Row("AnnData", (TypeError, r"needs a MuData, got AnnData. .*mudata.MuData\("), lambda mdata: mdata["rna"]),
    Row("a dictionary", (TypeError, "needs a MuData, got dict"), lambda mdata: dict(mdata.mod)),
    Row("a view", (ValueError, r"is a view. Run `mdata = mdata.copy\(\)`"), lambda mdata: mdata[:30]),
    Row("a MuData inside", (TypeError, "'prot' must be an AnnData, got MuData"), lambda mdata: mudata.MuData({"rna": mdata["rna"], "prot": mudata.MuData({"a": mdata["prot"]})})),
    Row("a slash", (ValueError, "'a/b'.*cannot be written.*'a_b'"), lambda mdata: mudata.MuData({"rna": mdata["rna"], "a/b": mdata["prot"]})),
    Row("no cell", (ValueError, r"No cell has two of the modalities.*prot: \[\]"), only(prot=slice(0, 0))),
    Row("one cell", (ValueError, "'prot' .* has 1 cell; a model needs at least 2"), only(prot=slice(0, 1))),
    Row("too few pairs", (ValueError, "training cells (have two modalities|cannot make 3 clusters)"), only(prot=slice(0, 2)), training={"train_size": 0.02, "seed": 1}),
    Row("unrelated cells", (ValueError, "No cell has two of the modalities.*must agree.*rna: .'cell_0'.*prot: .'other_cell_"), renamed_cells),
    # keys
    Row("unknown modality", (KeyError, "No modality 'rnaa'.*Did you mean 'rna'"), setup={"modalities": ["rnaa", "prot"]}),
    Row("unknown layer", (KeyError, "'rna' has no layer 'count'.*Did you mean 'counts'"), lambda mdata: mdata["rna"].layers.update(counts=mdata["rna"].X), {"layers": {"rna": "count"}}),
    Row("unknown embedding", (KeyError, "'rna' has no obsm key 'X_pca'.*There is: 'true_specific'"), setup={"layers": {"rna": "obsm:X_pca"}}),
    Row("layer of no modality", (KeyError, "`layers` names 'rn'.*Did you mean 'rna'"), setup={"layers": {"rn": "counts"}}),
    Row("layers as a word", (TypeError, "`layers` maps modalities to values"), setup={"layers": "counts"}),
    Row("unknown mask", (KeyError, "`mask_keys`: modality 'prot' has no obs column 'ok'"), setup={"mask_keys": {"prot": "ok"}}),
    Row("unknown size factor", (KeyError, "`size_factor_key`: no modality has an obs column 'size'"), setup={"size_factor_key": "size"}),
    Row("unknown batch", (KeyError, "`batch_key`: no obs column 'bach'.*Did you mean 'batch'"), setup={"batch_key": "bach"}),
    Row("batch of a modality", (KeyError, r"'plate' is an obs column of modality 'rna'.*Copy it up.*mdata.obs\['plate'\] = "), batch_inside, {"batch_key": "plate"}),
    Row("batch with NaN", (ValueError, "`batch_key`: 1 cells have no value in obs column 'plate'"), column(plate=[None, *["p"] * (N - 1)]), {"batch_key": "plate"}),
    Row("batch of one cell", None, column(plate=["single", *["p"] * (N - 1)]), {"batch_key": "plate"}),
    Row("every cell a batch", None, column(plate=[f"p{i}" for i in range(N)]), {"batch_key": "plate"}),
    Row("numbers as batch", None, column(plate=[2.5, 1.0] * (N // 2)), {"batch_key": "plate"}),
    Row("unknown covariate", (KeyError, "`continuous_covariate_keys`: no obs column 'age'"), setup={"continuous_covariate_keys": "age"}),
    Row("words as numbers", (ValueError, "`continuous_covariate_keys`: obs column 'cell_type' must hold finite numbers"), setup={"continuous_covariate_keys": ["cell_type"]}),
    Row("pairs", ((ValueError, KeyError), "does not use pairs of cells|No pairs 'pairs' in obsp"), setup={"pairs_key": "pairs"}),
    Row("unknown set-up option", (TypeError, "nonsense"), setup={"nonsense": 1}),
    # the model
    Row("unknown option", (TypeError, "nonsense"), options={"nonsense": 1}),
    Row("no dimension", (ValueError, "`n_shared` must be positive"), options={"n_shared": 0}),
    Row("unknown transform", (ValueError, "'rna': unknown input transform 'logp'.*log1p"), options={"input_transform": "logp"}),
    Row("transform of no modality", (KeyError, "`input_transform` names 'rn'.*Did you mean 'rna'"), options={"input_transform": {"rn": "clr"}}),
    Row("log of negative values", (ValueError, "'prot' has negative values.*cannot be 'clr'.*'scale'"), values(prot=lambda x: x - 5), options={"input_transform": {"prot": "clr"}}),
    Row("unknown encoder", (ValueError, "Encoder of modality 'rna' is 'mlp'.* or a torch Module, got 'cnn'"), options={"encoders": "cnn"}, neural=True),
    Row("unknown augmentation", (ValueError, "Augmentation of modality 'rna' is 'auto', None or a callable, got 3"), options={"augmentation": 3}, neural=True),
    Row("zero temperature", (ValueError, "`temperature` must be positive"), options={"temperature": 0.0}, neural=True),
    Row("batch negatives without batches", (ValueError, "`negatives='batch'` needs a `batch_key`"), options={"negatives": "batch"}, neural=True),
    Row("an encoder that is a Module", None, options={"encoders": {"rna": torch.nn.Linear(20, 4)}}, neural=True),
    # training
    Row("negative epochs", (ValueError, "`max_epochs` must be a whole number of at least 0, got -1"), training={"max_epochs": -1}, neural=True),
    Row("half an epoch", (ValueError, "`max_epochs` must be a whole number.*got 1.5"), training={"max_epochs": 1.5}, neural=True),
    Row("epochs of no stage", (KeyError, "`max_epochs` names 'shard', which is not a stage"), training={"max_epochs": {"shard": 1}}, neural=True),
    Row("NumPy's epochs", None, training={"max_epochs": np.int64(1)}, neural=True),
    Row("no epoch", None, training={"max_epochs": 0}),
    Row("negative rate", (ValueError, "`lr` must be a finite number of at least 0, got -1"), training={"lr": -1}, neural=True),
    Row("rate in words", (ValueError, "`lr` must be a finite number.*got 'high'"), training={"lr": "high"}, neural=True),
    Row("infinite rate", (ValueError, "`lr` must be a finite number"), training={"lr": np.inf}, neural=True),
    Row("rate of no stage", (KeyError, "`lr` names 'x', which is not a stage"), training={"lr": {"x": 1.0}}, neural=True),
    Row("negative decay", (ValueError, "`weight_decay` must be a finite number"), training={"weight_decay": -1}, neural=True),
    Row("unknown training option", (TypeError, "nonsense"), training={"nonsense": 1}, neural=True),
    Row("too much to train on", (ValueError, "`train_size` is a fraction between 0 and 1, got 90"), training={"train_size": 90}),
    Row("nothing to train on", (ValueError, "No cell is left to train on"), training={"train_size": 0.0}),
    Row("unknown split", (KeyError, "`split_key`: no obs column 'splt'.*Did you mean 'split'"), column(split="train"), training={"split_key": "splt"}),
    Row("odd split", (ValueError, r"'split' must hold 'train', 'val' or 'test'; found \['dev'\]"), column(split="dev"), training={"split_key": "split"}),
    Row("nobody trains", (ValueError, "No cell is left to train on: check .*`split_key`"), column(split="test"), training={"split_key": "split"}),
    Row("large batches", None, training={"batch_size": 10_000}, neural=True),
    Row("batches of two", None, only(rna=slice(0, 30), prot=slice(0, 30)), training={"batch_size": 2}, neural=True),
    Row("batches without a pair", None, only(rna=slice(0, 20), prot=slice(0, 40)), training={"batch_size": 2}, neural=True),
    Row("batches of one", (ValueError, "`batch_size` must be a whole number of at least 2, got 1"), training={"batch_size": 1}, neural=True),
    Row("batches of a half", (ValueError, "`batch_size` must be a whole number.*got 0.5"), training={"batch_size": 0.5}, neural=True),
    Row("negative seed", (ValueError, "`seed` must be a whole number of at least 0, got -1"), training={"seed": -1}),
    # afterwards
    Row("unknown kind", (ValueError, "has no 'common' latents.*'shared'"), then=latent(kind="common")),
    Row("specific of what", (ValueError, "has no 'specific'|belong to a modality: pass `modality`"), then=latent(kind="specific")),
    Row("joint of one", (ValueError, "The joint code belongs to the cell"), then=latent(kind="joint", modality="rna")),
    Row("latent of no modality", (KeyError, "No modality 'rnaa'.*Did you mean 'rna'"), then=latent(modality="rnaa")),
    Row("latents in batches of none", (ValueError, "`batch_size` must be a whole number of at least 1, got 0"), then=latent(batch_size=0)),
    Row("query AnnData", (TypeError, r"Expected a MuData with any of \['rna', 'prot'\], got AnnData"), then=query(lambda mdata: mdata["rna"])),
    Row("query view", (ValueError, r"is a view. Run `mdata = mdata.copy\(\)`"), then=query(lambda mdata: mdata[:20])),
    Row("query of other modalities", (ValueError, r"none of the model's modalities \['rna', 'prot'\]. It has \['x'"), then=query(lambda mdata: mudata.MuData({"x": mdata["rna"], "y": mdata["prot"]}))),
    Row("query of other features", (ValueError, "'rna' lacks 20 of the 20 features.*'gene_0'"), then=query(lambda mdata: setattr(mdata["rna"], "var_names", [f"g{i}" for i in range(20)]))),
    Row("query without a batch", (KeyError, "`batch_key`: no obs column 'batch'"), then=query(lambda mdata: mdata.obs.drop(columns="batch", inplace=True))),
    Row("query of another batch", (ValueError, "`batch_key`.*not seen.*'new'.*`load_query_data`"), then=query(column(batch="new"))),
    Row("query with NaN", (ValueError, r"'rna' \(X\) holds NaN"), then=query(values(rna=put(0, 0, np.nan)))),
    Row("query of negative counts", (ValueError, "'rna'.*negative values"), then=query(values(rna=lambda x: -x))),
    Row("query of a single cell", None, then=query(lambda mdata: mdata[:1].copy())),
    Row("query of cells without proteins", None, then=query(lambda mdata: only(prot=slice(0, 0))(mdata))),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _nothing_hangs():
    def stop(*_):
        raise TimeoutError("hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def drawn(monkeypatch):
    """Batches drawn so far."""
    batches = []
    draw = ub.data.MultimodalDataset.__getitem__

    def count(self, indices):
        batches.append(len(np.atleast_1d(indices)))
        return draw(self, indices)

    monkeypatch.setattr(ub.data.MultimodalDataset, "__getitem__", count)
    return batches


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_bad_input(case, fitted, row, make_mdata, drawn):
    if row.neural and not case.neural:
        pytest.skip("a closed form has no such option")
    taken = inspect.signature(case.cls).parameters
    if not set(row.options) <= set(taken) and ("options" not in taken or "n_shared" in row.options):
        pytest.skip("no such option")
    if row.name in ("one modality", "one named") and case.cls._min_modalities == 1:
        pytest.skip("one modality is enough")
    holders = {
        "augmentation": Contrastive,
        "temperature": (Contrastive, Informed),
        "negatives": (Contrastive, Informed),
    }
    if case.neural and not all(issubclass(case.cls, holders.get(name, object)) for name in row.options):
        pytest.skip("no such option in this family")

    def act():
        if row.then is not None:
            return row.then(fitted, case, make_mdata)
        mdata = make_mdata(N)
        spoilt = row.spoil(mdata)
        model = case.build(mdata if spoilt is None else spoilt, row.setup, **row.options)
        return case.latents(case.train(model, **row.training))

    if row.error is None:
        latents = act()
        assert latents["joint"].dtype == np.float32
        assert all(np.isfinite(values).all() for values in latents.values())
        return
    error, message = row.error
    with pytest.raises(error, match=message):
        act()
    assert drawn == []


def test_every_row_has_a_name_of_its_own():
    assert len({row.name for row in ROWS}) == len(ROWS)


def test_a_model_wants_its_data_set_up(case, make_mdata):
    for data, error, message in (
        (make_mdata(), ValueError, rf"not set up for {case.cls.__name__}.*Call `{case.cls.__name__}.setup_mudata"),
        (make_mdata()["rna"], TypeError, f"Expected the MuData of `{case.cls.__name__}.setup_mudata`, got AnnData"),
        (None, TypeError, "Expected the MuData"),
    ):
        with pytest.raises(error, match=message):
            case.cls(data)
    mdata = make_mdata()
    case.cls.setup_mudata(mdata)
    with pytest.raises(ValueError, match="nor is a copy of one that is"):
        case.cls(mdata.copy())
    with pytest.raises(NotImplementedError, match=f"call `{case.cls.__name__}.setup_mudata`"):
        case.cls.setup_anndata(AnnData(np.eye(3)))
