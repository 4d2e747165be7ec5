"""Locks that processes of several machines share, by files alone: held, by whom, alive? Not what they keep apart.

flock ends with the machine, and some shared file systems do not know it. A lock `.x.lock` is the newest of the files
`.x.1.lock`, `.x.2.lock`, ...: whoever makes the next one with O_EXCL, which NFS keeps too, has it. The holder touches
it; one that is not touched any more, whose process is gone, or that was given back (a time of 1970) may be followed.
"""

import contextlib
import json
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from cramming.errors import UserError

BEAT_S = 10.0  # between two touches
DEAD_AFTER_S = 120.0  # without one, for who cannot see the process; also NFS tells of a touch only after some seconds
POLL_S = 0.1


@dataclass(frozen=True)
class Holder:
    """Who made a lock's file.

    Attributes:
        place: whose processes can see one another: a machine since its start, and its name space of processes.
        born: when the process began, in the machine's own count, so that a later one of its number is another.
        since: when it took the lock [s since 1970].
    """

    host: str
    process: int
    place: str
    born: str
    since: float

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.since))
        return f"{self.host}, process {self.process}, since {since}"

    @property
    def gone(self) -> bool | None:
        """Whether the process has ended; None where that cannot be seen from here."""
        return None if not self.place or self.place != here() else born(self.process) != self.born


class Held(UserError):
    """Another process holds the lock that was not to be waited for."""

    status = 75  # EX_TEMPFAIL of sysexits.h: not now


def holder(path: Path) -> Holder | None:
    """Who holds a lock now; None where nobody does, or nobody alive."""
    return _living(path, _newest(path))


@contextmanager
def locked(path: Path, *, wait: bool, busy: str = "") -> Iterator[None]:
    """Hold an exclusive lock, against all processes of all machines that see its folder, which is made if missing.

    A process that ends without a word, and a machine that disappears, lose it: at once where it can be seen, else after
    DEAD_AFTER_S. A holder that was halted for so long that another has taken its place ends as soon as it goes on.

    Raises:
        Held: with wait=False, somebody has it; says `busy` and who.
    """
    while not isinstance(mine := _take(path), int):
        if not wait:
            raise Held(f"{busy or f'{path} is locked by another process.'} ({mine})")
        time.sleep(POLL_S)
    ended = threading.Event()
    beat = threading.Thread(target=_beat, args=(path, mine, ended), daemon=True)
    beat.start()
    try:
        yield
    finally:
        ended.set()
        beat.join()
        with contextlib.suppress(OSError):  # followed, or its folder is gone
            os.utime(_file(path, mine), (0, 0))


def _take(path: Path) -> int | Holder:
    """The number of this process's file if it has the lock now, else who has it."""
    least = 0
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        number = max(_newest(path), least)
        if (found := _living(path, number)) is not None:
            return found
        least = number + 1
        try:
            handle = os.open(_file(path, least), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except (FileExistsError, FileNotFoundError):  # somebody was faster, or has just removed the folder
            continue
        try:
            own = Holder(socket.gethostname(), os.getpid(), here(), born(os.getpid()) or "", time.time())
            with open(handle, "w") as file:
                json.dump(asdict(own), file)
        except BaseException:  # a full disk
            _file(path, least).unlink(missing_ok=True)
            raise
        if _newest(path) > least:  # our number was looked up long ago, and is one that was cleared away
            _file(path, least).unlink(missing_ok=True)
            continue
        for old in _numbers(path):
            if old < least:
                _file(path, old).unlink(missing_ok=True)
        return least


def _beat(path: Path, number: int, ended: threading.Event) -> None:
    """Touch the lock's file until the end; end the process where another one has followed it."""
    while not ended.wait(BEAT_S):
        with contextlib.suppress(OSError):  # a shared folder that does not answer for a while
            if _newest(path) > number:
                print(f"error: {path} has passed to another process ({holder(path)}), for this one gave no sign of "
                      f"life for {DEAD_AFTER_S:.0f} s; it ends here.", file=sys.stderr, flush=True)  # fmt: skip
                os._exit(Held.status)  # whatever it wrote from here on would be written over the other's
            os.utime(_file(path, number))


def _living(path: Path, number: int) -> Holder | None:
    """Who made the lock's file of a number, if it is there and was not given back, and its maker may be alive."""
    try:
        with open(_file(path, number)) as file:  # opened, for NFS then asks how old it is
            touched, text = os.fstat(file.fileno()).st_mtime, file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        values = json.loads(text)
        found = Holder(**{item.name: values[item.name] for item in fields(Holder)})
    except (ValueError, KeyError, TypeError):  # just being written
        found = Holder("an unknown machine", 0, "", "", touched)
    if touched == 0 or found.gone:
        return None
    return found if found.gone is False or _now(path.parent) - touched < DEAD_AFTER_S else None


def _file(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name.removesuffix('.lock')}.{number}.lock")


def _numbers(path: Path) -> list[int]:
    before, after = f"{path.name.removesuffix('.lock')}.", ".lock"
    try:
        names = os.listdir(path.parent)
    except (FileNotFoundError, NotADirectoryError):
        return []
    middles = [each[len(before) : -len(after)] for each in names if each.startswith(before) and each.endswith(after)]
    return [int(middle) for middle in middles if middle.isdecimal()]


def _newest(path: Path) -> int:
    return max(_numbers(path), default=0)


def _now(folder: Path) -> float:
    """The time by the clock that stamps a folder's files, which may be a server's."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".now.", suffix=".lock") as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:  # somebody who may only look
        return time.time()


def here() -> str:
    """The place of this process; empty where it cannot be told."""
    try:
        started = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {started} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def born(process: int) -> str | None:
    """When a process of this place began; None for one that is not there, or is and has ended."""
    try:
        state, *rest = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else rest[18]
