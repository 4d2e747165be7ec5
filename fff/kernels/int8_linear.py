"""Products of tokens with rows of eight-bit integers, the tokens quantised as they come. Not a module (fff.layers).

A call of torch's oneDNN, and of the ten operations around it, takes several times what a few tokens need: these go
through one operator of provider `cpu`, which reads the very bytes that oneDNN packed. Many tokens are multiplied by
oneDNN, part by part; what is before and after is the provider's too. Where it cannot be built, torch's operations do
that, and all products are oneDNN's. Every way a token gets the same bits: sums are exact, and what follows are the same
float32 operations in the same order.
"""

import ctypes
import functools
import logging
from typing import Any

import torch
from torch import Tensor

from fff.int8 import LEAST, LEVELS
from fff.kernels.cpu import linear
from fff.kernels.cpu import operators as cpu

BLOCK = 2**19  # numbers of the input that are quantised at a time: they stay in the caches, and need no new memory
FEW = 64  # tokens of a call up to which our operator is faster than oneDNN's: docs/kernels.md
DTYPES = (torch.float32, torch.bfloat16)
GROUP, QUAD, PIECE = 16, 4, 64  # oneDNN's: rows side by side, neighbours of a row side by side, what rows are padded to
BLOCKS = (64, 48, 32, 16)  # rows that lie side by side, as oneDNN chooses; 64 with AVX-512
UNREADABLE = "oneDNN packs rows on this processor in a way that is not known here"
log = logging.getLogger("fff")


