"""The columns of the paper's speed table, level by level: `python -m bench.paper`. Not what is fast (layer.py).

arXiv 2311.10770, Table 2, compares implementations of one kind: dense and FFF both by BLAS's vector operations
(level 1), both by operations on batches (level 2), dense by matrix products (level 3), for which a tree has no
counterpart. Such ratios show how many operations the layers need rather than how fast they can be, so each row carries
its ratio to the best dense layer, too. Levels take different numbers of tokens, so times are compared per token. The
authors' own levels 1 and 2 read the wrong memory; these are written anew.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bench.cases import WIDTH, dense
from bench.contenders import check
from bench.options import DEEPEST, MOST_THREADS, check_out, check_seconds
from bench.rows import SpeedRow, stamp, write_rows
from bench.timing import figures, interleaved
from cramming.checks import number
from cramming.door import door, path_argument
from cramming.machine import CPU
from fff.kernels import PROVIDERS
from fff.layers.path import PathFFF
from fff.topology import trained_neurons

Call = Callable[[Tensor], Tensor]
DENSE, BLOCKS = "dense", "FFF, blocks of tokens and nodes"
LEVELS = {"level 1": "level 1, vectors", "level 2": "level 2, batches of vectors", "level 3": "level 3, matrices"}
COMPUTED_BY = {("level 2", "FFF"): "gather", ("level 3", BLOCKS): "cpu"}
FEW = 16  # tokens of level 1, which takes milliseconds for each in Python
gelu = nn.functional.gelu


def tree_of_vectors(layer: PathFFF) -> Call:
    """Level 1: one token after the other, a dot and a scaled sum for each node of its path. One tree, no bias."""
    w_in, w_out = layer.w_in[0].detach(), layer.w_out[0].detach()

    def run(x: Tensor) -> Tensor:
        y = torch.zeros(len(x), w_out.shape[1])
        for token, sums in zip(x, y, strict=True):
            node = 0
            for _ in range(layer.depth + 1):
                score = torch.dot(w_in[node], token)
                sums.add_(w_out[node], alpha=gelu(score).item())
                node = 2 * node + 1 + int(score > 0)
        return y

    return run


def dense_of_vectors(module: nn.Module) -> Call:
    """Level 1: the same for each of the dense layer's neurons."""
    w_in, w_out = _weights(module)

    def run(x: Tensor) -> Tensor:
        y = torch.zeros(len(x), w_out.shape[1])
        for token, sums in zip(x, y, strict=True):
            for row, out in zip(w_in, w_out, strict=True):
                sums.add_(out, alpha=gelu(torch.dot(row, token)).item())
        return y

    return run


def dense_of_matrix_and_vector(module: nn.Module) -> Call:
    """Level 2: one token after the other, a product of matrix and vector for each of the two matrices."""
    w_in, w_out = _weights(module)
    back = w_out.T.contiguous()

    def run(x: Tensor) -> Tensor:
        return torch.stack([torch.mv(back, gelu(torch.mv(w_in, token))) for token in x])

    return run


def _weights(module: nn.Module) -> tuple[Tensor, Tensor]:
    """Rows of the input weights and of the output weights, both (neurons, width)."""
    first, _, last = module.children()
    assert isinstance(first, nn.Linear)
    assert isinstance(last, nn.Linear)
    return first.weight.detach(), last.weight.detach().T.contiguous()


def measure(depth: int, tokens: int, seconds: float) -> list[SpeedRow]:
    """Rows by level and layer, each checked on its timed input first; float32. The last one needs provider `cpu`."""
    torch.manual_seed(0)
    names = [name for name in ("gather", "cpu") if PROVIDERS[name].available(CPU, torch.float32) is None]
    layers = {name: PathFFF(WIDTH, WIDTH, depth, bias=False, provider=name) for name in names}
    for layer in layers.values():
        layer.load_state_dict(layers["gather"].state_dict())
    flat = dense(trained_neurons(1, depth), torch.float32)
    calls = calls_of(layers, flat, torch.randn(tokens, WIDTH))
    with torch.inference_mode():
        for name, layer in layers.items():
            check(layer, calls["level 3", DENSE][1], name)
        for (level, name), (call, x) in calls.items():
            expected = flat(x) if name == DENSE else layers["gather"](x)
            assert torch.allclose(call(x), expected, atol=1e-4), f"{level} {name}: another result"
        timed = interleaved({" | ".join(key): _case(*call) for key, call in calls.items()}, CPU, seconds)
    found = {key: figures(timed[" | ".join(key)]) for key in calls}
    per_token = {key: row["median"] / len(calls[key][1]) for key, row in found.items()}
    best = min((key for key in calls if key[1] == DENSE), key=per_token.__getitem__)
    named = {key: key[1] if key[1] != DENSE else f"dense {trained_neurons(1, depth)}, {key[0]}" for key in calls}
    shared: dict[str, Any] = {"shape": f"1x{depth}", "width": WIDTH, "dtype": "float32"}
    shared |= {"mode": "inference", "inputs": "iid", **stamp(CPU, torch.get_num_threads())}
    return [
        SpeedRow(
            what=level,
            name=named[level, name],
            tokens=len(calls[level, name][1]),
            provider=COMPUTED_BY.get((level, name)),
            opponent=named[level, DENSE],
            ratio=per_token[level, DENSE] / per_token[level, name],
            second=named[best],
            ratio_second=per_token[best] / per_token[level, name],
            **shared,
            **row,
        )
        for (level, name), row in found.items()
    ]


def calls_of(layers: dict[str, PathFFF], flat: nn.Module, many: Tensor) -> dict[tuple[str, str], tuple[Call, Tensor]]:
    """What is timed by level and layer, and its input: `many`, or the first few of it where a level is slow."""
    few = many[:FEW]
    found: dict[tuple[str, str], tuple[Call, Tensor]] = {
        ("level 1", "FFF"): (tree_of_vectors(layers["gather"]), few),
        ("level 1", DENSE): (dense_of_vectors(flat), few[:2]),
        ("level 2", "FFF"): (layers["gather"], many),
        ("level 2", DENSE): (dense_of_matrix_and_vector(flat), few),
        ("level 3", DENSE): (flat, many),
    }
    if "cpu" in layers:
        found["level 3", BLOCKS] = layers["cpu"], many
    return found


def _case(call: Call, x: Tensor) -> Callable[[int], Tensor]:
    return lambda turn: call(x)


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="bench.paper", description=__doc__)
    parser.add_argument("--depth", type=int, default=11)
    parser.add_argument("--tokens", type=int, default=16384, help="of levels 2 and 3, where batches are taken")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each case")
    parser.add_argument("--out", type=path_argument, help="JSON file to write")
    options = parser.parse_args(arguments)
    with door():
        number("--depth", options.depth, least=0, most=DEEPEST)
        number("--tokens", options.tokens, least=2)
        number("--threads", options.threads, least=1, most=MOST_THREADS)
        check_seconds(options.seconds)
        check_out(options.out)
        torch.set_num_threads(options.threads)
        rows = measure(options.depth, options.tokens, options.seconds)
        for row in rows:
            print(
                f"  {LEVELS[row.what]:<28} {row.name:<32} {row.median / row.tokens * 1e6:12.3f} us/token "
                f"{row.ratio:8.1f}x of its level {row.ratio_second:9.3f}x of the best"
            )
        if options.out:
            write_rows(options.out, rows)
            print(f"written    {options.out}")


if __name__ == "__main__":
    main()
