"""Prepared data at an address, such as s3://bucket/prepared: put there, fetched, verified. Not for making them.

There as here the manifest is written last: a folder without one is not there.
"""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from cramming import remote
from cramming.data.shards import MANIFEST, checked_manifest, open_prepared
from cramming.errors import UserError
from cramming.files import commit_folder, read_json, sha256, write_atomic
from cramming.remote import RemoteFile

KEY = "data.remote"


def check_remote(address: str) -> None:
    """Find out, before long work, whether something can be written to an address (UserError)."""
    probe = f"{address.rstrip('/')}/.check-{os.urandom(4).hex()}"  # others may look at the same time
    remote.write(b"", probe, KEY)
    remote.remove(probe, KEY)


def fetch_prepared(address: str, final: Path) -> bool:
    """Fetch a prepared folder by its name to its place here; whether it is there. The caller holds its lock.

    What an interrupted fetching left is gone on with.

    Raises:
        UserError: the store cannot be reached, or what it holds is damaged.
    """
    folder = f"{address.rstrip('/')}/{final.name}"
    if not remote.exists(f"{folder}/{MANIFEST}", KEY):
        return False
    manifest = read_manifest(folder)
    beside = final.with_name(f".{final.name}.fetched")
    beside.mkdir(parents=True, exist_ok=True)
    total = sum(entry["bytes"] for entry in manifest["files"].values())
    with tqdm(desc="fetch", total=total, unit="B", unit_scale=True, file=sys.stderr, mininterval=0.5) as bar:
        for name, entry in manifest["files"].items():
            path = beside / name
            if not path.is_file() or path.stat().st_size != entry["bytes"] or sha256(path) != entry["sha256"]:
                path.parent.mkdir(parents=True, exist_ok=True)
                remote.fetch(f"{folder}/{name}", path, KEY)
                if sha256(path) != entry["sha256"]:
                    path.unlink()
                    raise damaged(f"{folder}/{name}", folder)
            bar.update(entry["bytes"])
    # As it was written: the file that is hashed by its content elsewhere is the same byte for byte.
    write_atomic(beside / MANIFEST, remote.content(f"{folder}/{MANIFEST}", KEY))
    commit_folder(beside, final)
    return True


def put_prepared(folder: Path, address: str) -> str:
    """Copy a prepared folder to an address, unless it is there; its address.

    Raises:
        UserError: the store cannot be reached, or holds other data under this name.
    """
    there = f"{address.rstrip('/')}/{folder.name}"
    if remote.exists(f"{there}/{MANIFEST}", KEY):
        found, own = (content["fingerprint"] for content in (read_manifest(there), read_json(folder / MANIFEST)))
        if found != own:
            raise UserError(f"{KEY}: {there} holds other data ({found}, here {own}); set data.name to a new name.")
        return there
    names = [*read_json(folder / MANIFEST)["files"], MANIFEST]
    for name in tqdm(names, desc="put", unit=" files", file=sys.stderr, mininterval=0.5):
        remote.put(folder / name, f"{there}/{name}", KEY)
    return there


def verify(place: str) -> Mapping[str, Any]:
    """The manifest of a prepared folder, here or at an address, after reading and hashing every file of it.

    Raises:
        UserError: naming the file that is missing or damaged, and the mend.
    """
    if not remote.is_remote(place):
        return open_prepared(Path(place)).manifest
    manifest = read_manifest(place)
    for name, entry in manifest["files"].items():
        if not remote.exists(f"{place}/{name}", KEY):
            raise damaged(f"{place}/{name}", place, "missing")
        if remote.hash_of(RemoteFile(f"{place}/{name}", KEY)) != entry["sha256"]:
            raise damaged(f"{place}/{name}", place)
    return manifest


def read_manifest(folder: str) -> dict[str, Any]:
    """The manifest at an address, checked; its names lead to no other folder."""
    path = f"{folder}/{MANIFEST}"
    try:
        content = json.loads(remote.content(path, KEY))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); {mend(folder)}") from None
    manifest = checked_manifest(content, path, mend(folder))
    for name in manifest["files"]:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise UserError(f"{folder}/{MANIFEST} names {name!r}, which is outside of it; {mend(folder)}")
    return manifest


def damaged(file: str, folder: str, what: str = "damaged: its hash is not the manifest's") -> UserError:
    """The error for a file that is not what was put there."""
    return UserError(f"{file} is {what}; {mend(folder)}")


def mend(folder: str) -> str:
    """What helps."""
    return f"remove {folder}, and put it there again with scripts/prepare.py {KEY}=... where the data are whole."
