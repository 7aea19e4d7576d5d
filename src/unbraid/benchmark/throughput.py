"""How much of a bare PyTorch loop's throughput ``model.train()`` keeps.

Run it with::

    python -m unbraid.benchmark.throughput --threads 2

The bare loop has what training cannot have: every batch as ready, transformed, dense tensors. It runs the
same encoders, the same InfoNCE and Adam (``--fused`` gives it the fused kernel that ``model.train()`` uses; a plain
loop has not). ``model.train()`` gathers rows of a CSR matrix,
normalises counts, keeps masks, logs every term, and runs inside Lightning. Both run alternately, and the
ratio of each pair is reported, so that a machine whose speed drifts does not decide.
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from unbraid.data import simulate, split_indices
from unbraid.model import CLIP
from unbraid.objectives import info_nce

if TYPE_CHECKING:
    from collections.abc import Sequence


def bare_epochs(model: CLIP, batches: list[list[torch.Tensor]], n_epochs: int, *, fused: bool) -> float:
    """Seconds of ``n_epochs`` over ready batches with the model's own encoders.

    Parameters
    ----------
    model
        Lends its encoders.
    batches
        Transformed inputs of both modalities.
    n_epochs
        Passes.
    fused
        Use Adam's fused kernel.
    """
    encoders = model.module.shared_encoders
    encoders.train()
    optimizer = torch.optim.Adam(encoders.parameters(), lr=1e-3, fused=fused)
    start = time.perf_counter()
    for _ in range(n_epochs):
        for inputs in batches:
            codes = [encoders[m](x) for m, x in zip(model.modalities, inputs, strict=True)]
            loss = info_nce(*codes, temperature=model.module.temperature)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return time.perf_counter() - start


def main(argv: Sequence[str] | None = None) -> None:
    """Time both in turn and print the ratios.

    Parameters
    ----------
    argv
        Options; those of the command line by default.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n-obs", type=int, default=20_000)
    parser.add_argument("--n-genes", type=int, default=2_000)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[128, CLIP._default_batch_size])
    parser.add_argument("--epochs", type=int, default=2, help="epochs of one timed run")
    parser.add_argument("--fused", action="store_true", help="fused Adam for the bare loop as well")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)

    mdata = simulate.citeseq(arguments.n_obs, n_genes=arguments.n_genes, n_proteins=25, seed=0)
    CLIP.setup_mudata(mdata)
    rows = []
    for batch_size in arguments.batch_sizes:
        model = CLIP(mdata)
        dataset = model.adata_manager.create_torch_dataset()
        cells = split_indices(len(dataset), train_size=1.0)["train"]
        blocks = np.array_split(np.random.default_rng(0).permutation(cells), -(-len(cells) // batch_size))
        with torch.no_grad():
            batches = [[*model.module.inputs(dataset[block]).values()] for block in blocks]
        options = {
            "batch_size": batch_size,
            "train_size": 1.0,
            "early_stopping": False,
            "progress_bar": False,
            "seed": 0,
        }
        model.train(max_epochs=1, **options)
        for repeat in range(arguments.repeats):
            bare = bare_epochs(model, batches, arguments.epochs, fused=arguments.fused)
            start = time.perf_counter()
            model.train(max_epochs=arguments.epochs, **options)
            trained = time.perf_counter() - start
            cells_per_second = [arguments.epochs * len(cells) / seconds for seconds in (bare, trained)]
            rows.append([batch_size, repeat, *cells_per_second, bare / trained])
    table = pd.DataFrame(rows, columns=["batch_size", "repeat", "bare (cells/s)", "train (cells/s)", "kept"])
    by = table.groupby("batch_size")[["bare (cells/s)", "train (cells/s)", "kept"]]
    print(by.agg(["median", "min", "max"]).round(2).to_string())


if __name__ == "__main__":
    main()
