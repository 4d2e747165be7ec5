"""Code in a Python of its own."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from cramming.train.history import read_history

TINY = Path(__file__).with_name("tiny.py")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
TIMED = ("train/tokens_per_s", "budget/hours", "fff/usage_time")  # what no two runs share


def in_a_new_process(code: str, **environment: str) -> str:
    """What the code prints, standard error included."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    return done.stdout + done.stderr


OTHER_MACHINE = """
from importlib import import_module
from fff.kernels.cpu import operators as cpu
import torch
tests = import_module({module!r})
assert cpu.available(torch.device("cpu"), torch.float32) is None
for shape in tests.SHAPES:
    tests.held("cpu", tests.operands(*shape))
    tests.held("cpu", tests.operands(*shape, dtype=torch.bfloat16))
print("right")
"""


def on_another_machine(module: str, flags: str, cache: Path) -> str:
    """What comes of a module's SHAPES, each `held` to the definition, with C++ compiled by these flags: "right"."""
    code = OTHER_MACHINE.format(module=module)
    return in_a_new_process(code, FFF_CXXFLAGS=flags, FFF_CACHE=str(cache))


def tiny_command(folder: Path, *settings: str, processes: int = 1) -> list[str]:
    """The command of a tiny run (see tests/helpers/tiny.py) in as many processes."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return [*launcher, str(TINY), str(folder), *settings]


def history_of(folder: Path) -> list[dict[str, Any]]:
    """The rows of the one run there, without what no two runs share."""
    (path,) = (folder / "outputs" / "runs").glob("*/metrics.jsonl")
    return [{key: value for key, value in row.items() if key not in TIMED} for row in read_history(path)]
