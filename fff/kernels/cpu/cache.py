"""Where the compiled C++ is kept, and that nobody else can have put it there. Not how it is compiled.

Loading a library runs its code. So its folder, and every folder above, must be such that only this user and root can
write there: a checksum beside a library proves nothing against somebody who may write both.
"""

import functools
import hashlib
import logging
import os
import stat
import tempfile
from pathlib import Path

log = logging.getLogger("fff")


class BuildError(RuntimeError):
    """The C++ cannot be built or loaded here; the message says why and what would help."""


def folder() -> Path:
    """Where compiled libraries are kept: $FFF_CACHE, else fff in $XDG_CACHE_HOME, else in ~/.cache.

    Where nobody has named a folder and there is no home to write to (a container with a user of no name), a folder in
    the system's temporary one takes its place, and a warning says so.

    Raises:
        BuildError: the folder cannot be made, or others than this user and root may write there.
    """
    if named := os.environ.get("FFF_CACHE"):
        return _private(Path(named), f"FFF_CACHE={named}")
    if (named := os.environ.get("XDG_CACHE_HOME")) and Path(named).is_absolute():  # the standard ignores others
        return _private(Path(named) / "fff", f"XDG_CACHE_HOME={named}")
    try:
        return _private(Path.home() / ".cache" / "fff", "the home folder's cache")
    except (BuildError, RuntimeError) as error:  # RuntimeError: neither HOME nor an entry among the users
        return _temporary(str(error))


@functools.cache
def _temporary(reason: str) -> Path:
    user = os.getuid() if os.name == "posix" else "user"
    found = _private(Path(tempfile.gettempdir()) / f"fff-{user}", "the temporary folder")
    log.warning("fff: %s; compiled kernels are kept in %s. Set FFF_CACHE to keep them elsewhere.", reason, found)
    return found


def _private(path: Path, named: str) -> Path:
    """The folder, made where it is missing, without symbolic links in its name."""
    try:
        path = path.expanduser()
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = path.resolve(strict=True)
        reason = next(filter(None, map(distrust, (path, *path.parents))), None)
    except (OSError, RuntimeError) as error:  # RuntimeError: ~ of nobody
        raise BuildError(f"{named}: {error}; set FFF_CACHE to a folder that you can write") from error
    if reason:
        raise BuildError(
            f"{named}: {reason}, so a library there could be anybody's; set FFF_CACHE to a folder of yours"
        )
    return path


def distrust(path: Path) -> str | None:
    """None, or how others than this user and root could change what the path holds.

    A folder above may be everybody's where it is sticky, as /tmp is: entries stay their owners'.
    """
    if os.name != "posix":
        return None
    found = path.lstat()
    shared_place = stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX
    if found.st_uid not in _owners():
        return f"{path} belongs to another user (uid {found.st_uid})"
    if stat.S_ISLNK(found.st_mode):
        return f"{path} is a symbolic link"
    if found.st_mode & stat.S_IWOTH and not shared_place:
        return f"everybody may write {path} (chmod go-w would mend it)"
    if found.st_mode & stat.S_IWGRP and not shared_place and not _of_one_user(found.st_gid):
        return f"a group may write {path} (chmod go-w would mend it)"
    return None


@functools.cache
def _owners() -> frozenset[int]:
    """Who may own what is trusted: this user and root.

    In a user namespace, as containers without privileges have, what root owns outside shows as the overflow user's.
    """
    try:
        whole = Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]
        unmapped = () if whole else (int(Path("/proc/sys/kernel/overflowuid").read_text()),)
    except (OSError, ValueError):  # no Linux
        unmapped = ()
    return frozenset((0, os.getuid(), *unmapped))


def _of_one_user(gid: int) -> bool:
    """Whether it is this user's own group, as systems make one for each user whose new files its group may write."""
    import grp
    import pwd

    try:
        name = pwd.getpwuid(os.getuid()).pw_name
        members = {*grp.getgrgid(gid).gr_mem, *(user.pw_name for user in pwd.getpwall() if user.pw_gid == gid)}
    except KeyError:
        return False
    return members <= {name}


def checksum_of(path: Path) -> Path:
    """The file beside a library that has its checksum."""
    return path.with_suffix(".sha256")


def whole(path: Path) -> bool:
    """Whether the library is there, as it was built, and nobody else's."""
    try:
        built = hashlib.sha256(path.read_bytes()).hexdigest() == checksum_of(path).read_text()
        return built and distrust(path) is None
    except (OSError, UnicodeDecodeError):
        return False
