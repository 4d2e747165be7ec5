"""A layer whose rows lie on the disk, larger than what its process may own: `python -m bench.store`. Not its tests.

The process writes a layer a block at a time, limits itself to a part of the layer's size (RLIMIT_DATA: memory of its
own; a copy of the rows would break it, while the map's pages are the system's cache of the disk), and passes skewed
tokens one at a time: cold, when nothing is in memory, then warm; and cold again after the rows that were used most
were read ahead. Printed: time per token, rows visited, and what of the map is resident.
"""

import argparse
import resource
import shutil
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from bench.cases import WIDTH
from bench.options import MOST_THREADS, check_out
from bench.rows import SpeedRow, stamp, write_rows
from cramming.checks import number
from cramming.door import door, path_argument
from cramming.errors import UserError
from cramming.files import check_writable
from fff import store
from fff.reference import path_fff
from fff.testing import inputs
from fff.topology import nodes_in_tree
from fff.usage import measure

BLOCK = 4096  # rows made at a time
MB = 2**20
DEEPEST = 24  # 2^25 rows of 6 KB are 200 GB


def blocks(depth: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Random rows of a tree, (w_in, b_in, w_out), each block another turn of the same numbers: quick to make."""
    base, total = torch.randn(2, BLOCK, WIDTH), nodes_in_tree(depth)
    for start in range(0, total, BLOCK):
        rows_in, rows_out = base[:, : total - start].roll(start // BLOCK, -1)
        yield 0.03 * rows_in, 0.01 * rows_out[:, 0], rows_out


def limit_to(megabytes: int) -> None:
    """Let this process own so much more memory than now."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    most = int(status["VmData"].split()[0]) * 1024 + megabytes * MB
    resource.setrlimit(resource.RLIMIT_DATA, (most, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def run_store(folder: Path, depth: int, tokens: int, memory: int, threads: int) -> list[SpeedRow]:
    """Rows of cold, warm and warmed time per token, printed as they are found.

    Raises:
        UserError: the layer there is another.
        AssertionError: it gives other outputs than the definition.
    """
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    if not folder.exists():
        store.write_blocks(blocks(depth), folder, d_in=WIDTH, d_out=WIDTH, depth=depth)
    layer = opened(folder, depth)
    size, xs = bytes_of(depth), inputs("skewed", tokens)[0]
    # What is loaded once, libraries too, is loaded before the limit.
    layer(xs[:1]), refuse_other_outputs(layer, xs[:64]), measure(layer.route(xs[:2]))
    limit_to(memory)
    layer.release()
    cold = seconds_per_token(layer, xs)
    resident = layer.resident_bytes
    warm = seconds_per_token(layer, xs)
    nodes, _ = layer.path(xs)
    refuse_other_outputs(layer, xs[:64])
    hot, row = nodes.unique().numel(), (layer.d_in + layer.d_out) * layer.w_in.element_size()
    counts = measure(layer.route(xs)).counts
    layer.release()
    read = layer.warm(counts, hot * row // 2)
    warmed = seconds_per_token(layer, xs)
    print(f"layer      1x{depth}, {size / MB:,.0f} MB on the disk; the process may own {memory} MB more than it did")
    print(f"hot set    {hot * row / MB:.1f} MB: {hot:,} rows of {nodes_in_tree(depth):,}, visited by {tokens:,} tokens")
    print(f"resident   {resident / MB:.1f} MB of the map, in whole pages")
    named = {"cold": cold, "warm": warm, f"cold, {read / MB:.1f} MB of the most used rows read ahead": warmed}
    for name, samples in named.items():
        middle, mean = statistics.median(samples) * 1e6, statistics.fmean(samples) * 1e6
        print(f"{name:<10} {middle:,.0f} us per token, mean {mean:,.0f}")
    short = {"cold": cold, "warm": warm, "cold, half of the hot set read ahead": warmed}
    return [speed_row(name, depth, samples, threads) for name, samples in short.items()]


def opened(folder: Path, depth: int) -> store.StoredPath:
    """The layer there; UserError where there is none, or another."""
    try:
        layer = store.open(folder)
    except ValueError as error:
        raise UserError(f"{error}.") from None
    found, wanted = (layer.trees, layer.depth, layer.d_in, layer.d_out), (1, depth, WIDTH, WIDTH)
    if found != wanted:
        raise UserError(
            f"{folder} holds a layer of trees, depth, d_in and d_out {found}, not {wanted}; name another folder."
        )
    return layer


@torch.inference_mode()
def seconds_per_token(layer: store.StoredPath, xs: Tensor) -> list[float]:
    """Of each token alone, in turn."""
    found = []
    for x in xs.split(1):
        started = time.perf_counter()
        layer(x)
        found.append(time.perf_counter() - started)
    return found


@torch.inference_mode()
def refuse_other_outputs(layer: store.StoredPath, xs: Tensor) -> None:
    """AssertionError unless the definition, which reads the visited rows alone too, gives the same."""
    expected = path_fff(xs, layer.w_in, layer.b_in, layer.w_out, layer.activation)
    nodes, _ = layer.path(xs)
    clear = (expected.scores.abs() > 1e-4).flatten(1).all(1)
    assert clear.any()
    assert torch.equal(nodes[clear], expected.nodes[clear])
    torch.testing.assert_close(layer(xs)[clear], expected.y[clear], rtol=1e-4, atol=1e-4)


def speed_row(name: str, depth: int, samples: list[float], threads: int) -> SpeedRow:
    """The row of one pass, a turn a token."""
    return SpeedRow(
        what="layer",
        name=f"stored, {name}",
        shape=f"1x{depth}",
        width=WIDTH,
        tokens=1,
        dtype="float32",
        mode="inference",
        inputs="skewed",
        median=statistics.median(samples),
        least=min(samples),
        most=max(samples),
        n=len(samples),
        **stamp(torch.device("cpu"), threads),
    )


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="bench.store", description=__doc__)
    parser.add_argument("folder", type=path_argument, help="of the layer, on the disk that is to be measured")
    parser.add_argument("--depth", type=int, default=14, help="14 is 200 MB, 20 is 13 GB (default 14)")
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--memory", type=int, default=64, help="MB that the process may own more (default 64)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--keep", action="store_true", help="leave the layer there; the next run opens it")
    parser.add_argument("--out", type=path_argument, help="JSON file to write")
    options = parser.parse_args(arguments)
    with door():
        number("--depth", options.depth, least=1, most=DEEPEST)
        number("--tokens", options.tokens, least=64)
        number("--memory", options.memory, least=16)
        number("--threads", options.threads, least=1, most=MOST_THREADS)
        check_out(options.out)
        check_writable(options.folder.absolute().parent, "folder", options.folder.name)
        made = not options.folder.exists()
        refuse_sizes(options.folder, options.depth, options.memory, made)
        try:
            rows = run_store(options.folder, options.depth, options.tokens, options.memory, options.threads)
        finally:
            if made and not options.keep:
                shutil.rmtree(options.folder, ignore_errors=True)
        if options.out:
            write_rows(options.out, rows)
            print(f"written    {options.out}")


def bytes_of(depth: int) -> int:
    """Of a layer's rows, without biases."""
    return nodes_in_tree(depth) * 2 * WIDTH * 4


def refuse_sizes(folder: Path, depth: int, memory: int, made: bool) -> None:
    """UserError where the limit would allow a copy of the layer, or the disk has no room for one that is to be made."""
    wanted, free = bytes_of(depth), shutil.disk_usage(folder.absolute().parent).free
    if wanted <= memory * MB:
        raise UserError(f"--memory {memory} is enough for the {wanted // MB} MB of --depth {depth}; go deeper.")
    if made and wanted > free:
        raise UserError(f"--depth {depth} takes {wanted // MB} MB, and {folder} has {free // MB}; go less deep.")


if __name__ == "__main__":
    main()
