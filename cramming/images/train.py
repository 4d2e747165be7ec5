"""Training of one row with one seed, evaluated hard. Not which rows there are (config.py)."""

import math

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from cramming.images.config import DENSE, VARIANTS, ImagesConfig, Row
from cramming.images.data import ImageData, Split
from fff import LeafFFF
from fff.hardening import set_hardening
from fff.usage import unit_counts, usage_entropy


def build_row(config: ImagesConfig, row: Row, pixels: int, classes: int) -> LeafFFF:
    """The whole network is one layer, as in the paper: pixels -> classes; a dense row is a LeafFFF of depth 0."""
    losses, with_master = VARIANTS.get(row.variant, ((), False))
    layer = LeafFFF(
        pixels,
        classes,
        row.depth,
        row.leaf_width,
        activation=config.activation,
        master_width=config.master_width if with_master else 0,
    )
    set_hardening(layer, form="hard" if row.variant == DENSE else "soft", losses=losses)
    return layer


def fresh_row(config: ImagesConfig, row: Row, data: ImageData, seed: int) -> LeafFFF:
    """The untrained network on the images' device; it and all randomness of its training follow from the seed."""
    torch.manual_seed(seed)
    return build_row(config, row, data.pixels, data.classes).to(data.train.x.device)


def train_row(config: ImagesConfig, row: Row, data: ImageData, layer: LeafFFF) -> dict[str, float] | None:
    """Train one network that is fresh, and measure it; None if its loss is not finite.

    Returns:
        memorisation: accuracy on the training images after the last epoch; generalisation: accuracy on the test images
        after the epoch that is best on the validation images (the first of equals), with best_epoch and valid_accuracy;
        train_loss (nats, of the last batch); usage_entropy (bits) and dead_leaves on the training images. Every
        accuracy is of the hard form, in [0, 1].
    """
    optimiser = torch.optim.SGD(layer.parameters(), lr=config.lr)
    found = {"valid_accuracy": -1.0}
    loss = torch.tensor(math.nan)
    for epoch in range(1, config.epochs + 1):
        layer.train()
        for chosen in torch.randperm(len(data.train)).to(data.train.x.device).split(config.batch):
            loss = row_loss(config, row, layer, data.train.x[chosen], data.train.y[chosen])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        if not math.isfinite(loss.item()):
            return None
        layer.eval()
        valid = accuracy(layer, data.valid)
        if valid > found["valid_accuracy"]:
            test = accuracy(layer, data.test)
            found = {"valid_accuracy": valid, "generalisation": test, "best_epoch": float(epoch)}
    found |= {"memorisation": accuracy(layer, data.train), "train_loss": loss.item()}
    counts = unit_counts(layer.route(data.train.x))
    return found | {"usage_entropy": usage_entropy(counts).item(), "dead_leaves": float((counts == 0).sum())}


def row_loss(config: ImagesConfig, row: Row, layer: LeafFFF, x: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy (nats) plus the weighted auxiliary losses of the row."""
    scores, losses = layer.forward_with_losses(x)
    nodes = 1 if row.variant == "summed" else 2**row.depth - 1
    weights = {"entropy": config.entropy_weight / max(1, nodes), "balance": config.balance_weight}
    return cross_entropy(scores, y) + sum(weights[name] * value for name, value in losses.items())


@torch.no_grad()
def accuracy(layer: LeafFFF, split: Split) -> float:
    """Share of images whose class is found by the layer in its present mode."""
    return (layer(split.x).argmax(-1) == split.y).double().mean().item()
