"""The door of every command: what went wrong leaves as one line and an exit status. Not where errors are found.

Exit status 2 is a mistake or a machine that the user can mend, 75 that another process does it already, 130 Ctrl-C; a
traceback means a bug of this project.
"""

import errno
import os
import signal
import sys
import threading
from argparse import ArgumentTypeError
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from cramming.checks import at_home
from cramming.errors import UserError, one_line
from cramming.files import is_full_disk

INTERRUPTED = 128 + signal.SIGINT
# What the system says -> what helps.
MENDS = {
    errno.EACCES: "choose another folder, or its permissions",
    errno.EPERM: "choose another folder, or its permissions",
    errno.EROFS: "choose a folder on a disk that can be written",
    errno.ENOENT: "give a path that exists",
    errno.ENOTDIR: "a part of the path is a file; choose another",
    errno.EISDIR: "it is a folder; name a file",
    errno.EEXIST: "it is a file where a folder is needed; choose another path",
    errno.ENAMETOOLONG: "choose shorter names",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.EIO: "the disk has an error; choose another",
}
# How libraries of C++ say that memory was refused.
NO_MEMORY = ("can't allocate memory", "CUDA out of memory", "bad_alloc", "Cannot allocate memory")


def explained(error: BaseException) -> str | None:
    """The one line that tells a user of an error, or None for what only a programmer can mend."""
    if isinstance(error, UserError):
        return str(error)
    if is_full_disk(error):
        return f"a disk is full ({_words(error)}); free some space, or choose other folders, and run the same command."
    for cause in _chain(error):
        if isinstance(cause, MemoryError) or any(words in str(cause) for words in NO_MEMORY):
            return f"there is not enough memory ({_words(cause)}); choose smaller sizes, and run the same command."
        if isinstance(cause, OSError) and cause.errno is not None and not isinstance(cause, ConnectionError):
            mend = MENDS.get(cause.errno, "see what it names")
            return f"{_words(cause)}; {mend}, and run the same command."
    return None


def status_of(error: BaseException) -> int:
    """The exit status of what a user can mend."""
    return error.status if isinstance(error, UserError) else UserError.status


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _words(error: BaseException) -> str:
    """What the error says, on one line; of the system's errors the file and the reason."""
    if isinstance(error, OSError) and error.filename is not None:
        files = " -> ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
        return f"{files[:300]}: {error.strerror}"
    return one_line(error, 300) or type(error).__name__


def tell(text: str) -> None:
    """Print an error's line to stderr, whatever characters that can show, and not into a progress bar."""
    line = f"error: {text}"
    try:
        tqdm.write(line, file=sys.stderr)
    except UnicodeEncodeError:
        tqdm.write(line.encode("ascii", "backslashreplace").decode(), file=sys.stderr)


def path_argument(text: str) -> Path:
    """A path of a command line, as argparse's `type`: no shell reads the ~ in --out=~/page.html."""
    try:
        return Path(at_home(text, "the path"))
    except UserError as error:
        raise ArgumentTypeError(str(error)) from None


@contextmanager
def door() -> Iterator[None]:
    """Around a command: errors that a user can mend end in one line, and Ctrl-C in none."""
    tolerant_streams()
    own_bars()
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # as scripts leave it while they import
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        print("\nstopped by Ctrl-C", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # the reader of our output left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(INTERRUPTED)
    except Exception as error:
        text = explained(error)
        if text is None or os.environ.get("FFF_TRACEBACK"):
            raise
        tell(text)
        sys.exit(status_of(error))


def tolerant_streams() -> None:
    """Let no character of a summary end a run: what the terminal cannot show is printed escaped."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def own_bars() -> None:
    """Give this process's progress bars a lock of its own.

    tqdm's is one with all children that were forked, and stays locked for ever when one is killed while it draws.
    """
    tqdm.set_lock(threading.RLock())
