"""Loss curves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    from matplotlib.figure import Figure


def training(history: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw every term of every stage, training and validation together.

    Parameters
    ----------
    history
        ``model.history``: per ``"<stage>/<term>_<part>"`` a data frame with one column.

    Returns
    -------
    The figure: one row per stage, one picture per term.

    Raises
    ------
    ValueError
        If there is nothing to draw.
    """
    stages: dict[str, dict[str, dict[str, pd.DataFrame]]] = {}
    for key, frame in history.items():
        stage, _, name = key.partition("/")
        name = {"train_loss": "loss_train", "validation_loss": "loss_validation"}.get(name, name)
        term, _, part = name.rpartition("_")
        if part in ("train", "validation"):
            stages.setdefault(stage, {}).setdefault(term, {})[part] = frame
    if not stages:
        raise ValueError("The history holds no terms of training; train the model first.")
    width = max(map(len, stages.values()))
    size = (3.2 * width, 2.6 * len(stages))
    figure, axes = plt.subplots(len(stages), width, figsize=size, squeeze=False, layout="constrained")
    for ax in axes.flat:
        ax.set_visible(False)
    for row, (stage, terms) in enumerate(stages.items()):
        for ax, (term, parts) in zip(axes[row], terms.items(), strict=False):
            ax.set_visible(True)
            for part, frame in parts.items():
                ax.plot(frame.index, frame.iloc[:, 0], label=part)
            ax.set(title=f"{stage}: {term.replace('_', ' ')}", xlabel="epoch")
            ax.spines[["top", "right"]].set_visible(False)
        axes[row, 0].legend(frameon=False)
    return figure
