"""The experiments of the command line: listed, found, and run as a user runs them."""

from __future__ import annotations

from inspect import signature
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import unbraid as ub
from unbraid import benchmark, cli
from unbraid.benchmark import (
    _registry,
    _table,
    batch_negatives,
    generative_missing,
    tcga,
    training_speed,
)
from unbraid.benchmark._registry import EXPERIMENTS, Experiment

runner = CliRunner()
every_experiment = pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda experiment: experiment.name)


def words(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture
def calls(monkeypatch):
    """What the experiments' ``main`` were given, instead of running them."""
    found = []
    record = lambda name: SimpleNamespace(main=lambda argv: found.append((name, argv)))
    monkeypatch.setattr(_registry, "import_module", record)
    return found


# --- the registry ---------------------------------------------------------------------------------------------------


def test_every_module_of_experiments_has_an_entry_and_every_entry_a_module():
    files = {path.stem for path in Path(benchmark.__path__[0]).glob("*.py") if not path.stem.startswith("_")}
    assert {experiment.module for experiment in EXPERIMENTS} == {f"unbraid.benchmark.{name}" for name in files}
    names = [experiment.name for experiment in EXPERIMENTS]
    assert len(set(names)) == len(names)
    for experiment in EXPERIMENTS:
        assert experiment.name == experiment.module.rsplit(".", 1)[1].replace("_", "-")
        assert experiment.description


@every_experiment
def test_every_main_takes_a_list_of_options(experiment):
    (parameter,) = signature(experiment.main()).parameters.values()
    assert parameter.default is None


@every_experiment
@pytest.mark.parametrize("full", [False, True], ids=["quick", "full"])
def test_the_options_of_both_modes_are_known_to_their_experiment(experiment, full, monkeypatch):
    import argparse

    class Parsed(Exception):
        pass

    parse = argparse.ArgumentParser.parse_args

    def stop(self, argv=None, namespace=None):
        parse(self, argv, namespace)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    needed = [experiment.needs, "cells.h5mu"] if experiment.needs else []
    with pytest.raises(Parsed):
        experiment.main()(experiment.arguments(needed, full=full))


@pytest.mark.parametrize("name", [experiment.name for experiment in EXPERIMENTS if experiment.needs])
def test_what_an_experiment_needs_is_what_it_refuses_to_run_without(name, capsys):
    experiment = _registry.find(name)
    with pytest.raises(SystemExit):
        experiment.main()([])
    assert f"required: {experiment.needs}" in capsys.readouterr().err


def test_options_of_the_user_come_last():
    experiment = Experiment(name="a", module="m", description="d", quick=("--n", "1"), full=("--n", "9"))
    assert experiment.arguments(["--n", "2"]) == ["--n", "1", "--n", "2"]
    assert experiment.arguments(["--n", "2"], full=True) == ["--n", "9", "--n", "2"]


# --- the command line -----------------------------------------------------------------------------------------------


def test_list_shows_every_experiment(monkeypatch):
    monkeypatch.setattr(cli.console, "_width", 250)
    output = words(runner.invoke(cli.app, ["bench", "list"]).output)
    for experiment in EXPERIMENTS:
        assert experiment.name in output
        assert experiment.description in output
        assert experiment.source in output


def test_run_passes_mode_and_options_on(calls):
    arguments = ["bench", "run", "disentangled_ssl", "--seeds", "7", "--out", "rows.csv"]
    result = runner.invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    entry = _registry.find("disentangled-ssl")
    assert calls == [(entry.module, [*entry.quick, "--seeds", "7", "--out", "rows.csv"])]


def test_run_takes_the_published_size_and_options_after_two_hyphens(calls):
    result = runner.invoke(cli.app, ["bench", "run", "disentangled-ssl", "--full", "--", "--help"])
    assert result.exit_code == 0, result.output
    entry = _registry.find("disentangled-ssl")
    assert calls == [(entry.module, [*entry.full, "--help"])]


def test_an_unknown_experiment_is_one_line_with_a_suggestion(calls):
    result = runner.invoke(cli.app, ["bench", "run", "disentangled"])
    assert result.exit_code == 1
    output = words(result.output)
    assert "There is no experiment 'disentangled'. Did you mean 'disentangled-ssl'?" in output
    assert "'citeseq-ranks'" in output
    assert "Traceback" not in output
    assert not calls


def test_an_unknown_option_is_refused_by_the_experiment():
    result = runner.invoke(cli.app, ["bench", "run", "throughput", "--n-cells", "3"])
    assert result.exit_code == 2
    assert "unrecognized arguments: --n-cells 3" in words(result.output)


def test_a_small_run_from_the_command_line_to_its_file(tmp_path):
    out = tmp_path / "rows.csv"
    arguments = ["--cases", "Gaussian, d = 2, 2 of r = .5", "--repeats", "1", "--n-obs", "200", "--out", str(out)]
    result = runner.invoke(cli.app, ["bench", "run", "mutual-information", *arguments])
    assert result.exit_code == 0, result.output
    assert pd.read_csv(out)["truth"].tolist() == pytest.approx([-np.log(0.75)])
    assert "| case |" in result.output


# --- tables over seeds ----------------------------------------------------------------------------------------------


def test_what_a_file_holds_is_not_run_again(tmp_path):
    ran = []

    def run(row):
        ran.append((row["method"], row["seed"]))
        yield {**row, "score": row["seed"] + 0.5}
        yield {**row, "score": np.nan}

    asked = [{"method": method, "seed": seed} for seed in range(2) for method in ("a", "b")]
    out = tmp_path / "rows.csv"
    _table.run_missing(asked[:1], run, out)
    assert ran == [("a", 0)]
    found = _table.run_missing(asked, run, out)
    assert ran == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert len(found) == len(pd.read_csv(out)) == 8
    assert _table.run_missing(asked[2:3], run, out)["seed"].tolist() == [1, 1]
    assert len(ran) == 4
    assert len(_table.run_missing(asked[:2], run, None)) == 4
    assert len(ran) == 6


def test_means_over_seeds_are_those_of_each_group():
    rows = pd.DataFrame(
        {"method": ["b", "a", "b"], "seed": [0, 0, 1], "score": [1.0, -0.00001, 4.0], "leak": [np.nan, 2.0, np.nan]}
    )
    table = _table.mean_and_deviation(rows, ["method"], digits=2)
    assert table.to_dict("list") == {
        "method": ["b", "a"], "seeds": [2, 1], "score": ["2.50 ± 2.12", "0.00"], "leak": ["", "2.00"]
    }  # fmt: skip
    assert _table.to_markdown(table).splitlines()[2] == "| b | 2 | 2.50 ± 2.12 |  |"


# --- generative models ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_classes", [2, 3])
def test_log_odds_of_modalities_are_averaged(n_classes):
    rng = np.random.default_rng(0)
    y = rng.integers(n_classes, size=600)
    noisy = lambda sd: np.eye(n_classes)[y] + rng.normal(0, sd, (600, n_classes))
    codes = {"a": noisy(0.5), "b": noisy(0.5)}
    label = pd.Series(np.array(["x", "y", "z"])[y])
    label[::50] = None
    split = pd.Series(np.where(np.arange(600) % 3 == 0, "test", "train"))
    both, one = tcga.score(codes, label, split), tcga.score({"a": codes["a"]}, label, split)
    assert both["accuracy"] > one["accuracy"] + 0.02
    assert both["AUROC"] > one["AUROC"]
    assert one["AUROC"] > one["accuracy"] > 1.2 / n_classes
    # a row that lacks a modality is judged by the other
    lacking = {"a": codes["a"], "b": codes["b"].copy()}
    lacking["b"][(split == "test").to_numpy()] = np.nan
    assert tcga.score(lacking, label, split) == one


def test_tumours_are_judged_from_a_file_to_a_table(tmp_path, capsys):
    rng = np.random.default_rng(0)
    y = rng.integers(2, size=80)
    array = lambda: np.c_[2.0 * y + rng.normal(size=80), rng.normal(size=(80, 4))]
    np.savez(tmp_path / "tcga.npz", mRNAseq=array(), miRNAseq=array(), label=y.astype(float))
    methods = ["--methods", "LinearSplit", "MMVAE"]
    tcga.main(["--data", str(tmp_path / "tcga.npz"), "--seeds", "1", "--steps", "2", *methods])
    printed = capsys.readouterr().out
    assert printed.startswith("| method | seeds | majority | z: accuracy | z: AUROC |")
    assert [line.split(" | ")[0] for line in printed.splitlines()[2:]] == ["| features", "| LinearSplit", "| MMVAE"]


@pytest.mark.parametrize("pattern", ["random", "batch"])
def test_cells_lose_their_proteins_at_random_or_by_batch(pattern):
    mdata, proteins = generative_missing.load(200, 0.4, pattern, 0)
    lacks = ~mdata.obs_names.isin(mdata["prot"].obs_names)
    assert proteins.shape == (200, 30)
    assert np.isfinite(proteins).all()
    measured = mdata["prot"].to_df().reindex(mdata.obs_names).to_numpy()
    np.testing.assert_array_equal(measured[~lacks], proteins[~lacks])
    share = pd.Series(lacks, mdata.obs_names).groupby(mdata.obs["batch"], observed=True).mean()
    assert share.isin([0, 1]).all() if pattern == "batch" else lacks.mean() == 0.4
    assert not lacks[(mdata.obs["complete"] == "train").to_numpy()].any()
    assert (mdata.obs["split"][mdata.obs["complete"] == "train"] == "train").all()


# --- batch-aware negatives, speed -----------------------------------------------------------------------------------


def test_inputs_centred_within_batch_have_no_batch_means():
    mdata = batch_negatives.load(300, batch_strength=2.0, seed=0)
    train = (mdata.obs["split"] == "train").to_numpy()
    for adata in mdata.mod.values():
        for batch in mdata.obs["batch"].unique():
            rows = train & (mdata.obs["batch"] == batch).to_numpy()
            np.testing.assert_allclose(adata.obsm["centered"][rows].mean(axis=0), 0, atol=1e-5)


def test_epochs_are_timed_by_stage_without_the_first():
    timer = training_speed.EpochTimer()
    timer.epochs["shared"] = [(4, 100.0, 100.0), (4, 2.0, 1.0), (2, 1.0, 0.5)]
    assert timer.speeds(batch_size=10) == {"shared": {"cells/s": 20.0, "cells/CPU s": 40.0}}


def test_the_recipe_trains_what_its_step_says():
    x = [torch.as_tensor(adata.X) for adata in ub.data.simulate.disentangled_ssl(600, seed=0).mod.values()]
    for kind in ("released", "ready"):
        torch.manual_seed(0)
        recipe = training_speed.Recipe(x, kind)
        before = [p.clone() for p in recipe.shared.parameters()]
        assert recipe.epoch("specific") == 512
        assert all(torch.equal(p, q) for p, q in zip(before, recipe.shared.parameters(), strict=True))
        recipe.epoch("shared")
        assert not any(torch.equal(p, q) for p, q in zip(before, recipe.shared.parameters(), strict=True))


def test_posterior_samples_of_the_recipe_lie_as_far_from_their_mean_as_ours():
    torch.manual_seed(0)
    mu = torch.nn.functional.normalize(torch.randn(2_000, 100), dim=1)
    z = training_speed._von_mises_fisher(mu)
    np.testing.assert_allclose(z.norm(dim=1), 1, atol=1e-5)
    assert (z * mu).sum(dim=1).mean().item() == pytest.approx(0.9517, abs=1e-3)  # I_50(1000) / I_49(1000)
