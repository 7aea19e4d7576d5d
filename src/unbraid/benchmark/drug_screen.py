"""Which molecule caused a phenotype: DisentangledSSL's drug screens, on whatever screens there are.

Run it with::

    python -m unbraid.benchmark.drug_screen --seeds 3 --out simulated.csv
    python -m unbraid.benchmark.drug_screen --data toxcast.h5mu --molecule mol --phenotype atg+bsk --out toxcast.csv
    python -m unbraid.benchmark.drug_screen --responses gdsc_drugs.h5mu --out responses.csv
    python -m unbraid.benchmark.drug_screen --signatures gdsc_lines.h5mu gdsc_drugs.h5mu --out signatures.csv
    python -m unbraid.benchmark.drug_screen --lincs FOLDER --full --out lincs.csv
    python -m unbraid.benchmark.drug_screen --rxrx19a FOLDER --full --out rxrx19a.csv

Compounds (or scaffolds) are divided into training, validation and test ones, anew for every seed. Every test profile
looks for its compound among all test compounds that were measured in its cell line, by cosine (LinearSplit and Unbraid
also by likelihood ratio: ``ratio``), and every test molecule for its profiles ("back"). Beside it the reconstruction gain
of both modalities (R2) and the differences in Fréchet distance of counterfactuals, as in the paper's tables 2, 3 and 5.
The chance of every figure is exact. ``--profiles`` keeps what each test compound got, for intervals over compounds: the
last table has the mean reciprocal rank of every method, and its difference to LinearSplit on the same compounds.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from unbraid import model as models
from unbraid import pp, tl
from unbraid.benchmark import _screens
from unbraid.benchmark._table import mean_and_deviation, run_missing, to_markdown
from unbraid.metrics import reconstruction_gain, retrieval

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mudata import MuData

    from unbraid.model.base import SplitModel

N_LATENT = 32
SMALL = {"n_hidden": 256, "n_layers": 2, "lr": 1e-3}
FULL = {"n_hidden": 2560, "n_layers": 3, "lr": 1e-4}
TOP = (1, 5, 10, 20, 30)
BETAS = (0.1, 1.0, 5.0, 20.0)
N_BOOTSTRAP = 2_000
JOINT = {"specific_weight": 1.0, "lambda_": 0.01}
CLOSED = ("LinearSplit", "Unbraid")


@dataclass(frozen=True, kw_only=True)
class Method:
    """A model of the table.

    Attributes
    ----------
    model
        Name in :mod:`unbraid.model`.
    options
        Of the model, beside those of all.
    betas
        Values of ``beta`` of which validation compounds choose; empty for none.
    setup
        What models are told of the screen: ``"group"``, that rows are replicates of a compound, and ``"batch"``, that
        they are of a cell line or plate.
    """

    model: str
    options: dict[str, Any] = field(default_factory=dict)
    betas: tuple[float, ...] = ()
    setup: tuple[str, ...] = ("group", "batch")


METHODS = {
    "LinearSplit": Method(model="LinearSplit"),
    "Unbraid": Method(model="Unbraid"),
    "CLIP": Method(model="CLIP"),
    "DMVAE": Method(model="DMVAE", options={"beta": 1e-5, "cross_information_weight": 1.0}),
    "JointOpt": Method(model="JointOpt", options=JOINT),
    "FOCAL": Method(model="FOCAL", options=JOINT),
    "DisentangledSSL beta 0": Method(model="DisentangledSSL", options={"beta": 0.0, "lambda_": 0.01}),
    "DisentangledSSL": Method(model="DisentangledSSL", options={"lambda_": 0.01}, betas=BETAS),
    "IndiSeek": Method(model="IndiSeek"),
    # what models gain by being told of replicates and batches
    "CLIP, no groups": Method(model="CLIP", setup=("batch",)),
    "CLIP, no batches": Method(model="CLIP", setup=("group",)),
    "CLIP, neither": Method(model="CLIP", setup=()),
    "CLIP, all replicates positive": Method(model="CLIP", options={"positives": "replicates"}),
    "LinearSplit, no groups": Method(model="LinearSplit", setup=("batch",)),
    "LinearSplit, no batches": Method(model="LinearSplit", setup=("group",)),
    "LinearSplit, neither": Method(model="LinearSplit", setup=()),
}
DEFAULT_METHODS = list(METHODS)[: list(METHODS).index("IndiSeek") + 1]


def fit(
    mdata: MuData, name: str, *, batch: str | None, networks: dict[str, Any], steps: int, seed: int, **options: Any
) -> SplitModel:
    """Train a method on the training compounds and write its codes.

    Parameters
    ----------
    mdata
        A screen with ``obs["split"]`` and ``obs["compound"]``.
    name
        Of :data:`METHODS`.
    batch
        ``obs`` column within which phenotypes are compared, if there is one.
    networks
        Sizes and learning rate.
    steps
        Of every stage, at most; early stopping looks at validation compounds.
    seed
        Of weights and training.
    **options
        Further ones of the model.
    """
    method = METHODS[name]
    cls = getattr(models, method.model)
    cls.setup_mudata(
        mdata,
        ["molecule", "phenotype"],
        group_key="compound" if "group" in method.setup else None,
        batch_key=batch if "batch" in method.setup else None,
    )
    given = {**method.options, **options}
    if method.model not in CLOSED:
        given |= {"n_shared": N_LATENT, **networks}
        given |= {} if method.model == "CLIP" else {"n_specific": N_LATENT}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = cls(mdata, **given)
    training = {}
    if method.model not in CLOSED:
        n_train = int((mdata.obs["split"] == "train").sum())
        training = {"batch_size": 256, "max_epochs": max(1, steps * min(256, n_train) // n_train)}
    model.train(split_key="split", seed=seed, accelerator="cpu", progress_bar=False, **training)
    model.write_latent(mdata)
    return model


def tuned(mdata: MuData, name: str, batch: str | None, **options: Any) -> tuple[SplitModel, dict[str, float]]:
    """The model whose ``beta`` finds the validation compounds best, or the only one.

    Parameters
    ----------
    mdata, name, batch, **options
        As in :func:`fit`.
    """
    betas = METHODS[name].betas
    if not betas:
        return fit(mdata, name, batch=batch, **options), {}
    score = {}
    for beta in betas:
        # step 1 alone decides
        fit(mdata, name, batch=batch, **options, beta=beta, n_specific=0)
        score[beta] = found(mdata, "val", batch, "Z_c", "cosine")[0].mrr
    best = max(score, key=score.get)
    return fit(mdata, name, batch=batch, **options, beta=best), {"beta": best}


def found(mdata: MuData, part: str, batch: str | None, keys: str | tuple[str, str], metric: str):
    """Retrieval of compounds by profiles and of profiles by compounds, among those of a part.

    Parameters
    ----------
    mdata
        A screen with codes.
    part
        ``"val"`` or ``"test"``.
    batch
        ``obs`` column within which compounds are candidates.
    keys
        Of ``obsm``, of queries and targets.
    metric
        Of :func:`~unbraid.metrics.retrieval`.
    """
    rows = mdata[(mdata.obs["split"] == part).to_numpy()].copy()
    query, target = (keys, keys) if isinstance(keys, str) else keys
    options = {"data": rows, "query_groups": "compound", "strata": batch, "top": TOP, "metric": metric}
    results = [
        retrieval(f"{a}:{query}", f"{b}:{target}", **options, query_replicates=replicates)
        for a, b, replicates in (("phenotype", "molecule", "each"), ("molecule", "phenotype", "average"))
    ]
    compounds = pd.Series(results[0].ranks, index=rows.obs["compound"].astype(str).to_numpy())
    return *results, (1 / compounds).groupby(level=0).mean()


def evaluate(model: SplitModel, mdata: MuData, batch: str | None, seed: int) -> tuple[dict[str, float], pd.Series]:
    """Figures of one fitted method, and the mean reciprocal rank of every test compound.

    Parameters
    ----------
    model
        The fitted model.
    mdata
        The screen with its codes.
    batch
        As in :func:`found`.
    seed
        Of decoders.
    """
    forth, back, compounds = found(mdata, "test", batch, "Z_c", "cosine")
    row = {f"top-{n}": 100 * value for n, value in forth.top.items()} | {"MRR": forth.mrr, "back: MRR": back.mrr}
    row |= {"chance: top-1": 100 * forth.top_chance[1], "chance: MRR": forth.mrr_chance}
    row |= {"candidates": forth.n_candidates, "queries": forth.n_queries}
    if hasattr(model, "write_retrieval"):
        model.write_retrieval(mdata)
        ratio, _, compounds = found(mdata, "test", batch, ("Z_query", "Z_target"), "dot")
        row |= {"ratio: top-1": 100 * ratio.top[1], "ratio: top-10": 100 * ratio.top[10], "ratio: MRR": ratio.mrr}
    if isinstance(model, models.Unbraid):
        row["chosen"] = model.report().chosen
    if "Z_s" in mdata["molecule"].obsm:
        for m in ("molecule", "phenotype"):
            gain = reconstruction_gain(
                m, "Z_c", "Z_s", data=mdata, likelihood="normal", split_key="split", groups="compound", seed=seed
            )
            row |= {f"RG {m}": gain.gain, f"R2 {m} Z_c": gain.shared, f"R2 {m} Z_s": gain.specific}
            row[f"R2 {m} both"] = gain.both
        distance = tl.counterfactual_distance(
            mdata, "phenotype", split_key="split", shared_modality="molecule", likelihood="normal", groups="compound",
            n_bootstrap=0, seed=seed,
        )  # fmt: skip
        row |= {"Diff-FD-c": distance.diff_fd_c, "Diff-FD-s": distance.diff_fd_s, "FD": distance.fd_reference_test}
    return row, compounds


def intervals(profiles: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Mean reciprocal rank of every method, and its difference to LinearSplit on the same compounds.

    Parameters
    ----------
    profiles
        Columns ``method``, ``seed``, ``compound`` and ``reciprocal_rank``.
    seed
        Of the bootstrap over compounds, of which all seeds' results are drawn together.
    """
    table = profiles.pivot_table(index=["compound", "seed"], columns="method", values="reciprocal_rank", sort=False)
    codes, names = pd.factorize(table.index.get_level_values("compound"))
    rng = np.random.default_rng(seed)
    times = np.stack([np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))[codes]
                      for _ in range(N_BOOTSTRAP)])  # fmt: skip
    rows = []
    for name, values in table.items():
        row = {"method": name, "compounds": len(names)}
        against = {"MRR": values, "difference to LinearSplit": values - table.get("LinearSplit", np.nan)}
        for label, x in against.items():
            known = x.notna().to_numpy()
            if not known.any() or (label != "MRR" and name == "LinearSplit"):
                row[label] = ""
                continue
            weights = times[:, known]
            drawn = weights @ x[known].to_numpy() / weights.sum(axis=1)
            low, high = np.percentile(drawn, [2.5, 97.5])
            row[label] = f"{x.mean():z.3f} [{low:z.3f}, {high:z.3f}]"
        rows.append(row)
    return pd.DataFrame(rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Fit and judge every method and print the tables; rows already in ``--out`` are not run again.

    Parameters
    ----------
    argv
        Options; those of the command line by default.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--data", type=Path, help="MuData file (.h5mu) with a column `smiles`, in place of a simulation"
    )
    source.add_argument("--responses", type=Path, help="MuData file of GDSC drugs by cell lines")
    source.add_argument("--signatures", type=Path, nargs=2, help="MuData files of GDSC cell lines and drugs")
    source.add_argument("--lincs", type=Path, help="folder of InfoCORE's curated LINCS files")
    source.add_argument("--rxrx19a", type=Path, help="folder of RXRX19a's files")
    parser.add_argument("--molecule", default="molecule", help="modality of --data")
    parser.add_argument("--phenotype", default="phenotype", help="modality of --data; 'a+b' puts two side by side")
    parser.add_argument("--by", default="compound", choices=["compound", "scaffold"], help="what is divided")
    parser.add_argument("--batch", help="obs column of batches; the cell line by default, `plate` of the simulation")
    parser.add_argument("--methods", nargs="+", default=DEFAULT_METHODS, choices=list(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1_000, help="of every stage, at most")
    parser.add_argument("--full", action="store_true", help="networks and learning rate of the paper")
    parser.add_argument("--out", type=Path, help="CSV of all rows")
    parser.add_argument("--profiles", type=Path, help="CSV of the reciprocal rank of every test compound")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)  # networks of this size are faster on one core

    def load(seed: int) -> MuData:
        if arguments.data is not None:
            mdata = _screens.measured(arguments.data, arguments.molecule, arguments.phenotype)
        elif arguments.responses is not None:
            mdata = _screens.responses(arguments.responses)
        elif arguments.signatures is not None:
            mdata = _screens.signatures(*arguments.signatures)
        elif arguments.lincs is not None or arguments.rxrx19a is not None:
            name = "lincs" if arguments.rxrx19a is None else "rxrx19a"
            mdata = _screens.published(arguments.lincs or arguments.rxrx19a, name)
        else:
            mdata = _screens.simulated(seed)
        pp.split(mdata, by=arguments.by, fractions=(0.7, 0.1, 0.2), seed=seed)
        return mdata

    given = next(
        (name for name in ("data", "responses", "signatures", "lincs", "rxrx19a") if getattr(arguments, name)), ""
    )
    path = getattr(arguments, given) if given else None
    stem = (path[0] if isinstance(path, list) else path).stem if path else "simulation"
    phenotype = arguments.phenotype if given == "data" else given or "profiles"
    fixed = {
        "data": stem,
        "phenotype": phenotype,
        "by": arguments.by,
        "steps": arguments.steps,
        "batch": arguments.batch or "default",  # a word: a file has no None
    }
    loaded: dict[int, MuData] = {}
    kept = [pd.read_csv(arguments.profiles)] if arguments.profiles is not None and arguments.profiles.exists() else []

    def run(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        seed = row["seed"]
        if seed not in loaded:
            loaded.clear()
            loaded[seed] = load(seed)
        mdata = loaded[seed].copy()
        columns = [arguments.batch] if arguments.batch else ["cell_line", "plate"] if given else ["plate"]
        batch = next((column for column in columns if column in mdata.obs), None)
        start = time.process_time()
        options = {"networks": FULL if arguments.full else SMALL, "steps": arguments.steps, "seed": seed}
        model, chosen = tuned(mdata, row["method"], batch, **options)
        seconds = time.process_time() - start
        figures, compounds = evaluate(model, mdata, batch, seed)
        kept.append(
            pd.DataFrame(
                {"method": row["method"], "seed": seed, "compound": compounds.index, "reciprocal_rank": compounds}
            )
        )
        if arguments.profiles is not None:
            pd.concat(kept).to_csv(arguments.profiles, index=False)
        yield {**row, **chosen, **figures, "CPU seconds": seconds}

    asked = [{**fixed, "method": name, "seed": s} for s in range(arguments.seeds) for name in arguments.methods]
    table = run_missing(asked, run, arguments.out)
    print(to_markdown(mean_and_deviation(table.drop(columns=[*fixed, "chosen"], errors="ignore"), ["method"])))
    if kept:
        print(to_markdown(intervals(pd.concat(kept))))


if __name__ == "__main__":
    main()
