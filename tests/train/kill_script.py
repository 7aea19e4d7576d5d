"""Train, slowly until somebody kills us or from where we were killed: ``kill_script.py slow|whole|resume FOLDER``."""

import sys
import time
from pathlib import Path

import torch
from train_toys import Toy, fit, weights


class Slow(Toy):
    def on_loss(self, batch, stage):
        time.sleep(0.02)


if __name__ == "__main__":
    mode, folder = sys.argv[1], Path(sys.argv[2])
    module = {"slow": Slow, "whole": Toy, "resume": Toy}[mode](**({"seed": 7} if mode == "resume" else {}))
    history = fit(
        module,
        epochs=8,
        early_stopping=False,
        checkpoint_dir=None if mode == "whole" else folder,
        resume=mode == "resume",
    )
    columns = {name: frame.iloc[:, 0].tolist() for name, frame in history.items()}
    torch.save({"history": columns, "weights": weights(module)}, folder / f"{mode}.pt")
