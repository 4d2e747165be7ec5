"""Pictures of a run in progress. Not figures of results (cramming.report)."""

import importlib.util
import warnings
from pathlib import Path

import torch

from fff.usage import Usage


def heatmap(step: int, usages: list[Usage], file: Path) -> None:
    """Draw tokens per leaf, layers downwards and leaves across (all trees side by side), as a PNG.

    Without matplotlib it warns: a machine for training alone may lack it, and the figures are in the history.
    """
    if importlib.util.find_spec("matplotlib") is None:
        warnings.warn(f"matplotlib is not installed: no pictures in {file.parent}", stacklevel=2)
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shares = torch.stack([(u.counts / u.counts.sum(-1, keepdim=True)).flatten() for u in usages])
    leaves = usages[0].counts.shape[1]
    figure, axes = pyplot.subplots(figsize=(10, 1.6 + 0.35 * len(usages)), layout="constrained")
    image = axes.imshow(
        torch.log10(shares * leaves + 1e-3), aspect="auto", cmap="magma", interpolation="nearest", vmin=-3
    )
    trees = usages[0].counts.shape[0]
    axes.set(xlabel=f"leaf, left to right{f' ({trees} trees)' if trees > 1 else ''}", ylabel="layer")
    axes.set_yticks(range(len(usages)))
    axes.set_title(f"Leaf usage on the probe set, step {step}")
    figure.colorbar(image, label="log10 of usage / even usage")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=100)
    pyplot.close(figure)
