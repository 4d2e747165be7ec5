"""What SLURM's queue says of one's jobs, and which job a run waits in: by `squeue` alone. Not who submits (cluster).

submitit asks `sacct`, which needs a data base that not every SLURM has, and up to ten minutes.
"""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cramming.errors import UserError
from cramming.files import read_json, write_json
from cramming.plan import Planned

ANSWER_S = 60.0
# A job that is in none of these has ended; PREEMPTED and REQUEUED are those that the queue starts again.
ENDED = (
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "REVOKED",
    "TIMEOUT",
)


@dataclass(frozen=True)
class Queued:
    """A job of the queue: its name, a state, and why it waits."""

    name: str
    state: str
    reason: str

    @property
    def ended(self) -> bool:
        """Whether it will not go on."""
        return self.state in ENDED

    def __str__(self) -> str:
        return self.state + (f" ({self.reason})" if self.reason not in ("", "None") else "")


def check_present() -> None:
    """UserError where this machine cannot submit jobs."""
    if shutil.which("sbatch") is None:
        raise UserError(
            "--launcher submitit finds no sbatch here; start it where SLURM's commands are, or give it "
            "--launch cluster=local for processes of this machine."
        )
    try:
        _answer("sinfo", "--noheader")
    except OSError as error:
        raise UserError(f"--launcher submitit: {error}; is this machine one of SLURM's?") from None


def queue() -> dict[str, Queued]:
    """Job's number -> what the queue knows of it: mine, those that ended some minutes ago too.

    Raises:
        OSError: it does not answer, or is not on this machine.
    """
    lines = _answer("squeue", "--me", "--noheader", "--states=all", "--format=%i|%T|%r|%j").splitlines()
    found = [line.strip().split("|", 3) for line in lines if line.count("|") >= 3]
    return {number: Queued(name, state, reason) for number, state, reason, name in found}


def _answer(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_S)
    except subprocess.TimeoutExpired:
        raise OSError(f"{command[0]} did not answer for {ANSWER_S:.0f} s") from None
    if done.returncode:
        raise OSError(f"{command[0]}: {' '.join(done.stderr.split())[-200:] or f'status {done.returncode}'}")
    return done.stdout


def keep_job(run: Planned, number: str, name: str) -> None:
    """Write down which job a run is in, for who goes on when this process is killed."""
    write_json(_file(run), {"job": number, "name": name})


def forget_job(run: Planned) -> None:
    """The job has ended."""
    _file(run).unlink(missing_ok=True)


def job_of(run: Planned, jobs: dict[str, Queued]) -> tuple[str, Queued] | None:
    """Number and state of the job in which a run waits or is trained; None where there is none any more."""
    if not _file(run).exists():
        return None
    kept: dict[str, Any] = read_json(_file(run))
    job = jobs.get(str(kept.get("job")))
    return (str(kept["job"]), job) if job is not None and not job.ended and job.name == kept.get("name") else None


def was_queued(run: Planned) -> bool:
    """Whether a job of it has been written down."""
    return _file(run).exists()


def _file(run: Planned) -> Path:
    return run.log.with_suffix(".job.json")
