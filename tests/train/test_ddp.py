import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from train_toys import batches, changed, citeseq_model, weights

from unbraid.train import StagedPlan

pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="needs torch.distributed with gloo",
)

UNUSED = "ddp_find_unused_parameters_true"
# Lightning starts the second process by running the script again
SCRIPT = [("CLIP", "ddp"), ("CLIP", UNUSED), ("DisentangledSSL", "ddp"), ("DisentangledSSL", UNUSED), ("Critic", "ddp")]
# or with multiprocessing, and the results travel back
FORKED = [("CLIP", "ddp_fork"), ("DisentangledSSL", "ddp_fork"), ("Critic", "ddp_fork")]


def train(folder, runs):
    script = Path(__file__).with_name("ddp_script.py")
    # what a launcher left behind would make this process one of its own
    environment = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "RANK")}
    environment["OMP_NUM_THREADS"] = "1"
    names = [":".join(run) for run in runs]
    done = subprocess.run(
        [sys.executable, "-W", "ignore::FutureWarning", str(script), str(folder), *names],
        timeout=120, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    results = {
        (*path.stem.rsplit(".", 1)[0].split("-"), int(path.stem[-1])): json.loads(path.read_text())
        for path in folder.glob("*.json")
    }
    return results, done.stdout + done.stderr


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    return train(tmp_path_factory.mktemp("script"), SCRIPT)


@pytest.fixture(scope="module")
def forked(tmp_path_factory):
    return train(tmp_path_factory.mktemp("forked"), FORKED)


def test_both_processes_end_and_say_nothing(script):
    results, output = script
    assert set(results) == {(*run, rank) for run in SCRIPT for rank in (0, 1)}
    advice = "find_unused_parameters=True was specified"  # torch's own, to whom asks for it without need
    assert [line for line in output.splitlines() if advice not in line] == []


@pytest.mark.parametrize("run", SCRIPT, ids=":".join)
def test_both_processes_have_the_same_weights_and_history(script, run):
    zero, one = (script[0][*run, rank] for rank in (0, 1))
    assert zero["history"] == one["history"]
    different = [name for name in zero["weights"] if zero["weights"][name] != one["weights"][name]]
    assert [name for name in different if "running_" not in name] == []  # batch norm sees its own process's cells


@pytest.mark.parametrize("run", SCRIPT[:4], ids=":".join)
def test_history_is_full_and_stages_stop_early(script, run):
    history = script[0][*run, 0]["history"]
    terms = {"shared": ["info_nce"]} if run[0] == "CLIP" else {
        "shared": ["info_nce", "alignment"],
        "specific": ["specific_info_nce", "orthogonality"],
    }  # fmt: skip
    expected = {f"{stage}/{name}" for stage in terms for name in ("lr", "train_loss", "validation_loss")}
    expected |= {f"{s}/{t}_{part}" for s in terms for t in terms[s] for part in ("train", "validation")}
    assert set(history) == expected
    for stage in terms:
        lengths = {len(values) for key, values in history.items() if key.startswith(stage)}
        assert len(lengths) == 1
        validation = history[f"{stage}/validation_loss"]
        best = validation.index(min(validation))
        assert lengths == {min(8, best + 2)}
    assert run[0] == "CLIP" or len(history["shared/lr"]) < 8


def test_finding_unused_parameters_changes_nothing(script):
    for name in ("CLIP", "DisentangledSSL"):
        assert script[0][name, "ddp", 0] == script[0][name, UNUSED, 0]


@pytest.mark.parametrize("run", FORKED, ids=":".join)
def test_forked_processes_give_their_results_back(script, forked, run):
    expected, result = script[0][run[0], "ddp", 0], forked[0][*run, 0]
    assert result["history"] == expected["history"]
    assert result["weights"] == expected["weights"]
    assert forked[1] == ""


def test_spawned_processes_can_be_given_the_plan():
    # `ddp_spawn` itself imports everything twice more; what can fail beyond `ddp_fork` is the pickle
    model = citeseq_model("DisentangledSSL", n_specific=3)
    dataset = model.adata_manager.create_torch_dataset()
    plan = StagedPlan(model.module, model.module.stages[0], batches(dataset), max_epochs=2, seed=3)
    plan.rows.append({"epoch": 0, "loss_train": 1.0})
    copy = pickle.loads(pickle.dumps(plan))
    assert copy.rows == plan.rows
    assert changed(weights(copy.module), weights(plan.module)) == []
    for one, other in zip(plan.train_dataloader(), copy.train_dataloader(), strict=True):
        assert torch.equal(one["x"]["rna"], other["x"]["rna"])


def test_latents_of_all_cells_after_training(script):
    for run in SCRIPT[:4]:
        assert [script[0][*run, rank]["n_latent"] for rank in (0, 1)] == [90, 90]
