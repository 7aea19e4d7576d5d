"""Phenotypes that were not measured: what is shared from one cell, what is specific from another. For any codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.utils import make_index_unique
from mudata import MuData
from scipy import sparse

from unbraid._messages import check_option, check_whole, suggest
from unbraid.data._cells import numbers_of
from unbraid.metrics import diff_fd
from unbraid.metrics._decoder import Decoder, Likelihood, fit_predict, likelihood_of
from unbraid.metrics._lookup import embedding_of, values_of
from unbraid.metrics._rows import codes_of, present_rows
from unbraid.tl._support import support

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    from unbraid.metrics import DiffFDResult

OFF_SUPPORT = 0.05
FEWEST_OBS = 20


def counterfactual(
    mdata: MuData,
    modality: str,
    shared_from: Sequence[int] | Sequence[str] | ArrayLike,
    specific_from: Sequence[int] | Sequence[str] | ArrayLike,
    *,
    shared_modality: str | None = None,
    use_shared: str = "Z_c",
    use_specific: str = "Z_s",
    layer: str | None = None,
    train: ArrayLike | None = None,
    groups: ArrayLike | str | None = None,
    likelihood: Likelihood | None = None,
    decoder: Decoder = "mlp",
    hidden: int = 128,
    max_epochs: int = 30,
    n_neighbors: int = 10,
    seed: int = 0,
) -> AnnData:
    r"""A modality with what is shared from some observations and what is specific from others.

    The phenotype of drug A in the state of cell B: a decoder learns
    :math:`x_m \approx g(c, s_m)` from observations whose shared code c, specific code and values are known, and is
    given the shared code of one observation and the specific code of another [1]_. Works on the codes of any model; models
    with a decoder of their own have a method of the same name.

    Parameters
    ----------
    mdata
        Data with codes in ``obsm``.
    modality
        What is decoded, such as the phenotype.
    shared_from, specific_from
        Names or numbers of observations of ``mdata``, equally many: row i of the result is a pair of them.
    shared_modality
        Modality whose shared code is taken, also for the decoder to learn from: the molecule's for what a drug would
        do that was never screened. By default ``modality``.
    use_shared, use_specific
        Keys of ``obsm`` of these modalities.
    layer
        Layer with the values of ``modality``, by default ``X``.
    train
        Observations that the decoder learns from: names, numbers or a mask. By default all that have both codes and
        values; for an honest measure those that the codes were trained on.
    groups
        What must stay together where a tenth of the observations decides when to stop learning (compound): a column of
        ``obs``, or labels.
    likelihood, decoder, hidden, max_epochs
        As in :func:`unbraid.metrics.reconstruction_gain`. Counts are at the total of the observation of
        ``specific_from``.
    n_neighbors
        Of :func:`support`.
    seed
        Seed of the decoder. Global random state is neither used nor changed.

    Returns
    -------
    One row per pair: expected values in ``X`` (float32) and, in ``obs``, ``shared_from``, ``specific_from``, ``support``
    and ``off_support``. Support is the share of the training observations whose own two codes, side by side, are as far
    from those of others (:func:`support`); below 0.05 a combination is off the support of the data, where a decoder
    says what it likes.

    Raises
    ------
    KeyError
        If a modality, key or observation is not there.
    ValueError
        If there are not equally many observations, if one lacks what is taken from it, or if fewer than 20 can be
        learned from.

    References
    ----------
    .. [1] Wang et al. An information criterion for controlled disentanglement of multimodal data. ICLR 2025.
       Appendix H.3.

    Examples
    --------
    >>> mdata = ub.data.simulate.drug_screen(seed=0)
    >>> ub.model.LinearSplit.setup_mudata(mdata, group_key="compound")
    >>> model = ub.model.LinearSplit(mdata)
    >>> model.train()
    >>> mdata = model.write_latent()
    >>> found = ub.tl.counterfactual(mdata, "phenotype", [0, 1], [5, 6], shared_modality="molecule")
    >>> found.obs["off_support"]
    """
    given = {"shared_from": shared_from, "specific_from": specific_from}
    pairs = [numbers_of(cells, mdata, name) for name, cells in given.items()]
    if len(pairs[0]) != len(pairs[1]):
        raise ValueError(f"`shared_from` and `specific_from` pair cells: got {len(pairs[0])} and {len(pairs[1])}.")
    options = _Options(decoder, likelihood, hidden, max_epochs, n_neighbors, seed)
    screen = _read(mdata, modality, shared_modality, use_shared, use_specific, layer, groups)
    for name, cells, known in zip(("shared_from", "specific_from"), pairs, screen.known, strict=True):
        if lacking := int((~known[cells]).sum()):
            code = {"shared_from": screen.shared_key, "specific_from": screen.specific_key}[name]
            raise ValueError(f"`{name}`: {lacking} of {len(cells)} observations have no {code}.")
    rows = numbers_of(train, mdata, "train")
    (values,), reference = _decoded(screen, rows, options, tuple(pairs))
    usual = support(reference, _codes(screen, *pairs), n_neighbors=n_neighbors)
    names = mdata.obs_names.to_numpy()
    pair_names = pd.Index([f"{a} in {b}" for a, b in zip(names[pairs[0]], names[pairs[1]], strict=True)])
    obs = pd.DataFrame(
        {
            "shared_from": names[pairs[0]],
            "specific_from": names[pairs[1]],
            "support": usual,
            "off_support": usual < OFF_SUPPORT,
        },
        index=make_index_unique(pair_names, join="#"),
    )
    return AnnData(values.astype(np.float32), obs=obs, var=mdata[modality].var.copy())


def counterfactual_distance(
    mdata: MuData,
    modality: str,
    *,
    split_key: str,
    shared_modality: str | None = None,
    use_shared: str = "Z_c",
    use_specific: str = "Z_s",
    layer: str | None = None,
    groups: ArrayLike | str | None = None,
    likelihood: Likelihood | None = None,
    decoder: Decoder = "mlp",
    hidden: int = 128,
    max_epochs: int = 30,
    n_bootstrap: int = 200,
    seed: int = 0,
) -> DiffFDResult:
    r"""How much of a modality the shared and the specific code carry over into counterfactuals.

    The decoder of :func:`counterfactual` learns from training observations. Decoded are the validation observations
    (reference), the test observations (test), and shared codes of test with specific codes of validation observations
    (counterfactual). :func:`unbraid.metrics.diff_fd` compares the three.

    Parameters
    ----------
    mdata, modality, shared_modality, use_shared, use_specific, layer, groups, likelihood, decoder, hidden, max_epochs
        As in :func:`counterfactual`; ``groups`` are also what the bootstrap draws.
    split_key
        Column of ``obs`` with ``train``, ``val`` and ``test``; see :func:`unbraid.pp.split`.
    n_bootstrap
        Of :func:`unbraid.metrics.diff_fd`.
    seed
        Of decoder, pairing and bootstrap.

    Returns
    -------
    Both differences with intervals, and the three distances.

    Raises
    ------
    KeyError
        If a modality, key or column is not there.
    ValueError
        If a part has fewer than two observations with both codes, or fewer than 20 can be learned from.

    Notes
    -----
    Which validation phenotype goes with which test molecule is not said in [1]_; here it is a random one, all equally
    often as far as numbers allow. The distance is between Gaussians fitted to the three samples.

    References
    ----------
    .. [1] Wang et al. An information criterion for controlled disentanglement of multimodal data. ICLR 2025.
       Appendix H.3, table 5.
    """
    options = _Options(decoder, likelihood, hidden, max_epochs, 10, seed)
    screen = _read(mdata, modality, shared_modality, use_shared, use_specific, layer, groups)
    split = values_of(mdata, split_key, "split_key", mdata.n_obs).astype(str).str.lower().replace("validation", "val")
    if unknown := sorted(set(split) - {"train", "val", "test"}):
        raise ValueError(f"`split_key`: {split_key!r} must hold 'train', 'val' and 'test'; found {unknown[:5]}.")
    known = screen.known[0] & screen.known[1]
    train, val, test = (np.flatnonzero((split == part).to_numpy() & known) for part in ("train", "val", "test"))
    for part, rows in (("val", val), ("test", test)):
        if len(rows) < 2:
            raise ValueError(f"`split_key`: {len(rows)} {part} observations have both codes; at least 2 are needed.")
    n_rounds = -(-len(test) // len(val))
    rng = np.random.default_rng(seed)
    partner = np.concatenate([rng.permutation(val) for _ in range(n_rounds)])[: len(test)]
    samples, _ = _decoded(screen, train, options, (val, val), (test, test), (test, partner))
    label = lambda rows: None if screen.groups is None else screen.groups[rows]
    return diff_fd(
        *samples,
        reference_groups=label(val),
        test_groups=label(test),
        counterfactual_groups=label(test),
        n_bootstrap=n_bootstrap,
        seed=seed,
    )


# ---- helpers --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Options:
    decoder: Decoder
    likelihood: Likelihood | None
    hidden: int
    max_epochs: int
    n_neighbors: int
    seed: int

    def __post_init__(self) -> None:
        check_option("`decoder`", self.decoder, get_args(Decoder))
        check_option("`likelihood`", self.likelihood, (None, *get_args(Likelihood)))
        for name in ("hidden", "max_epochs", "n_neighbors"):
            check_whole(name, getattr(self, name), 1)


@dataclass(frozen=True)
class _Screen:
    """Codes and values of all observations; rows of what they lack are NaN, respectively -1."""

    shared: NDArray  # (n_obs, k)
    specific: NDArray
    known: tuple[NDArray, NDArray]  # which observations have either code: (n_obs,) bool
    values: NDArray | sparse.csr_array  # (n_rows, p) of the modality
    row: NDArray  # (n_obs,) row of the values
    groups: NDArray | None
    shared_key: str
    specific_key: str


def _read(mdata: MuData, modality: str, shared_modality, use_shared, use_specific, layer, groups) -> _Screen:
    if not isinstance(mdata, MuData):
        raise TypeError(f"Expected a MuData, got {type(mdata).__name__}.")
    source = modality if shared_modality is None else shared_modality
    for name in (modality, source):
        if name not in mdata.mod:
            raise KeyError(f"No modality {name!r} in the MuData. {suggest(name, mdata.mod)}")
    adata = mdata[modality]
    if layer is not None and layer not in adata.layers:
        raise KeyError(f"Modality {modality!r} has no layer {layer!r}. {suggest(layer, adata.layers)}")
    values = adata.X if layer is None else adata.layers[layer]
    values = sparse.csr_array(values) if sparse.issparse(values) else np.asarray(values)
    finite = values.data if sparse.issparse(values) else values
    if not np.isfinite(finite).all():
        raise ValueError(f"Modality {modality!r} holds NaN or infinite values. Remove these observations from it.")
    keys = f"{source}:{use_shared}", f"{modality}:{use_specific}"
    shared, specific = (embedding_of(mdata, key) for key in keys)
    return _Screen(
        shared,
        specific,
        tuple(present_rows(code, key) for code, key in zip((shared, specific), keys, strict=True)),
        values,
        np.asarray(mdata.obsmap[modality]).ravel().astype(np.int64) - 1,
        None if groups is None else codes_of(values_of(mdata, groups, "groups", mdata.n_obs), "group"),
        *keys,
    )


def _decoded(
    screen: _Screen, rows: NDArray, options: _Options, *pairs: tuple[NDArray, NDArray]
) -> tuple[list[NDArray], NDArray]:
    """Values of lists of pairs of observations, and both codes of the training observations."""
    rows = rows[screen.known[0][rows] & screen.known[1][rows] & (screen.row[rows] >= 0)]
    likelihood = likelihood_of(screen.values[screen.row[rows]], options.likelihood)
    if likelihood == "poisson":  # an observation without counts tells nothing of their proportions
        rows = rows[_totals(screen, rows) > 0]
    if len(rows) < FEWEST_OBS:
        raise ValueError(f"{len(rows)} observations to learn from have values and both codes; {FEWEST_OBS} are needed.")
    reference, values = _codes(screen, rows, rows), screen.values[screen.row[rows]]
    of = np.concatenate([rows, *(specific_from for _, specific_from in pairs)])
    total = _totals(screen, of)
    typical = np.median(total[: len(rows)]) if likelihood == "poisson" else 1.0
    predict = fit_predict(
        np.vstack([reference, *(_codes(screen, *pair) for pair in pairs)]),
        values,
        total / typical,
        np.arange(len(rows)),
        likelihood=likelihood,
        decoder=options.decoder,
        hidden=options.hidden,
        max_epochs=options.max_epochs,
        groups=None if screen.groups is None else screen.groups[rows],
        rng=np.random.default_rng(options.seed),
    )
    ends = np.cumsum([len(rows), *(len(first) for first, _ in pairs)])
    return [predict(np.arange(a, b)) for a, b in zip(ends[:-1], ends[1:], strict=True)], reference


def _totals(screen: _Screen, rows: NDArray) -> NDArray:
    return np.asarray(screen.values[screen.row[rows]].sum(axis=1), dtype=float).ravel()


def _codes(screen: _Screen, shared_from: NDArray, specific_from: NDArray) -> NDArray:
    return np.hstack([screen.shared[shared_from], screen.specific[specific_from]])
