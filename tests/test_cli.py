"""The command line, run as a user runs it."""

from __future__ import annotations

import mudata
import numpy as np
import pytest
from typer.testing import CliRunner

import unbraid as ub
from unbraid import cli
from unbraid.data import datasets

runner = CliRunner()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    mdata = ub.data.simulate.citeseq(n_obs=300, n_genes=40, n_proteins=10, missing={"prot": 0.2}, seed=0)
    path = tmp_path_factory.mktemp("cli") / "cells.h5mu"
    mdata.write(path)
    return path


def test_help_teaches():
    for command in ([], ["demo"], ["score"], ["bench"], ["bench", "run"], ["fit"]):
        result = runner.invoke(cli.app, [*command, "--help"])
        assert result.exit_code == 0
    assert "batch-key" in result.output
    assert "unbraid fit citeseq.h5mu" in " ".join(result.output.split())


@pytest.mark.parametrize("model", ["linear-split", "unbraid", "disentangled-ssl", "indiseek", "CoMM"])
def test_fit_writes_the_codes(file, tmp_path, model):
    out = tmp_path / "split.h5mu"
    arguments = ["fit", str(file), "--model", model, "--out", str(out), "--batch-key", "batch", "--max-epochs", "1"]
    result = runner.invoke(cli.app, [*arguments, "--save", str(tmp_path / "model")])
    assert result.exit_code == 0, result.output
    written = mudata.read_h5mu(out)
    assert np.isfinite(written.obsm["Z_c"]).all()
    assert ("Z_s" in written["prot"].obsm) == (model != "CoMM")
    assert (tmp_path / "model" / "model.pt").exists()


def test_fit_with_pairs_writes_clusters(file, tmp_path):
    mdata = mudata.read_h5mu(file)
    ub.pp.pairs_from_labels(mdata, "cell_type", n_pairs=50)
    mdata.write(tmp_path / "paired.h5mu")
    out = tmp_path / "split.h5mu"
    arguments = ["fit", str(tmp_path / "paired.h5mu"), "--model", "dl2", "--out", str(out), "--pairs-key", "pairs"]
    result = runner.invoke(cli.app, [*arguments, "--n-clusters", "3", "--max-epochs", "1"])
    assert result.exit_code == 0, result.output
    written = mudata.read_h5mu(out)
    assert {"Z_c", "Z_t", "Z_r"} <= set(written.obsm)
    assert set(written.obs["Z_cluster"]) <= {"0", "1", "2"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "clipp"], "linear-split"),
        (["--batch-key", "bacth"], "batch"),
        (["--modalities", "rna,protein"], "prot"),
        (["--layer", "rna"], "MODALITY=VALUE"),
        (["--model", "clip", "--n-specific", "3"], "no specific code"),
        (["--model", "dl2", "--n-shared", "3"], "no shared code of one part"),
        (["--model", "clip", "--n-clusters", "3"], "no clusters"),
        (["--model", "clip", "--pairs-key", "pairs"], "does not use pairs"),
        (["--model", "clip", "--group-key", "drug"], "`group_key`: no obs column 'drug'"),
        (["--model", "dl2", "--pairs-key", "pairs"], "No pairs"),
    ],
)
def test_mistakes_are_one_line(file, tmp_path, arguments, message):
    result = runner.invoke(cli.app, ["fit", str(file), "--out", str(tmp_path / "o.h5mu"), *arguments])
    assert result.exit_code == 1
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output
    assert not (tmp_path / "o.h5mu").exists()


def test_unreadable_files_are_named(tmp_path):
    (tmp_path / "x.h5mu").write_text("no")
    for name in ("x.h5mu", "absent.h5mu"):
        result = runner.invoke(cli.app, ["fit", str(tmp_path / name), "--out", str(tmp_path / "o.h5mu")])
        assert result.exit_code == 1
        assert name in result.output.replace("\n", "")


def test_demo_on_a_users_file(file, tmp_path):
    result = runner.invoke(cli.app, ["demo", "--data", str(file), "--out", str(tmp_path / "demo")])
    assert result.exit_code == 0, result.output
    written = mudata.read_h5mu(tmp_path / "demo" / "split.h5mu")
    assert {"L_c", "Z_c"} <= set(written.obsm)
    assert (tmp_path / "demo" / "split.png").stat().st_size > 10_000
    assert "cell_type" in result.output


def test_demo_says_when_it_simulates(monkeypatch):
    def refused(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(datasets, "pbmc5k_citeseq", refused)
    mdata, source = cli._demo_data(None, seed=0)
    assert "simulated" in source
    assert mdata.n_obs == 5_000
    assert mdata["prot"].n_obs == 4_000


def test_wide_modalities_keep_their_most_variable_features():
    mdata = ub.data.simulate.citeseq(n_obs=100, n_genes=80, n_proteins=10, missing={"prot": 0.3}, seed=0)
    reduced = cli._variable_features(mdata, n_features=30)
    assert reduced["rna"].n_vars == 30
    assert reduced["prot"].shape == mdata["prot"].shape
    assert mdata["rna"].n_vars == 80
    names = reduced.obs_names
    assert (reduced.obs["cell_type"].to_numpy() == mdata.obs["cell_type"].reindex(names).to_numpy()).all()
    assert cli._variable_features(mdata, n_features=80) is mdata


def test_score_judges_what_fit_wrote(file, tmp_path):
    split, html, out = tmp_path / "split.h5mu", tmp_path / "card.html", tmp_path / "scored.h5mu"
    assert runner.invoke(cli.app, ["fit", str(file), "--model", "linear-split", "--out", str(split)]).exit_code == 0
    arguments = ["score", str(split), "--labels", "cell_type", "--max-obs", "150", "--html", str(html)]
    result = runner.invoke(cli.app, [*arguments, "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "Give group" in " ".join(result.output.split())
    assert "Specific?" in html.read_text()
    assert "scorecard" in mudata.read_h5mu(out).uns


def test_score_takes_keys_by_modality_and_none(file, tmp_path):
    split = tmp_path / "split.h5mu"
    assert runner.invoke(cli.app, ["fit", str(file), "--model", "linear-split", "--out", str(split)]).exit_code == 0
    keys = ["--shared", "rna=Z_c", "--shared", "prot=prot:Z_c", "--specific", "none", "--max-obs", "120"]
    result = runner.invoke(cli.app, ["score", str(split), *keys])
    assert result.exit_code == 0, result.output
    assert "specific " not in result.output
    result = runner.invoke(cli.app, ["score", str(split), "--shared", "Z_x"])
    assert result.exit_code == 1
    assert "Z_x" in result.output
