"""Workers that are killed and come back: how long the others stand still, and what it does to the loss. A log.

`python -m bench.faults --kills 10 --record NAME key=value ...` trains experiment=apart with three workers that meet by
a lighthouse (needs torchft): undisturbed, and with kill -9 of one of them at random moments, which is started again.
What a worker would have learnt while it is away is lost; how much that costs by itself tell undisturbed runs of two
workers (--fewer), of as many steps. `key=value` goes to scripts/pretrain.py, as data.files=[...].
"""

import argparse
import contextlib
import json
import math
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from bench.rows import stamp
from cramming.door import door, path_argument
from cramming.errors import UserError
from cramming.files import sha256, write_json
from cramming.parallel.elastic import ANSWER_S
from cramming.train.history import read_history

WORKERS = 3
SILENT_S, LATE_S = 5.0, 10.0  # after which a worker is thought dead; for which a meeting waits for one that is alive
BOUND_S = SILENT_S + LATE_S + ANSWER_S
PAUSE_S = (0.0, 5.0)  # from a return to the next kill, drawn evenly
MICROBATCH = 8  # sequences of each worker in a step
START_S = 600.0  # in which a worker has to be there
LOOK_S = 0.2
SETTINGS = (
    *("train.sync=outer", "train.outer_steps=20", "train.log_steps=20", f"train.microbatch={MICROBATCH}"),
    *("train.budget_tokens=null", "train.budget_steps=1600", "train.validations=20", "train.valid_sequences=512"),
    *("train.patience_minutes=5", "train.usage_sequences=8"),
)
LIGHTHOUSE = (
    "import signal, sys; from torchft.coordination import LighthouseServer; bind, least, late, silent = sys.argv[1:]; "
    "kept = LighthouseServer(bind=bind, min_replicas=int(least), join_timeout_ms=int(late), "
    "heartbeat_timeout_ms=int(silent)); print('ready', flush=True); signal.pause()"
)


