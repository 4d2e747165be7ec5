"""Floating-point operations of our operators, for torch.utils.flop_counter. Not of the layers (their settings).

Products alone are counted, a sum and a multiplication as two, as torch counts its own: of the nodes on the paths, and
of a token's own leaf network. A provider that computes more, as `gather` does at the top levels, is not credited.
"""

import math
import sys
from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from fff.topology import depth_of, path_length

COUNTER = "torch.utils.flop_counter"  # imports Triton, which a user of the layers need not have
_formulas: dict[Any, Callable[..., int]] = {}
_registered: set[Any] = set()


def let_count() -> None:
    """Make our operators known to torch's counter, where somebody has imported it; to one that is counting now, too."""
    if COUNTER not in sys.modules:
        return
    counter = sys.modules[COUNTER]
    for operator in _formulas.keys() - _registered:
        counter.register_flop_formula(operator)(_formulas[operator])
        _registered.add(operator)
    for mode in _get_current_dispatch_mode_stack():
        counting = getattr(mode, "counter", None)
        if isinstance(counting, counter.FlopCounterMode):
            for operator in _formulas:
                counting.flop_registry.setdefault(operator, counter.flop_registry[operator])


def register_flops(*operators: Any) -> None:
    """Count PathFFF's operators; the ones named `*_backward` take PathGradients' fields, the others PathOperands'."""
    for operator in operators:
        _formulas[operator] = _path_backward if str(operator).endswith("_backward") else _path_forward
    let_count()


def register_int8_flops(*operators: Any) -> None:
    """Count PathFFF's operators on int8 rows: (x, w_in, scale_in, b_in, w_out, ..)."""
    for operator in operators:
        _formulas[operator] = lambda x, w_in, _, b_in, w_out, *__, **___: _path_forward(x, w_in, b_in, w_out)
    let_count()


def register_int8_linear_flops(operator: Any) -> None:
    """Count a linear layer of bytes: shapes of (x, rows, scale, ..)."""
    _formulas[operator] = lambda x, _, scale, *__, **___: 2 * math.prod(x) * scale[0]
    let_count()


def register_leaf_flops(*operators: Any) -> None:
    """Count LeafFFF's operators: (x, w_node, b_node, *Leaves, ..); of `*_backward` LeafGradients' fields."""
    for operator in operators:
        _formulas[operator] = _leaf_backward if str(operator).endswith("_backward") else _leaf_forward
    let_count()


def register_int8_leaf_flops(*operators: Any) -> None:
    """Count LeafFFF's operators on int8 rows: (x, nodes, leaves, master, ..), with what rows are padded by."""
    for operator in operators:
        _formulas[operator] = _int8_leaf_forward
    let_count()


def register_row_flops(*operators: Any) -> None:
    """Count operators on chosen rows: (weights or x, w or x (.., H), rows (N, J), ..)."""
    for operator in operators:
        _formulas[operator] = lambda _, w, rows, *__, **___: 2 * rows[0] * rows[1] * w[-1]
    let_count()


def _path_forward(x: Any, w_in: Any, b_in: Any, w_out: Any, *_: Any, **__: Any) -> int:
    """A row in and a row out per token and path node; shapes."""
    return 2 * _rows(x) * w_in[0] * path_length(depth_of(w_in[1])) * (w_in[2] + w_out[2])


def _path_backward(grad: Any, _: Any, x: Any, w_in: Any, w_out: Any, *__: Any, **___: Any) -> int:
    """Twice the forward: for each row, its own gradient and that of what it was multiplied with."""
    return 2 * _path_forward(x, w_in, None, w_out)


def _leaf_forward(
    x: Any, w_node: Any, b_node: Any, w_in: Any, b_in: Any, w_out: Any, b_out: Any, w_value: Any, *_: Any, **__: Any
) -> int:
    """A row per decision, then the leaf's two layers, the first one twice where it is gated."""
    return 2 * _rows(x) * ((depth_of(w_node[0]) + 1) * w_in[2] + _of_leaf(w_in, w_out, w_value))


def _int8_leaf_forward(x: Any, nodes: Any, leaves: Any, master: Any, *_: Any, **__: Any) -> int:
    """A row per decision, then the leaf's and the master's packed rows: (networks, groups, quads, 16, 4)."""
    decisions = nodes[0][0].bit_length() * nodes[0][1]
    rows = (networks[at] for networks in (leaves, master) if networks for at in (0, 3))
    return 2 * _rows(x) * (decisions + sum(groups * quads * 64 for _, groups, quads, *__ in rows))


def _of_leaf(w_in: Any, w_out: Any, w_value: Any) -> int:
    """Numbers in one leaf's rows."""
    return w_in[1] * (w_in[2] * (1 if w_value is None else 2) + w_out[2])


def _leaf_backward(
    grad: Any,
    grad_of_scores: Any,
    x: Any,
    w_node: Any,
    w_in: Any,
    w_out: Any,
    b_out: Any,
    w_value: Any,
    *rest: Any,
    **__: Any,
) -> int:
    """Twice the forward, as PathFFF's, but for hard decisions of whose scores there is no loss: they have none."""
    *_, temperature, _activation = rest
    decisions = 0 if grad_of_scores is None and temperature is None else depth_of(w_node[0]) + 1
    return 4 * _rows(x) * (decisions * w_in[2] + _of_leaf(w_in, w_out, w_value))


def _rows(x: Any) -> int:
    count = 1
    for size in x[:-1]:
        count *= size
    return count
