"""A preparation that several processes and machines share: agreed on, each part made once. Not what a part is."""

import contextlib
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from cramming.data.encode import Built
from cramming.data.pieces import Pieces
from cramming.data.shards import TOKENIZER
from cramming.errors import Passing
from cramming.files import new_folder, read_json, sha256, short_hash, write_json
from cramming.locks import Held, holder, locked

PLAN = "plan.json"
LIBRARIES = ("datasets", "pyarrow", "tokenizers")  # that read text, or make tokens of it
POLL_S = 0.5


class Recipe(Protocol):
    """How a configuration becomes a corpus, in steps that several processes share."""

    @property
    def parts(self) -> Sequence[Any]:
        """What is made apart; known when settled."""

    def check(self) -> None:
        """Find in advance what would fail late (UserError)."""

    def settle(self, known: Any) -> Any:
        """See Source."""

    def make_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer's folder."""

    def working(self, tokenizer: Path) -> AbstractContextManager[None]:
        """What `make` and `assemble` need; the tokenizer's folder is there."""

    def make(self, number: int, pieces: Pieces) -> None:
        """Make a part to its end, from where its pieces end."""

    def assemble(self, parts: Iterable[Pieces], folder: Path) -> Built:
        """Put all parts together in a folder of tokenizer and shards."""

    def provenance(self) -> dict[str, Any]:
        """See Source."""


def begin(recipe: Recipe, work: Path, final: Path) -> None:
    """Check the sources, and agree with all others on what is read, its parts and the tokenizer.

    Raises:
        UserError: other code or libraries began it.
    """
    recipe.check()
    with alone(work / ".begin.lock", "makes the tokenizer"):
        plan = work / PLAN
        known = read_json(plan) if plan.is_file() else {}
        settled = recipe.settle(known.get("settled"))
        found = {**maker(), "parts": len(recipe.parts), "settled": settled}
        if known:
            refuse_others(work, known, found)
        else:
            write_json(plan, found)
        if not (work / TOKENIZER).is_dir() and not final.is_dir():
            with new_folder(work / TOKENIZER) as beside:
                recipe.make_tokenizer(beside)


def refuse_others(work: Path, known: dict[str, Any], found: dict[str, Any]) -> None:
    """UserError when what began the work is not what goes on with it, naming the difference."""
    differing = [f"{name} {known.get(name)}, here {found[name]}" for name in found if known.get(name) != found[name]]
    if differing:
        raise Passing(
            f"{work} was begun by other code or libraries than these ({'; '.join(differing)}); finish it with those, "
            "or remove it."
        )


def maker() -> dict[str, str]:
    """What must be the same for all who make parts: the code of this room, and the libraries under it."""
    room = Path(__file__).parent
    code = [[path.relative_to(room).as_posix(), sha256(path)] for path in sorted(room.rglob("*.py"))]
    return {"cramming/data": short_hash(code)} | {name: metadata.version(name) for name in LIBRARIES}


def abandon(work: Path) -> None:
    """Remove what was finished, for it leads to nothing; not from under others, who will find that out."""
    if not any(holder(lock) for lock in (work / ".begin.lock", *(part / ".lock" for part in work.glob("part-*")))):
        clear(work)


def clear(work: Path) -> None:
    """Remove the folder, and the one for such where it was the last."""
    shutil.rmtree(work, ignore_errors=True)
    with contextlib.suppress(OSError):
        work.parent.rmdir()


def make_together(parts: Sequence[Pieces], make: Callable[[int], None], over: Callable[[], bool], what: Path) -> None:
    """Make all parts, but those that other processes are at; return when each is done, whoever made it, or when `over`.

    A part whose maker died is taken up by another process, where its last piece ended.

    Args:
        make: makes the part of a number; called with the part's lock held.
        over: whether the whole is there, and its parts may be gone.
        what: that is made of them, for messages.
    """
    told = False
    while not over() and (left := [number for number, part in enumerate(parts) if not part.done]):
        free = [claim(parts[number], number, make, over) for number in left]
        if any(free):
            continue
        if not told and (other := next(filter(None, (holder(parts[number].lock) for number in left)), None)):
            print(f"Other processes make the last parts of {what}; waiting for them ({other}).", file=sys.stderr)
            told = True
        time.sleep(POLL_S)


def claim(part: Pieces, number: int, make: Callable[[int], None], over: Callable[[], bool]) -> bool:
    """Make a part, unless another process is at it; whether none was."""
    try:
        with locked(part.lock, wait=False):
            if not part.done and not over():
                make(number)
                part.end()
    except Held:
        return False
    return True


@contextmanager
def alone(lock: Path, does: str) -> Iterator[None]:
    """Hold a lock; says so when another process has it."""
    if (other := holder(lock)) is not None:
        print(f"Another process {does}; waiting for it ({other}).", file=sys.stderr)
    with locked(lock, wait=True):
        yield
