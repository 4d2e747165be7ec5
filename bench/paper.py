"""The columns of the paper's speed table, level by level: `python -m bench.paper`. Not what is fast (bench.py).

arXiv 2311.10770, Table 2, compares implementations of one kind: dense and FFF both by BLAS's vector operations
(level 1), both by operations on batches (level 2), dense by matrix products (level 3), for which a tree has no
counterpart. Such ratios show how many operations the layers need rather than how fast they can be, so each row carries
its ratio to the best dense layer, too. The authors' own levels 1 and 2 read the wrong memory; these are written anew.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.cases import WIDTH, check, dense
from bench.layer import write
from bench.timing import figures, interleaved
from cramming.machine import CPU, describe
from fff.kernels import PROVIDERS
from fff.layers.path import PathFFF
from fff.topology import trained_neurons

Call = Callable[[Tensor], Tensor]
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


def measure(depth: int, tokens: int, seconds: float) -> list[dict[str, Any]]:
    """Rows by level and layer, each checked on its timed input first; float32. The last one needs provider `cpu`."""
    torch.manual_seed(0)
    names = [name for name in ("gather", "cpu") if PROVIDERS[name].available(CPU, torch.float32) is None]
    layers = {name: PathFFF(WIDTH, WIDTH, depth, bias=False, provider=name) for name in names}
    for layer in layers.values():
        layer.load_state_dict(layers["gather"].state_dict())
    flat = dense(trained_neurons(1, depth), torch.float32)
    many = torch.randn(tokens, WIDTH)
    few = many[:FEW]
    calls: dict[tuple[str, str], tuple[Call, Tensor]] = {
        ("level 1, vectors", "FFF"): (tree_of_vectors(layers["gather"]), few),
        ("level 1, vectors", "dense"): (dense_of_vectors(flat), few[:2]),
        ("level 2, batches of vectors", "FFF"): (layers["gather"], many),
        ("level 2, batches of vectors", "dense"): (dense_of_matrix_and_vector(flat), few),
        ("level 3, matrices", "dense"): (flat, many),
    }
    if "cpu" in layers:
        calls["level 3, matrices", "FFF, blocks of tokens and nodes"] = layers["cpu"], many
    with torch.inference_mode():
        for layer in layers.values():
            check(layer, many)
        for (_, name), (call, x) in calls.items():
            expected = flat(x) if name == "dense" else layers["gather"](x)
            assert torch.allclose(call(x), expected, atol=1e-4), f"{name}: another result"
        timed = interleaved({" | ".join(key): _case(*call) for key, call in calls.items()}, CPU, seconds)
    rows: list[dict[str, Any]] = []
    for (level, name), (_, x) in calls.items():
        found = figures(timed[f"{level} | {name}"])
        per_token = found["median_s"] / len(x) * 1e6
        rows.append({"level": level, "layer": name, "tokens": len(x), **found, "us_per_token": per_token})
    plain = {row["level"]: row["us_per_token"] for row in rows if row["layer"] == "dense"}
    for row in rows:
        row["times_faster_same_level"] = plain[row["level"]] / row["us_per_token"]
        row["times_faster_than_best"] = min(plain.values()) / row["us_per_token"]
    return rows


def _case(call: Call, x: Tensor) -> Callable[[int], Tensor]:
    return lambda turn: call(x)


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="bench.paper", description=__doc__)
    parser.add_argument("--depth", type=int, default=11)
    parser.add_argument("--tokens", type=int, default=16384, help="of levels 2 and 3, where batches are taken")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each case")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    rows = measure(options.depth, options.tokens, options.seconds)
    for row in rows:
        print(
            f"  {row['level']:<28} {row['layer']:<32} {row['us_per_token']:12.3f} us/token "
            f"{row['times_faster_same_level']:8.1f}x of its level {row['times_faster_than_best']:9.3f}x of the best"
        )
    if options.out:
        write({"machine": describe(options.threads), "depth": options.depth, "rows": rows}, options.out)


if __name__ == "__main__":
    main()
