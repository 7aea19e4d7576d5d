"""Small data for all tests, and the one list of models that every battery runs over."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import mudata
import numpy as np
import pandas as pd
import pytest
import scvi
import torch

import unbraid as ub

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

torch.set_num_threads(1)
scvi.settings.verbosity = logging.ERROR
for _name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
    logging.getLogger(_name).setLevel(logging.ERROR)
if hasattr(mudata, "set_options"):  # mudata 0.4 never pulls and has no such option
    mudata.set_options(pull_on_update=False)


def pytest_configure(config: pytest.Config) -> None:
    """Tiny data make other packages and LinearSplit complain; none of it is news."""
    for message in (
        "Category .* in adata.obs",
        "No dimension is shared beyond chance",
        "[0-9]+ training cells with two modalities are too few",
        "Unbraid learns from correlations within a batch",
        "var_names are not unique",
    ):
        config.addinivalue_line("filterwarnings", f"ignore:{message}:UserWarning")


@dataclass(frozen=True)
class ModelCase:
    """A model with what the battery must know of it.

    Attributes
    ----------
    cls
        The model.
    options
        Of its constructor, small.
    training
        Of ``train``, short.
    neural
        Learns by gradient descent: stages, epochs, learning rates, random numbers.
    sphere
        ``(kind, per modality)`` of the codes that have length 1.
    weights
        Per option that weighs a term, the term's name in the history and the module's method that computes it.
    name
        Of the case, where a model has several.
    """

    cls: type
    options: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    neural: bool = True
    sphere: tuple[str, ...] = ()
    weights: dict[str, tuple[str, str]] = field(default_factory=dict)
    name: str = ""

    def build(self, mdata: mudata.MuData, setup: Mapping | None = None, *, seed: int = 0, **options: Any) -> Any:
        """The model on freshly set-up data; its first weights depend on ``seed`` alone."""
        self.cls.setup_mudata(mdata, **(setup or {}))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return self.cls(mdata, **{**self.options, **options})

    def train(self, model: Any, **training: Any) -> Any:
        """Train quietly, on the processor, for an epoch or two."""
        quiet = {"progress_bar": False, "accelerator": "cpu", "seed": 0}
        model.train(**{**quiet, **self.training, **training})
        return model

    def fit(self, mdata: mudata.MuData, setup: Mapping | None = None, *, seed: int = 0, **options: Any) -> Any:
        """Set up, build and train."""
        return self.train(self.build(mdata, setup, seed=seed, **options), seed=seed)

    def latents(self, model: Any, mdata: mudata.MuData | None = None, **arguments: Any) -> dict[str, np.ndarray]:
        """All latents of a model by name: ``"joint"``, ``"shared rna"``, ``"specific rna"``, ..."""
        result = {"joint": model.get_latent_representation(mdata, **arguments)}
        present = (model.adata if mdata is None else mdata).mod
        for kind in model.module.kinds:
            for m in (m for m in model.modalities if m in present):
                result[f"{kind} {m}"] = model.get_latent_representation(mdata, kind, m, **arguments)
        return result


_small = {"n_shared": 4, "n_hidden": 8, "lr": 0.01}
_both = {**_small, "n_specific": 3}
_quick = {"max_epochs": 1, "batch_size": 32}
_club = {"independence_options": {"club": {"n_hidden": 8, "n_layers": 2}}}
_factor = {**_both, "n_embedding": 4, "critic_n_hidden": 8}
_spheres = ("joint", "shared")
_diffusion = {"n_hidden": 8, "n_steps": 20}
_dual = {"n_task": 2, "n_residual": 2, "n_specific": 3, "n_clusters": 3, "n_hidden": 8, "lr": 0.01}
_clustered = {**_small, "n_clusters": 3}
_captured = {"lambda_": ("specific_info_nce", "information")}

# One line here gives a model the whole battery.
MODELS = [
    ModelCase(ub.model.LinearSplit, {"ridge": 0.1}, {"n_permutations": 5}, neural=False),
    ModelCase(ub.model.Unbraid, {"n_hidden": 8, "n_layers": 2, "ridge": 0.1}, _quick),
    ModelCase(ub.model.CLIP, {**_small, "learn_temperature": True}, _quick, sphere=_spheres),
    ModelCase(ub.model.CLIP, {**_small, "shared_objective": "deep_cca"}, _quick, name="CLIP-deep_cca"),
    ModelCase(
        ub.model.DisentangledSSL,
        _both,
        _quick,
        sphere=_spheres,
        weights={"beta": ("alignment", "pairwise_alignment"), "lambda_": ("orthogonality", "views_dependence")},
    ),
    ModelCase(
        ub.model.IndiSeek,
        {**_both, **_club},
        _quick,
        sphere=_spheres,
        weights={"lambda_": ("reconstruction", "information")},
    ),
    ModelCase(
        ub.model.IndiSeek,
        {**_both, "independence": {"residual": 1.0, "density_ratio": 0.5}, "shared_objective": "vicreg"},
        _quick,
        name="IndiSeek-residual",
    ),
    ModelCase(
        ub.model.JointOpt,
        {**_both, "beta": 1.0},
        _quick,
        sphere=_spheres,
        weights={
            "beta": ("alignment", "pairwise_alignment"),
            "specific_weight": ("specific_info_nce", "views_info_nce"),
            "lambda_": ("orthogonality", "views_dependence"),
        },
    ),
    ModelCase(
        ub.model.FOCAL,
        {**_small, "n_specific": 4},  # the cosine needs equal widths
        _quick,
        sphere=_spheres,
        weights={
            "specific_weight": ("specific_info_nce", "views_info_nce"),
            "lambda_": ("orthogonality", "views_dependence"),
        },
    ),
    ModelCase(ub.model.FactorizedCL, {**_both, **_club}, _quick, sphere=_spheres, weights=_captured),
    ModelCase(ub.model.InfoDisen, _both, _quick, sphere=_spheres, weights=_captured),
    ModelCase(ub.model.FactorCL, _factor, _quick, weights={"lambda_": ("nce_club", "upper_bound")}),
    ModelCase(ub.model.MMVAE, {**_small, "estimator": "dreg", "n_importance": 2}, _quick),
    ModelCase(ub.model.MoPoEVAE, _small, _quick, weights={"beta": ("divergence", "_closed_divergence")}),
    ModelCase(
        ub.model.DMVAE,
        {**_both, "cross_information_weight": 1.0},
        _quick,
        weights={
            "beta": ("divergence", "_closed_divergence"),
            "cross_information_weight": ("cross_information", "cross_information"),
        },
    ),
    ModelCase(ub.model.MMVAEPlus, _both, _quick, weights={"beta": ("divergence", "_sampled_divergence")}),
    ModelCase(
        ub.model.IDMVAE,
        {**_both, "diffusion": "additive", "diffusion_options": _diffusion},
        _quick,
        weights={
            "cross_information_weight": ("cross_information", "cross_information"),
            "augmentation_weight": ("augmentation", "generative_augmentation"),
            "diffusion_weight": ("diffusion", "diffusion_loss"),
        },
    ),
    ModelCase(
        ub.model.SwapVAE,
        {**_both, "independence": {"hsic": 1.0, "adversarial": 1.0}, "diffusion_options": _diffusion},
        _quick,
    ),
    ModelCase(
        ub.model.CMVAE, {**_both, "n_clusters": 3}, _quick, weights={"beta": ("divergence", "_sampled_divergence")}
    ),
    ModelCase(ub.model.DL2, _dual, _quick),
    ModelCase(
        ub.model.DL2,
        {**_dual, "estimator": "dreg", "n_importance": 2, "coupled": True, "place_clusters": False},
        _quick,
        name="DL2-coupled",
    ),
    ModelCase(ub.model.CoMM, {**_small, "n_projection_hidden": 8, "n_projection": 4}, _quick),
    ModelCase(ub.model.VaDE, _clustered, _quick),
    ModelCase(ub.model.DCGMM, _clustered, _quick),
    ModelCase(ub.model.SDEC, {**_clustered, "pretrain": False}, _quick),
    ModelCase(ub.model.CIDEC, _clustered, _quick, weights={"clustering_weight": ("clustering", "clustering")}),
]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Whatever another test has set: sums by several threads differ in their last digit."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", params=MODELS, ids=[case.name or case.cls.__name__ for case in MODELS])
def case(request: pytest.FixtureRequest) -> ModelCase:
    """Every model in turn."""
    return request.param


def _assemble(mod: Mapping[str, Any], like: mudata.MuData, names: pd.Index | None = None) -> mudata.MuData:
    names = like.obs_names if names is None else names
    result = mudata.MuData(dict(mod), obs=pd.DataFrame(index=names))
    for column in like.obs:
        if not column.startswith("_scvi"):
            result.obs[column] = like.obs[column].reindex(result.obs_names)
    return result


@pytest.fixture(scope="session")
def make_mdata() -> Callable[..., mudata.MuData]:
    """Make a small MuData: counts of up to three modalities, two batches, three cell types.

    Modalities get their values from ``rna`` (sparse), ``prot`` (dense) and ``atac`` (sparse), in this order,
    whatever they are called. Proteins lie in an order of cells that is not the MuData's.
    """

    @cache
    def simulate(n_obs: int, modalities: tuple, missing: Any, seed: int) -> mudata.MuData:
        kinds = dict(zip(modalities, ("rna", "prot", "atac"), strict=False))
        simulated = ub.data.simulate.citeseq(
            n_obs,
            n_genes=20,
            n_proteins=8,
            n_peaks=12 if len(kinds) > 2 else 0,
            n_cell_types=3,
            missing={kinds[m]: share for m, share in missing} if isinstance(missing, tuple) else missing,
            seed=seed,
        )
        mod = {m: simulated.mod[kind] for m, kind in kinds.items()}
        second = modalities[1]
        order = np.random.default_rng(seed).permutation(mod[second].n_obs)
        mod[second] = mod[second][order].copy()
        return _assemble(mod, simulated)

    def make(
        n_obs: int = 60,
        modalities: Sequence[str] = ("rna", "prot"),
        missing: float | Mapping[str, float] = 0.0,
        seed: int = 0,
    ) -> mudata.MuData:
        missing = missing if isinstance(missing, float) else tuple(missing.items())
        return simulate(n_obs, tuple(modalities), missing, seed).copy()

    return make


@pytest.fixture(scope="session")
def remake() -> Callable[..., mudata.MuData]:
    """A MuData of copies, with some modalities replaced or (None) left out: ``remake(mdata, prot=other)``."""

    def make(mdata: mudata.MuData, names: Sequence[str] | pd.Index | None = None, /, **replaced: Any) -> mudata.MuData:
        mod = {m: adata.copy() for m, adata in mdata.mod.items()} | replaced
        mod = {m: adata for m, adata in mod.items() if adata is not None}
        return _assemble(mod, mdata, names)

    return make


@pytest.fixture(scope="session")
def dataset_of() -> Callable[..., ub.data.MultimodalDataset]:
    """Register a MuData as users do and give its cells: ``dataset_of(mdata, batch_key="batch")``."""

    def make(mdata: mudata.MuData, **setup: Any) -> ub.data.MultimodalDataset:
        ub.model.LinearSplit.setup_mudata(mdata, **setup)
        return ub.model.LinearSplit(mdata).adata_manager.create_torch_dataset()

    return make


@pytest.fixture(scope="session")
def fitted(case: ModelCase, make_mdata: Callable) -> Any:
    """A trained model on cells of two batches that lack modalities; not to be changed."""
    return case.fit(make_mdata(missing=0.2), {"batch_key": "batch"})
