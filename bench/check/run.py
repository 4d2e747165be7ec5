"""Runs the parts of the measurement, each for itself and for a limited time, into one file. Not what they measure."""

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.check.parts import PARTS
from bench.check.size import Size, full_size, small_size
from bench.check.table import lines, table
from bench.rows import run_name
from cramming.files import write_atomic

FILE = "gpu_check.json"
POLL_S = 1.0


def size_named(small: bool) -> Size:
    """The one or the other size."""
    return small_size() if small else full_size()


@dataclass
class Report:
    """The file of a measurement, written anew after every part and every row."""

    folder: Path
    small: bool
    started: float = field(default_factory=time.time)
    parts: dict[str, Any] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.time() - self.started

    def set(self, name: str, part: dict[str, Any]) -> None:
        """Put in what is known of a part."""
        self.parts[name] = part
        content = {
            "size": "small" if self.small else "full",
            "started": self.started,
            "seconds": self.seconds,
            "table": table(self.parts),
            "parts": self.parts,
        }
        # A figure may be no number where a kernel is wrong, so this is Python's JSON, which knows NaN.
        write_atomic(self.folder / FILE, json.dumps(content, indent=1) + "\n")

    @property
    def known(self) -> dict[str, Any]:
        """The rows of the parts so far."""
        return {name: part.get("rows", []) for name, part in self.parts.items()}


def check_machine(folder: Path, names: list[str], *, small: bool, seconds: float, isolated: bool) -> Report:
    """Run the parts one after the other; one that fails or takes too long is recorded, and the next begins.

    Args:
        seconds: for all parts together; what is left decides how long pretraining lasts.
        isolated: each part in a process of its own: a kernel that writes where it must not spoils that one alone.
    """
    run_name()  # the parts' processes inherit it
    report = Report(folder, small)
    for name in names:
        left = seconds - report.seconds
        limit = min(PARTS[name][1], left)
        print(f"{report.seconds:6.1f} s  {name} (at most {limit:.0f} s)", flush=True)
        if left <= 1:
            report.set(name, {"status": "no time left", "rows": []})
            continue
        if isolated:
            run_apart(report, name, limit)
        else:
            run_part(name, report.known, small, limit, functools.partial(report.set, name))
        part = report.parts[name]
        print(f"{report.seconds:6.1f} s  {name}: {part['status']}, {len(part['rows'])} rows", flush=True)
        if part.get("error"):
            print(part["error"], flush=True)
    print("\n" + lines(table(report.parts)), flush=True)
    return report


def run_part(name: str, known: Mapping[str, Any], small: bool, limit: float, tell: Any) -> None:
    """Run a part in this process; `tell` gets its state after every row and at the end."""
    started = time.perf_counter()
    rows: list[dict[str, Any]] = []
    part: dict[str, Any] = {"status": "running", "limit_s": limit, "rows": rows}
    tell(part)
    try:
        size = size_named(small).within(limit)
        for row in PARTS[name][0](size, known):
            rows.append(row)
            tell(part | {"seconds": time.perf_counter() - started})
        part["status"] = "done"
    except Exception:
        part |= {"status": "failed", "error": traceback.format_exc()}
    tell(part | {"seconds": time.perf_counter() - started})


def run_apart(report: Report, name: str, limit: float) -> None:
    """Run a part in another process, and end that when its time is over."""
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder, "given.json"), Path(folder, "found.json")
        job = {"name": name, "known": report.known, "small": report.small, "limit": limit}
        given.write_text(json.dumps(job))
        command = [sys.executable, "-m", "bench.check", str(given), str(found)]
        root = Path(__file__).resolve().parents[2]
        path = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
        # A group of its own, because compilers are processes too.
        process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": path}, process_group=0)
        status = None
        try:
            deadline, seen = time.monotonic() + limit, ""
            while (code := process.poll()) is None and status is None:
                time.sleep(POLL_S)
                seen = merge(report, name, found, seen)
                if time.monotonic() > deadline:
                    status = "out of time"
        finally:
            end_group(process)
        merge(report, name, found, seen)
        part = report.parts.get(name, {"rows": []})
        if part.get("status") in (None, "running"):
            report.set(name, part | {"status": status or f"process ended with {code}", "limit_s": limit})


def merge(report: Report, name: str, found: Path, seen: str) -> str:
    """Take over what the part's process has written, if that is new."""
    text = found.read_text() if found.exists() else ""
    if text != seen:
        report.set(name, json.loads(text))
    return text


def end_group(process: subprocess.Popen) -> None:
    """End a process and those that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