class Rows:
    """Rows (d_out, d_in) of whole numbers as oneDNN packs them; one copy, for both roads.

    Attributes:
        packed: what oneDNN multiplies with.
        block: rows that lie side by side in it, where our operator can read it; else None, and oneDNN does all.
        bytes: its memory, then.
    """

    def __init__(self, whole: Tensor) -> None:
        self.packed: Tensor = torch.ops.onednn.qlinear_prepack(whole, None)
        self.d_out, self.d_in = whole.shape
        self.zero = torch.zeros(self.d_out, dtype=torch.int64)
        self.block, self.bytes = self._as_lines(whole)

    def _as_lines(self, whole: Tensor) -> tuple[int | None, Tensor | None]:
        """How the bytes lie, found by comparing all of them: what oneDNN chooses for a processor is its own affair."""
        if (memory := self._memory()) is None:
            return None, None
        for block in BLOCKS:
            blocks, pieces = -(-self.d_out // block), -(-self.d_in // PIECE)
            size = blocks * block * pieces * PIECE
            if size > len(memory):
                continue
            padded = whole.new_zeros(blocks * block, pieces * PIECE)
            padded[: self.d_out, : self.d_in] = whole
            lines = padded.view(blocks, block, -1, QUAD).transpose(1, 2)
            if torch.equal(memory[:size].view(lines.shape), lines):
                return block, memory[:size]
        return None, None

    def _memory(self) -> Tensor | None:
        """All of the packed bytes; what stands behind the rows is oneDNN's."""
        if not hasattr(torch.ops.mkldnn, "data_ptr") or not hasattr(torch.ops.mkldnn, "_nbytes"):
            return None
        place, size = torch.ops.mkldnn.data_ptr(self.packed), torch.ops.mkldnn._nbytes(self.packed)
        return torch.frombuffer((ctypes.c_int8 * size).from_address(place), dtype=torch.int8)

    @property
    def nbytes(self) -> int:
        """With what oneDNN pads and adds, where torch tells it."""
        memory = self._memory()
        return self.packed.nbytes if memory is None else memory.nbytes

    def whole(self) -> Tensor:
        """The rows as they were given."""
        return self.packed.to_dense().t().contiguous()

    def __reduce__(self) -> tuple[Any, ...]:  # for copies: a packed weight cannot be copied as it is
        return Rows, (self.whole(),)


class Products:
    """y = x W^T + b of rows with scales (d_out,) and bias (d_out,) or None, float32.

    Attributes:
        shortcut: a function (x) -> y for few tokens past torch's dispatcher, or None for a call that it does not take;
            None before the first call of few, and where our operator cannot be had.
    """

    def __init__(self, rows: Rows, scale: Tensor, bias: Tensor | None) -> None:
        self.rows, self.scale, self.bias = rows, scale, bias
        self.shortcut: linear.Linear | None = None
        self._few: tuple[Any, ...] | None = None
        self._asked = self._operators = False

    def __call__(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """x (..., d_in) float32 or bfloat16 -> (..., d_out) in `dtype`."""
        self._ask()
        if self._few is not None and x.numel() <= FEW * self.rows.d_in:
            given = x if x.dtype == dtype else x.float()
            return torch.ops.fff.cpu_int8_linear.default(given, *self._few).to(dtype)
        many = self._many if self._operators and dtype in DTYPES else self._in_torch
        flat = x.reshape(-1, self.rows.d_in)
        y = torch.empty(len(flat), self.rows.d_out, dtype=dtype)
        tokens = max(1, BLOCK // self.rows.d_in)
        for part, out in zip(flat.split(tokens), y.split(tokens), strict=True):
            many(part, out)
        return y.view(*x.shape[:-1], self.rows.d_out)

    def _ask(self) -> None:
        """What there is of our operators; once, because the question may compile them."""
        if self._asked:
            return
        reason = cpu.available(self.scale.device, torch.float32)
        rows, self._operators = self.rows.bytes, reason is None
        if reason or rows is None:
            _say(reason or UNREADABLE)
        else:
            cpu.settle([rows])
            self._few = (rows, self.scale, self.bias, self.rows.d_in, self.rows.block)
            self.shortcut = linear.shortcut(self._few, FEW, self.rows)
        self._asked = True

    def _many(self, x: Tensor, out: Tensor) -> None:
        whole, scale = torch.ops.fff.cpu_int8_tokens.default(x)
        y = products(whole, self.rows, self.scale)
        torch.ops.fff.cpu_int8_scaled.default(y, scale, self.bias, out)

    def _in_torch(self, x: Tensor, out: Tensor) -> None:
        x = x.float()
        # Two passes over x without memory of their own, where abs().amax() has one of them and writes a copy.
        most = torch.maximum(x.amax(-1, keepdim=True), x.amin(-1, keepdim=True).neg_())
        none, levels = most < LEAST, torch.full_like(most, LEVELS)
        whole = (x * (levels / most).masked_fill_(none, 0)).round_().to(torch.int8)
        scale = (most / levels).masked_fill_(none, 0).masked_fill_(most.isinf(), torch.nan)
        y = products(whole, self.rows, self.scale)
        if self.bias is None:
            torch.mul(y, scale, out=out)
        else:
            out.copy_(y.mul_(scale).add_(self.bias))

    def __reduce__(self) -> tuple[Any, ...]:
        return Products, (self.rows, self.scale, self.bias)


@functools.cache
def _say(reason: str) -> None:
    log.warning("fff: int8 linears are left to torch's oneDNN, which takes longer for few tokens: %s", reason)


def products(x: Tensor, rows: Rows, scale: Tensor) -> Tensor:
    """Exact sums of products of numbers (N, d_in) and rows, times the rows' scales: (N, d_out) float32."""
    # A lone token goes in twice: for one row and some widths (192 of 576) oneDNN has nothing but its reference code,
    # which took 3 to 40 ms where two rows take 0.07.
    given = x if len(x) != 1 else x.expand(2, -1).contiguous()
    y = torch.ops.onednn.qlinear_pointwise(
        given, 1.0, 0, rows.packed, scale, rows.zero, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return y[: len(x)]


@functools.cache
def unusable() -> str | None:
    """Why torch's int8 products cannot be used on this machine; None where they can.

    They are tried on the largest numbers that there are: without VNNI, oneDNN may add pairs of products in 16 bits.
    """
    instead = "leave the linears as they are (linears='keep')"
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.onednn, "qlinear_pointwise"):
        return f"this torch has no int8 products for a CPU (oneDNN); {instead}"
    width, rows = 96, 32
    most = torch.full((rows, width), LEVELS, dtype=torch.int8)
    signs = torch.where(torch.arange(rows)[:, None] % 2 == 0, most, -most)
    try:
        found = products(signs, Rows(most), torch.ones(rows))
    except RuntimeError as error:
        return f"torch's int8 products do not run on this machine ({str(error).splitlines()[0]}); {instead}"
    exact = (signs.int() @ most.int().T).float()
    return None if torch.equal(found, exact) else f"torch's int8 products are not exact on this processor; {instead}"
