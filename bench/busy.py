"""What is left of pretraining beside other work on the cores: `python -m bench.busy`. Not how fast it is alone (model).

Threads of a team wait for each other at the end of every operation. How they wait is libgomp's affair, read once when
a process starts: spinning uses up the time slice that a thread needs when its work is there, and beside a neighbour
every operation may then wait for the end of the neighbour's slice. So each way of waiting is timed in processes of its
own, in turn, alone and beside as many neighbours as asked.
"""

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from bench.encoder import EAGER, PretrainingStep, Scale
from bench.options import check_out
from bench.rows import SpeedRow, stamp, write_rows
from cramming.checks import number
from cramming.door import door, path_argument
from cramming.errors import UserError
from cramming.machine import CPU
from cramming.parallel.world import open_world

ROOT = Path(__file__).resolve().parents[1]
SHAPE = "1x11"
WAYS: dict[str, dict[str, str]] = {
    "libgomp's own": {},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
}
SPIN = "import os\nwhile os.getppid() == {parent}: sum(range(10_000))"  # ends with this process
QUICKSTART: dict[str, Any] = {"hidden_size": 256, "heads": 4, "layers": 4, "vocab_size": 8192, "microbatch": 16}


def steps_per_second(seconds: float) -> float:
    """Pretraining steps a second of a model of its size, at torch's present number of threads."""
    world = open_world("precision", "fp32", cpu=True)
    step = PretrainingStep(SHAPE, scale(), EAGER, world)
    step(0)
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        step(done)
        done += 1
    return done / (time.perf_counter() - started)


def scale() -> Scale:
    """The sizes of the quickstart, with a tree as deep as that of the paper."""
    return Scale(CPU, (SHAPE,), **QUICKSTART)


@contextlib.contextmanager
def neighbours(count: int) -> Iterator[None]:
    """So many processes that use a core each as far as they get one."""
    work = [sys.executable, "-c", SPIN.format(parent=os.getpid())]
    running = [subprocess.Popen(work) for _ in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def alone_in_process(way: str, threads: int, seconds: float) -> float:
    """Steps a second, measured in a process that waits in this way; UserError with what it said where it failed."""
    unset = {key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    environment = unset | WAYS[way] | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "bench.busy", "--child", str(seconds)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise UserError(f"the process that was timed ended with status {ran.returncode}: {ran.stderr.strip()[-400:]}")
    return float(ran.stdout.split()[-1])


def measure(threads: int, beside: int, turns: int, seconds: float) -> list[SpeedRow]:
    """A row for each way of waiting, alone and beside neighbours; the ratio of the second is what is left."""
    found: dict[tuple[str, int], list[float]] = {(way, count): [] for way in WAYS for count in (0, beside)}
    with tqdm(total=turns * len(found), unit=" processes", desc="busy") as bar:
        for _ in range(turns):
            for (way, count), rates in found.items():
                with neighbours(count):
                    rates.append(alone_in_process(way, threads, seconds))
                bar.update()
    return [row(way, count, threads, found) for way, count in found]


def row(way: str, count: int, threads: int, found: dict[tuple[str, int], list[float]]) -> SpeedRow:
    """The row of one way of waiting, with so many neighbours."""
    chosen = scale()
    tokens = chosen.microbatch * chosen.length
    rates = sorted(tokens * rate for rate in found[way, count])
    median = statistics.median(rates)
    compared: dict[str, Any] = {}
    if count:
        quiet = tokens * statistics.median(found[way, 0])
        compared = {"opponent": name(way, 0), "ratio": median / quiet}
    return SpeedRow(
        what="busy machine",
        name=name(way, count),
        shape=SHAPE,
        tokens=tokens,
        sequences=chosen.microbatch,
        dtype="float32",
        mode="training",
        unit="tokens/s",
        median=median,
        least=rates[0],
        most=rates[-1],
        n=len(rates),
        **chosen.title,
        **compared,
        **stamp(CPU, threads),
    )


def name(way: str, count: int) -> str:
    """What a row is called."""
    return f"{way}, beside {count}" if count else f"{way}, alone"


def show(found: SpeedRow) -> None:
    """Print a row."""
    left = "" if found.ratio is None else f"   {found.ratio:4.0%} of alone"
    print(f"  {found.name:<36}{found.median:10,.0f} tokens/s ({found.least:,.0f} to {found.most:,.0f}){left}")


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="bench.busy", description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the training")
    parser.add_argument("--beside", type=int, default=1, help="processes that keep a core busy each")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each process")
    parser.add_argument("--out", type=path_argument, help="JSON file to write")
    parser.add_argument("--child", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child is not None:
        print(steps_per_second(options.child))
        return
    with door():
        for key in ("threads", "beside", "turns", "seconds"):
            number(f"--{key}", getattr(options, key), above=0)
        check_out(options.out)
        rows = measure(options.threads, options.beside, options.turns, options.seconds)
        for found in rows:
            show(found)
        if options.out:
            write_rows(options.out, rows)
            print(f"written    {options.out}")


if __name__ == "__main__":
    main()
