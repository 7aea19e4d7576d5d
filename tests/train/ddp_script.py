"""Train in two processes, and write down what each has afterwards: ``ddp_script.py FOLDER MODEL:STRATEGY...``."""

import json
import os
import sys
import zlib
from pathlib import Path

from train_toys import Critic, citeseq_model, fit

TWO = {"accelerator": "cpu", "devices": 2, "progress_bar": False, "seed": 0}


def train(name, strategy, folder):
    rank = int(os.environ.get("LOCAL_RANK", 0))
    if name == "Critic":
        module = Critic(seed=rank)  # the first process decides where the run begins
        history, n_latent = fit(module, strategy=strategy, **TWO), None
    else:
        model = citeseq_model(name, init=rank)
        # as many batches in every process, but not the same pairs of modalities
        options = {"batch_size": 7, "validation_size": 0.3, "lr": 0.05, "early_stopping_patience": 1, **TWO}
        model.train(8, strategy=strategy, checkpoint_dir=folder / f"{name}-{strategy}", **options)
        module, history, n_latent = model.module, model.history, len(model.get_latent_representation())
    result = {
        "weights": {key: zlib.crc32(tensor.numpy().tobytes()) for key, tensor in module.state_dict().items()},
        "history": {key: frame.iloc[:, 0].tolist() for key, frame in history.items()},
        "n_latent": n_latent,
    }
    rank = int(os.environ.get("LOCAL_RANK", 0))
    (folder / f"{name}-{strategy}.{rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    for run in sys.argv[2:]:
        train(*run.split(":"), Path(sys.argv[1]))
