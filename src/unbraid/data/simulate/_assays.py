"""How the count simulator turns factors into counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

if TYPE_CHECKING:
    from collections.abc import Mapping

N_STATES = 3
TRUTH = ("shared", "specific", "both", "noise")
TRUTH_QUANTILES = (0.3, 0.55, 0.7, 1.0)  # 30 % shared, 25 % specific, 15 % both, 30 % noise
CHUNK = 2_000_000  # counts drawn at once


@dataclass(frozen=True)
class Assay:
    """What one kind of measurement looks like."""

    feature: str
    mean_count: float
    spread: float  # log-sd of the features' abundances
    dispersion: float | None  # of the negative binomial; None counts open alleles, 0 to 2
    sparse: bool


ASSAYS = {
    "rna": Assay("gene", mean_count=0.12, spread=1.2, dispersion=5.0, sparse=True),
    "prot": Assay("protein", mean_count=10.0, spread=0.5, dispersion=15.0, sparse=False),
    "atac": Assay("peak", mean_count=0.08, spread=0.5, dispersion=None, sparse=True),
}


@dataclass(frozen=True)
class Factors:
    """A label and continuous programs that vary independently of it."""

    label: np.ndarray  # (n_obs,) integers below n_labels
    n_labels: int
    programs: np.ndarray  # (n_obs, n_programs)

    @classmethod
    def draw(cls, rng: np.random.Generator, n_obs: int, *, n_labels: int, n_programs: int) -> Factors:
        """Equally likely labels and standard normal programs."""
        return cls(rng.integers(n_labels, size=n_obs), n_labels, rng.normal(size=(n_obs, n_programs)))

    @property
    def values(self) -> np.ndarray:
        """One-hot label beside the programs."""
        return np.concatenate([np.eye(self.n_labels)[self.label], self.programs], axis=1)

    def loadings(self, rng: np.random.Generator, n_features: int, strength: float) -> np.ndarray:
        """Random loadings ``(n_features, n_labels + n_programs)``: label and programs move the log-mean equally."""
        n_programs = self.programs.shape[1]
        scale = np.r_[np.ones(self.n_labels), np.full(n_programs, max(n_programs, 1) ** -0.5)]
        return strength * scale * rng.normal(size=(n_features, len(scale)))


def counts(
    rng: np.random.Generator,
    assay: Assay,
    n_features: int,
    *,
    factors: Mapping[str, Factors],
    batch: Factors,
    depth: np.ndarray,
    strengths: Mapping[str, float],
    background: float,
    present: np.ndarray,
) -> AnnData:
    """Counts of the cells that are present, with the truth about every feature.

    Counts of the absent cells are drawn as well and dropped, so that absence changes nothing else.
    """
    abundance = np.exp(assay.spread * rng.normal(size=n_features))
    abundance *= assay.mean_count / abundance.mean()
    quantiles = (np.arange(n_features) + 0.5) / n_features
    truth = rng.permutation(np.array(TRUTH)[np.searchsorted(TRUTH_QUANTILES, quantiles)])
    loadings = {
        source: f.loadings(rng, n_features, strengths[source]) * np.isin(truth, [source, "both"])[:, None]
        for source, f in factors.items()
    }
    shift = batch.loadings(rng, n_features, strengths["batch"])

    values = {source: f.values for source, f in factors.items()}
    n_rows = max(1, CHUNK // n_features)
    chunks = []
    for rows in (slice(start, start + n_rows) for start in range(0, len(depth), n_rows)):
        biology = np.exp(sum(values[source][rows] @ loadings[source].T for source in factors))
        technical = depth[rows, None] * np.exp(shift.T)[batch.label[rows]]
        mean = technical * abundance * ((1 - background) * biology + background)
        drawn = _draw(rng, mean, assay.dispersion)[present[rows]].astype(np.float32)
        chunks.append(sp.csr_matrix(drawn) if assay.sparse else drawn)

    return AnnData(
        sp.vstack(chunks, format="csr") if assay.sparse else np.concatenate(chunks),
        var=pd.DataFrame(
            {"truth": pd.Categorical(truth, categories=TRUTH)},
            index=[f"{assay.feature}_{j}" for j in range(n_features)],
        ),
        varm={f"{k}_loadings": v.astype(np.float32) for k, v in {**loadings, "batch": shift}.items()},
    )


def _draw(rng: np.random.Generator, mean: np.ndarray, dispersion: float | None) -> np.ndarray:
    if dispersion is None:
        return rng.binomial(2, -np.expm1(-mean / 2))
    return rng.poisson(mean * (rng.standard_gamma(dispersion, size=mean.shape) / dispersion))


def presence(missing: Mapping[str, float], n_obs: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Which cells have each modality, with at least one for every cell.

    The absences of all modalities are laid end to end around a circle of shuffled cells, so that a cell lacks a
    second modality only after every cell lacks a first.
    """
    for modality, fraction in missing.items():
        if not 0 <= fraction < 1:
            raise ValueError(f"`missing` must be at least 0 and below 1, got {fraction!r} for {modality!r}.")
    total, limit = sum(missing.values()), len(missing) - 1
    if total > limit + 1e-9:
        raise ValueError(
            f"`missing` leaves cells without any modality: the fractions of {len(missing)} modalities may add up to "
            f"{limit} at most, got {total:.3g}."
        )
    order, start, present = rng.permutation(n_obs), 0, {}
    for modality, fraction in missing.items():
        n_absent = int(round(fraction * n_obs, 6))
        present[modality] = np.ones(n_obs, dtype=bool)
        present[modality][order[np.arange(start, start + n_absent) % n_obs]] = False
        start += n_absent
    return present


def labels(prefix: str, codes: np.ndarray, n: int) -> pd.Categorical:
    """Named categories for integer codes."""
    return pd.Categorical.from_codes(codes, categories=[f"{prefix}_{k}" for k in range(n)])