@contextlib.contextmanager
def lighthouse(least: int, *, silent_s: float = SILENT_S, late_s: float = LATE_S) -> Iterator[str]:
    """Address of one in a process of its own, which calls a meeting of as many workers at least."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    options = [f"[::]:{port}", str(least), f"{late_s * 1000:.0f}", f"{silent_s * 1000:.0f}"]
    command = [sys.executable, "-c", LIGHTHOUSE, *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield f"http://localhost:{port}"
    finally:
        process.kill()
        process.wait()


def command(folder: Path, address: str, number: int, of: int, seed: int, overrides: list[str]) -> list[str]:
    """Of one worker."""
    return [
        *(sys.executable, "scripts/pretrain.py", "experiment=apart", f"seed={seed}", *SETTINGS),
        *(f"train.batch={MICROBATCH * of}", *overrides),
        *(f"output_dir={folder}", f"results_dir={folder / 'results'}"),
        *(f"train.lighthouse={address}", f"train.workers={of}", f"train.worker={number}"),
    ]


class Group:
    """The workers of one run, and what is seen of them from outside: rows of their histories, also of those lost."""

    def __init__(self, folder: Path, address: str, seed: int, overrides: list[str], workers: int = WORKERS) -> None:
        self.folder, self.address, self.seed, self.overrides = folder, address, seed, overrides
        self.numbers = range(workers)
        self.began, self.last, self.longest = time.monotonic(), 0.0, 0.0
        self.step = 0  # of the last meeting that is known of
        self.rows: dict[int, dict[int, dict[str, Any]]] = {number: {} for number in self.numbers}
        folder.mkdir()
        (folder.parent / "data").mkdir(exist_ok=True)
        (folder / "data").symlink_to(folder.parent / "data")  # prepared once for all runs
        self.running = {number: self.start(number) for number in self.numbers}

    def start(self, number: int) -> subprocess.Popen[bytes]:
        """A worker's process."""
        with open(self.folder / f"worker-{number}.txt", "ab") as log:
            words = command(self.folder, self.address, number, len(self.numbers), self.seed, self.overrides)
            return subprocess.Popen(words, stdout=log, stderr=log)

    @property
    def now(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.began

    def path(self, number: int) -> Path | None:
        """The worker's own folder, when it is there."""
        found = sorted(self.folder.glob("runs/*"))
        return (found[0] / f"worker-{number}" if number else found[0]) if found else None

    def look(self) -> None:
        """Read what the workers have done by now, and how long the furthest has stood still."""
        for number in self.numbers:
            if (path := self.path(number)) and (path / "metrics.jsonl").exists():
                with contextlib.suppress(UserError):  # read while a row was being written
                    self.rows[number] |= {row["step"]: row for row in read_history(path / "metrics.jsonl")}
        furthest = max((step for rows in self.rows.values() for step in rows), default=0)
        if furthest > self.step:
            if self.step:
                self.longest = max(self.longest, self.now - self.last)
            self.step, self.last = furthest, self.now

    def wait(self, until: Callable[[], bool], seconds: float = START_S) -> bool:
        """Look until something is so; False where all have ended, or nothing has been so for as long."""
        deadline = self.now + seconds
        while not until():
            if self.now > deadline or all(each.poll() is not None for each in self.running.values()):
                return False
            self.look()
            time.sleep(LOOK_S)
        return True

    def reached(self, number: int, step: int) -> bool:
        """Whether a worker has met the others after a step."""
        return max(self.rows[number], default=0) > step

    def kill(self, number: int) -> dict[str, Any] | None:
        """kill -9 a worker and start it again; what was seen of it, None where the run ended meanwhile."""
        seen = {"worker": number, "at_s": round(self.now, 1), "after_step": self.step}
        self.running[number].send_signal(signal.SIGKILL)
        self.running[number].wait()
        self.look()
        before = {step: row for step, row in self.rows[number].items() if step <= self.step}
        self.rows[number], step = {}, self.step  # so that what it does next is seen
        self.running[number] = self.start(number)
        back = self.wait(lambda: self.reached(number, step))
        self.rows[number] = before | self.rows[number]
        at = next((step for step in sorted(self.rows[number]) if step > seen["after_step"]), None)
        return seen | {"back_s": round(self.now, 1), "back_at_step": at} if back else None

    def end(self) -> dict[str, Any]:
        """Wait for the end; all that was seen."""
        self.wait(lambda: False, seconds=3600.0)
        self.look()
        statuses = [self.running[number].wait() for number in self.numbers]
        models = [path / "model" / "model.safetensors" for number in self.numbers if (path := self.path(number))]
        hashes = {sha256(model) for model in models if model.exists()}
        rows = [row for own in self.rows.values() for row in own.values()]
        curves = [
            {step: row["valid/loss"] for step, row in own.items() if "valid/loss" in row} for own in self.rows.values()
        ]
        curve = {step: curve[step] for curve in curves for step in curve}
        votes = {step: row["exchange/workers"] for own in self.rows.values() for step, row in own.items()
                 if "exchange/workers" in row}  # fmt: skip
        return {
            "workers": len(self.numbers),
            "seed": self.seed,
            "learnt": round(sum(votes.values()) / len(self.numbers) / len(votes), 4),
            "seconds": round(self.now, 1),
            "exit_statuses": statuses,
            "weights_alike": len(hashes) == 1 and len(models) == len(self.numbers),
            "longest_without_a_meeting_s": round(self.longest, 1),
            "longest_meeting_s": round(max(row["exchange/seconds"] for row in rows if "exchange/seconds" in row), 2),
            "losses_alike": all(abs(value - curve[step]) < 1e-5 for own in curves for step, value in own.items()),
            "all_finite": all(math.isfinite(value) for row in rows for value in row.values() if value is not None),
            "curve": {str(step): round(curve[step], 4) for step in sorted(curve)},
        }


def run(folder: Path, seed: int, kills: int, overrides: list[str], workers: int = WORKERS) -> dict[str, Any]:
    """One training, with as many kills of one of its workers; `learnt` is the share of their work that was averaged."""
    draw, seen = random.Random(seed), []
    with lighthouse(2) as address:
        group = Group(folder, address, seed, overrides, workers)
        try:
            group.wait(lambda: all(group.reached(number, 0) for number in group.numbers))
            for _ in range(kills):
                pause = group.now + draw.uniform(*PAUSE_S)
                if not group.wait(lambda: group.now > pause):  # noqa: B023
                    break
                if (event := group.kill(draw.randrange(workers))) is None:
                    break
                seen.append(event)
                print(json.dumps(event), flush=True)
            found = group.end()
        finally:
            for process in group.running.values():
                process.kill()
    return {"kills": seen, **found}


def outside(curve: dict[str, float], others: list[dict[str, float]]) -> float:
    """How far (nats) a curve lies above the highest or below the lowest of others, at the worst common step."""
    worst = 0.0
    for step, value in curve.items():
        if beside := [other[step] for other in others if step in other]:
            worst = max(worst, value - max(beside), min(beside) - value)
    return round(worst, 4)


def losses(runs: list[dict[str, Any]]) -> list[float]:
    """Their last validation losses, nats."""
    return [list(each["curve"].values())[-1] for each in runs]


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3], help="of the undisturbed runs")
    parser.add_argument("--disturbed", type=int, nargs="+", default=[0, 1], help="seeds of those with kills")
    parser.add_argument("--fewer", type=int, nargs="*", default=[0, 1], help="seeds of those of two workers")
    parser.add_argument("--record", type=path_argument, help="file for the log (JSON)")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args()
    with door(), tempfile.TemporaryDirectory() as temporary:
        stamped, runs = stamp(torch.device("cpu"), 1), []
        wanted = [(WORKERS, seed, arguments.kills) for seed in arguments.disturbed]
        wanted += [(WORKERS, seed, 0) for seed in arguments.seeds] + [
            (WORKERS - 1, seed, 0) for seed in arguments.fewer
        ]
        for workers, seed, kills in wanted:
            folder = Path(temporary) / f"workers-{workers}-seed-{seed}-kills-{kills}"
            runs.append(run(folder, seed, kills, arguments.overrides, workers))
            print(json.dumps(runs[-1]), flush=True)
        killed = [each for each in runs if each["kills"]]
        calm = [each for each in runs if not each["kills"] and each["workers"] == WORKERS]
        curves = [each["curve"] for each in calm]
        found = {
            "stated_s": {"silent": SILENT_S, "late": LATE_S, "answer": ANSWER_S, "together": BOUND_S},
            "outside_the_undisturbed_nats": [outside(each["curve"], curves) for each in killed],
            "last_losses_nats": {
                "killed": losses(killed),
                "undisturbed": losses(calm),
                "fewer": losses([each for each in runs if each["workers"] < WORKERS]),
            },
            "settings": [*SETTINGS, *(each for each in arguments.overrides if not each.startswith("data."))],
            "stamp": stamped,
            "runs": runs,
        }
        print(json.dumps(found, indent=1))
        if arguments.record:
            write_json(arguments.record, found)


if __name__ == "__main__":
    main()
