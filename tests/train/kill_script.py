"""Train slowly until somebody kills us: ``kill_script.py FOLDER``."""

import sys
import time

from train_toys import Toy, fit


class Slow(Toy):
    def on_loss(self, batch, stage):
        time.sleep(0.02)


if __name__ == "__main__":
    fit(Slow(), epochs=8, early_stopping=False, checkpoint_dir=sys.argv[1])
