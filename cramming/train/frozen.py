"""What `train.frozen_levels` asks of a run's layers. Not how levels are held (fff.frozen), nor when (loop.py)."""

from torch import nn

from cramming.errors import UserError
from cramming.train.root import PretrainRoot
from fff.frozen import FrozenLevels


def check_frozen(root: PretrainRoot, layer: nn.Module | None) -> None:
    """Refuse to freeze levels of layers that have none, or that something else would move (UserError)."""
    levels = root.train.frozen_levels
    if not levels:
        return
    found = f"train.frozen_levels is {levels}, and"
    if root.ffn.kind != "path":
        raise UserError(f"{found} ffn={root.ffn.kind} is no tree of neurons (ffn=path); set train.frozen_levels=0.")
    if root.ffn.rebalance_rate:
        raise UserError(
            f"{found} ffn.rebalance_rate={root.ffn.rebalance_rate:g} moves the biases of all decisions; set one to 0."
        )
    if root.train.sharding == "fsdp":
        raise UserError(f"{found} train.sharding is fsdp, which keeps parts of rows; set train.sharding=ddp.")
    assert layer is not None
    try:
        FrozenLevels(layer, levels)
    except ValueError:
        raise UserError(
            f"{found} the trees have ffn.depth={root.ffn.depth}; freeze 1 to as many levels, or set it to 0."
        ) from None
