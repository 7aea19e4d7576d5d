"""Command line: ``unbraid demo``, ``unbraid fit``, ``unbraid score`` and ``unbraid bench``."""

from __future__ import annotations

import logging
import time
import warnings
from inspect import signature
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(
    name="unbraid",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
    help="Take paired multimodal data apart: what the modalities **share**, and what is **specific** to each.",
)
bench = typer.Typer(no_args_is_help=True, help="Run the experiments behind the documentation's tables.")
app.add_typer(bench, name="bench")
console = Console()


@app.callback()
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if version:
        import unbraid

        console.print(f"unbraid {unbraid.__version__}", highlight=False)
        raise typer.Exit


@app.command()
def demo(
    data: Annotated[Path | None, typer.Option(help="Your own MuData (.h5mu) instead of the demo's cells.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("unbraid_demo"),
    label: Annotated[str | None, typer.Option(help="obs column to colour and probe by, e.g. cell_type.")] = None,
    batch_key: Annotated[str | None, typer.Option(help="obs column of the batch.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
) -> None:
    """Split real cells in under three minutes and look at the result.

    Without `--data` it takes a public CITE-seq data set (5,000 blood cells, 17 MB, kept in your
    cache folder); where the network does not allow that, it simulates CITE-seq counts, and says so.

    It trains two models: *LinearSplit*, the closed-form floor, and *Unbraid*, which begins there. Then it writes

    * `split.h5mu`: your MuData with the codes in `obsm` (`Z_c` shared, `Z_s` specific; prefix `L` for LinearSplit),

    * `split.png`: UMAPs of the codes,

    and prints how well a linear probe reads the label, and the *other* modality's shared code, off every code:
    a shared code should read both, a specific code should not read the other modality.
    """
    from unbraid import pl
    from unbraid.model import LinearSplit, Unbraid

    start = time.perf_counter()
    with _errors(), _quiet():
        mdata, source = _demo_data(data, seed)
        label = label or next((key for key in ("cell_type", "celltype", "label") if key in mdata.obs), None)
        batch_key = batch_key or ("batch" if data is None and "batch" in mdata.obs else None)
        console.print(f"[bold]Data:[/] {source}: {_describe(mdata)}")
        table = Table(title="What a linear probe reads off every code, held out")
        labels = [f"{label}: balanced accuracy (chance)"] if label else []
        for column in ("model", "code", *labels, "other modality's shared code: R2"):
            table.add_column(column)
        for model_class, prefix in ((LinearSplit, "L"), (Unbraid, "Z")):
            console.print(f"[bold]{model_class.__name__}[/]")
            model = _fit(mdata, model_class, {}, batch_key=batch_key, seed=seed, max_epochs=40)
            if model_class is Unbraid:
                console.print(str(model.report()), markup=False)
            model.write_latent(mdata, prefix=prefix)
            for row in _probe_rows(mdata, prefix, label, seed):
                table.add_row(model_class.__name__, *row)
        console.print(table)
        out.mkdir(parents=True, exist_ok=True)
        mdata.write(out / "split.h5mu")
        figure = pl.latents(mdata, color=[key for key in (label, batch_key) if key], max_obs=5_000, seed=seed)
        figure.savefig(out / "split.png", dpi=110)
    console.print(
        f"Wrote {out / 'split.h5mu'} and {out / 'split.png'} in {time.perf_counter() - start:.0f} s. Next: "
        f'`mdata = mudata.read_h5mu("{out / "split.h5mu"}")`, then `sc.pp.neighbors(mdata["rna"], use_rep="Z_s")`.',
        markup=False,
    )


@app.command()
def fit(
    data: Annotated[Path, typer.Argument(help="MuData (.h5mu) with at least two modalities.")],
    out: Annotated[Path, typer.Option(help="MuData to write, with the codes in `obsm`.")],
    model: Annotated[
        str, typer.Option(help="linear-split, disentangled-ssl, indiseek, ...; a wrong name lists all.")
    ] = "disentangled-ssl",
    modalities: Annotated[str | None, typer.Option(help="Comma-separated; all by default. E.g. rna,prot")] = None,
    layer: Annotated[
        list[str] | None, typer.Option(help="MODALITY=LAYER; repeat. E.g. rna=counts, rna=obsm:X_pca")
    ] = None,
    likelihood: Annotated[list[str] | None, typer.Option(help="MODALITY=LIKELIHOOD; repeat. E.g. rna=nb")] = None,
    batch_key: Annotated[str | None, typer.Option(help="obs column of the batch.")] = None,
    split_key: Annotated[str | None, typer.Option(help="obs column with train, val and test.")] = None,
    pairs_key: Annotated[str | None, typer.Option(help="obsp key of must-link and cannot-link pairs.")] = None,
    group_key: Annotated[str | None, typer.Option(help="obs column that replicates share: compound.")] = None,
    n_shared: Annotated[int | None, typer.Option(help="Dimensions of the shared code.")] = None,
    n_specific: Annotated[int | None, typer.Option(help="Dimensions of every specific code.")] = None,
    n_clusters: Annotated[int | None, typer.Option(help="Number of clusters, of models that have them.")] = None,
    max_epochs: Annotated[int | None, typer.Option(help="Epochs of every stage; by the size of the data.")] = None,
    save: Annotated[Path | None, typer.Option(help="Folder to save the trained model to.")] = None,
    prefix: Annotated[str, typer.Option(help="First part of the obsm keys.")] = "Z",
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
) -> None:
    """Train one model on a MuData and write the codes.

    For example:

    `unbraid fit citeseq.h5mu --model disentangled-ssl --layer rna=counts --batch-key batch --out split.h5mu`

    Counts are recognised by their values (or named by `--likelihood`), a cell may lack modalities, and
    with `--batch-key` batches are not taken for shared information. Models with clusters also write the
    obs column `Z_cluster`.
    """
    from unbraid import model as models

    with _errors(), _quiet():
        found = {name: getattr(models, name) for name in models.__all__ if name != "base"}
        classes = {_dashed(name): c for name, c in found.items() if issubclass(c, models.base.SplitModel)}
        plain = lambda name: name.replace("-", "").replace("_", "").lower()
        model = next((name for name in classes if plain(name) == plain(model)), model)
        if model not in classes:
            raise ValueError(f"--model {model}: there is {', '.join(classes)}.")
        if not out.suffix == ".h5mu":
            raise ValueError(f"--out {out}: the file must end in .h5mu.")
        mdata = _read(data)
        options = {"n_shared": n_shared, "n_specific": n_specific, "n_clusters": n_clusters}
        what = {"n_shared": "no shared code of one part", "n_specific": "no specific code", "n_clusters": "no clusters"}
        for name in set(options) - set(signature(classes[model]).parameters):
            if options.pop(name) is not None:
                raise ValueError(f"--{name.replace('_', '-')}: {model} has {what[name]}.")
        trained = _fit(
            mdata,
            classes[model],
            {name: value for name, value in options.items() if value is not None},
            modalities=modalities.split(",") if modalities else None,
            layers=_pairs(layer, "--layer"),
            likelihoods=_pairs(likelihood, "--likelihood"),
            batch_key=batch_key,
            pairs_key=pairs_key,
            group_key=group_key,
            split_key=split_key,
            max_epochs=max_epochs,
            seed=seed,
        )
        trained.write_latent(mdata, prefix=prefix)
        if hasattr(trained, "predict_cluster"):
            import pandas as pd

            mdata.obs[f"{prefix}_cluster"] = pd.Categorical(trained.predict_cluster().astype(str))
        mdata.write(out)
        if save is not None:
            trained.save(str(save), overwrite=True)
    console.print(f"Wrote {out}: {', '.join(mdata.uns['unbraid'][prefix]['keys'])} in obsm.", markup=False)


@app.command()
def score(
    data: Annotated[Path, typer.Argument(help="MuData (.h5mu) with codes of any model in `obsm`.")],
    html: Annotated[Path | None, typer.Option(help="Write the card as one HTML file.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the MuData with the card in `uns`.")] = None,
    shared: Annotated[
        list[str] | None, typer.Option(help="Key of the shared code, or MODALITY=KEY; repeat. Z_c by default.")
    ] = None,
    specific: Annotated[
        list[str] | None, typer.Option(help="Key of the specific codes, or MODALITY=KEY; repeat. Z_s by default; none")
    ] = None,
    labels: Annotated[str | None, typer.Option(help="obs column of the cell type.")] = None,
    batch: Annotated[str | None, typer.Option(help="obs column of the batch.")] = None,
    group: Annotated[str | None, typer.Option(help="obs column of the sampling unit: donor, molecule.")] = None,
    split_key: Annotated[str | None, typer.Option(help="obs column with test: judge these cells alone.")] = None,
    modalities: Annotated[str | None, typer.Option(help="Comma-separated; all by default. E.g. rna,prot")] = None,
    layer: Annotated[list[str] | None, typer.Option(help="MODALITY=LAYER; repeat. E.g. rna=counts")] = None,
    margin: Annotated[float | None, typer.Option(help="Nats below which a leak does not matter.")] = None,
    max_obs: Annotated[int, typer.Option(help="Judge a random sample of at most so many cells.")] = 4_000,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
) -> None:
    """Judge a split, of whichever model: what is shared, what leaks, what is missing.

    For example:

    `unbraid score split.h5mu --labels cell_type --batch batch --group donor --html card.html`

    An embedding without specific codes: `unbraid score totalvi.h5mu --shared X_totalVI --specific none`
    """
    from unbraid import metrics, pl

    with _errors(), _quiet():
        if out is not None and out.suffix != ".h5mu":
            raise ValueError(f"--out {out}: the file must end in .h5mu.")
        mdata = _read(data)
        card = metrics.scorecard(
            mdata,
            _keys(shared, "--shared", "Z_c"),
            _keys(specific, "--specific", "Z_s"),
            labels=labels,
            batch=batch,
            group=group,
            split_key=split_key,
            modalities=modalities.split(",") if modalities else None,
            layers=_pairs(layer, "--layer"),
            margin=margin,
            max_obs=max_obs,
            seed=seed,
        )
        _print_card(card)
        if html is not None:
            pl.report(card, html, title=f"Scorecard of {data.name}")
            console.print(f"Wrote {html}.", markup=False)
        if out is not None:
            mdata.write(out)
            console.print(f"Wrote {out}: the card is uns['scorecard'].", markup=False)


@bench.command("list")
def bench_list() -> None:
    """What experiments there are, and what figure or table each goes with."""
    from unbraid.benchmark._registry import EXPERIMENTS

    table = Table(title="Experiments: unbraid bench run NAME")
    table.add_column("name", no_wrap=True)
    for column in ("what", "source", "needs", "minutes"):
        table.add_column(column)
    for experiment in EXPERIMENTS:
        minutes = "" if experiment.minutes is None else f"{experiment.minutes:.2g}"
        table.add_row(experiment.name, experiment.description, experiment.source, experiment.needs, minutes)
    table.caption = "minutes: quick mode on one thread, where measured"
    console.print(table)


@bench.command("run", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bench_run(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the experiment; see `unbraid bench list`.")],
    full: Annotated[bool, typer.Option("--full", help="The size that was published; hours or days.")] = False,
    out: Annotated[Path | None, typer.Option(help="File for every row, where the experiment writes one.")] = None,
) -> None:
    """Run one experiment, in its quick mode unless told otherwise.

    Further options go to the experiment and win over those of the mode. For example:

    `unbraid bench run disentangled-ssl --seeds 3 --out rows.csv`

    `unbraid bench run disentangled-ssl -- --help` shows them.
    """
    from unbraid.benchmark._registry import find

    with _errors(), _quiet():
        experiment = find(name)
        options = [*context.args, *(["--out", str(out)] if out is not None else [])]
        experiment.main()(experiment.arguments(options, full=full))


# ---- helpers ------------------------------------------------------------------------------


def _fit(mdata, model_class, options, *, max_epochs=None, seed=0, split_key=None, **setup):
    import torch

    model_class.setup_mudata(mdata, **setup)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = model_class(mdata, **options)
    model.train(max_epochs, seed=seed, split_key=split_key)
    return model


def _read(path: Path):
    import mudata

    if not path.exists():
        raise ValueError(f"No file {path}.")
    try:
        return mudata.read_h5mu(path)
    except Exception as error:
        raise ValueError(f"{path} is not a readable .h5mu file: {error}") from error


def _demo_data(data: Path | None, seed: int):
    from unbraid.data import datasets, simulate

    if data is not None:
        mdata, source = _read(data), str(data)
    else:
        try:
            mdata, source = datasets.pbmc5k_citeseq(), "5k PBMC CITE-seq (10x Genomics)"
        except OSError:
            console.print(
                "[yellow]The public data set cannot be downloaded here: simulating CITE-seq counts instead.[/]"
            )
            mdata = simulate.citeseq(n_obs=5_000, n_genes=1_000, missing={"prot": 0.2}, seed=seed)
            source = "simulated CITE-seq counts, a fifth of the cells without proteins"
    return _variable_features(mdata), source


def _variable_features(mdata, n_features: int = 2_000):
    """Keep the most variable features of wide modalities; a new MuData only if one is wide."""
    import numpy as np
    import scanpy as sc
    from mudata import MuData
    from sklearn.preprocessing import StandardScaler

    if all(adata.n_vars <= n_features for adata in mdata.mod.values()):
        return mdata
    modalities = {}
    for name, adata in mdata.mod.items():
        if adata.n_vars > n_features:
            logs = adata.copy()
            if logs.X.min() >= 0:
                sc.pp.normalize_total(logs)
                sc.pp.log1p(logs)
            # centring would densify, and the variance does not need it
            variance = StandardScaler(with_mean=False).fit(logs.X).var_
            adata = adata[:, np.sort(np.argsort(-variance)[:n_features])].copy()
        modalities[name] = adata
    reduced = MuData(modalities)
    for column in mdata.obs:
        reduced.obs[column] = mdata.obs[column].reindex(reduced.obs_names)
    return reduced


def _probe_rows(mdata, prefix: str, label: str | None, seed: int):
    """Per code: what a linear probe reads of the label and of another modality's shared code."""
    import numpy as np

    from unbraid.metrics import probe

    def read(code, target) -> str:
        result = probe(code, target, n_permutations=20, max_obs=4_000, seed=seed)
        return f"{result.score:.2f} ({result.chance:.2f})"

    for name, adata in mdata.mod.items():
        others = [other for other in mdata.mod if other != name]
        common = adata.obs_names.intersection(mdata.mod[others[0]].obs_names)
        target = mdata.mod[others[0]].obsm[f"{prefix}_c"][mdata.mod[others[0]].obs_names.get_indexer(common)]
        for key in (f"{prefix}_c", f"{prefix}_s"):
            code = adata.obsm[key]
            cells = [f"{name} {key}"]
            if label is not None:
                labels = mdata.obs[label].reindex(adata.obs_names).astype("category")
                cells.append(read(code, labels))
            paired = code[adata.obs_names.get_indexer(common)]
            scores = [probe(paired, y, n_permutations=0, max_obs=4_000, seed=seed).score for y in target.T[:10]]
            cells.append(f"{max(np.mean(scores), 0):.2f}")
            yield cells


def _describe(mdata) -> str:
    parts = [f"{adata.n_obs:,} cells x {adata.n_vars:,} {name}" for name, adata in mdata.mod.items()]
    return f"{mdata.n_obs:,} cells; {', '.join(parts)}"


def _keys(values: list[str] | None, option: str, default: str) -> str | dict[str, str] | None:
    """One key, or one per modality; "none" for none."""
    if not values:
        return default
    if values == ["none"]:
        return None
    if len(values) == 1 and "=" not in values[0]:
        return values[0]
    return _pairs(values, option)


def _print_card(card) -> None:
    colors = {"shared": "green", "found": "green", "clean": "green", "complete": "green", "leaks": "red"}
    colors |= {"carries": "red", "collapsed": "red", "traces": "yellow", "not shown": "yellow", "partial": "yellow"}
    table = Table(title="Scorecard")
    for column in ("question", "code", "against", "verdict", ""):
        table.add_column(column)
    previous = ""
    for row in card.verdicts.to_dict("records"):
        question, verdict = row["question"], row["verdict"]
        against = row["against"] + ("" if row["condition"] == "all" else f" ({row['condition']})")
        color = colors.get(verdict, "default")
        named = question if question != previous else ""
        table.add_row(named, row["code"], against, f"[{color}]{verdict}[/]", row["words"])
        previous = question
    console.print(table)
    for note in card.notes:
        console.print(f"[yellow]Note:[/] {note}", highlight=False)


def _pairs(values: list[str] | None, option: str) -> dict[str, str] | None:
    pairs = {}
    for value in values or []:
        name, equals, given = value.partition("=")
        if not equals:
            raise ValueError(f"{option} {value}: write MODALITY=VALUE.")
        pairs[name] = given
    return pairs or None


def _dashed(name: str) -> str:
    if name in ("IndiSeek", "CoMM"):  # one word, as people write them
        return name.lower()
    words = "".join(
        f"-{c.lower()}" if c.isupper() and not name[:i][-1:].isupper() else c.lower() for i, c in enumerate(name)
    )
    return words.strip("-")


class _errors:
    """A user's mistake is one line, not a traceback."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind, error, trace) -> None:
        if isinstance(error, ValueError | KeyError | TypeError | OSError):
            text = error.args[0] if isinstance(error, KeyError) and error.args else str(error)
            console.print(f"Error: {text}", style="red", markup=False, highlight=False)
            raise typer.Exit(1) from error


class _quiet(warnings.catch_warnings):
    """Other packages' notices are not the user's business."""

    def __enter__(self) -> None:
        super().__enter__()
        import mudata
        import scvi

        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        scvi.settings.verbosity = logging.WARNING
        if hasattr(mudata, "set_options"):  # mudata 0.3; 0.4 does so by default
            mudata.set_options(pull_on_update=False)


def main() -> None:
    """Entry point."""
    app()
