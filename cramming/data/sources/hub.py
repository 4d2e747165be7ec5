"""Source `hub`: documents streamed from data sets of the Hugging Face hub. Not for pre-tokenised ones."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets

from cramming.data.config import HubDataset
from cramming.data.sources.source import Advance, Mended, no_progress
from cramming.errors import UserError
from cramming.files import sha256, short_hash


class HubSource:
    """One or several data sets; with several, the next document comes from the one with the least text so far."""

    def __init__(self, hub: list[HubDataset]) -> None:
        self.hub = hub
        self.versions: dict[str, str] = {}
        self.mended = Mended()

    def identity(self) -> Any:
        """The content of local folders."""
        return local_content(self.hub) or {}

    def check(self) -> None:
        """Open every data set and read a row (UserError)."""
        for dataset in self.hub:
            next(rows(dataset))
            self.versions[dataset.id] = hub_version(dataset)

    def total(self) -> int | None:
        """Unknown for a stream."""
        return None

    def documents(self, megabytes: float | None, advance: Advance = no_progress) -> Iterator[str]:
        """Documents of all data sets; with `megabytes`, the first ones."""
        streams = [texts(dataset, self.mended) for dataset in self.hub]
        taken = [0] * len(streams)
        live = set(range(len(streams)))
        while live and (megabytes is None or sum(taken) < megabytes * 1e6):
            turn = min(live, key=lambda index: (taken[index], index))
            document = next(streams[turn], None)
            if document is None:
                live.discard(turn)
            else:
                size = len(document.encode())
                taken[turn] += size
                advance(size)
                yield document

    def held_out(self) -> None:
        """Held out by hash."""

    def provenance(self) -> dict[str, Any]:
        """Ids and commits."""
        listed = [{"id": item.id, "config": item.config, "split": item.split} for item in self.hub]
        return {"source": "hub", "datasets": [{**item, "commit": self.versions[str(item["id"])]} for item in listed]}


def local_content(hub: list[HubDataset]) -> list[str]:
    """Hashes of the local folders' files. Of others the id must do: what they hold now takes a network to find out."""
    found = []
    for folder in (Path(dataset.id) for dataset in hub):
        if folder.is_dir():
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            found.append(short_hash([[path.relative_to(folder).as_posix(), sha256(path)] for path in files], 16))
    return found


def texts(dataset: HubDataset, mended: Mended) -> Iterator[str]:
    """Non-empty documents: `join_rows` successive rows each."""
    joined: list[str] = []
    for value in rows(dataset):
        if value is None:
            mended.rows_without_text += 1
            continue
        if not isinstance(value, str):
            raise UserError(f"data.hub: column {dataset.column!r} of {dataset.id} holds no text; set its column.")
        joined.append(mended.whole(value).strip())
        if len(joined) == dataset.join_rows:
            if document := "\n".join(filter(None, joined)):
                yield document
            joined = []
    if document := "\n".join(filter(None, joined)):
        yield document


def rows(dataset: HubDataset) -> Iterator[Any]:
    """The column's values, streamed in order; UserError when the hub, the data set or the column is not there."""
    # The hub's clients raise their own, the operating system's and plain errors, by version: one door translates all.
    try:
        stream = datasets.load_dataset(
            dataset.id, dataset.config, split=dataset.split, revision=dataset.revision, streaming=True
        )
        found = iter(stream)
        first = next(found, None)
    except Exception as error:
        raise unreachable(dataset, error) from error
    if first is None or dataset.column not in first:
        raise UserError(f"data.hub: {dataset.id} has no column {dataset.column!r}, but {sorted(first or {})}.")
    yield first[dataset.column]
    while True:
        try:
            row = next(found, None)
        except Exception as error:
            raise unreachable(dataset, error) from error
        if row is None:
            return
        yield row[dataset.column]


def unreachable(dataset: HubDataset, error: Exception) -> UserError:
    """One clear error for everything that can go wrong on the way to the hub."""
    what = " ".join(str(error).split())[:200]
    return UserError(
        f"data.hub: {dataset.id} (config {dataset.config}, split {dataset.split}) cannot be read "
        f"({type(error).__name__}: {what}). Check the id and the network, or use data=docs or data=text."
    )


def hub_version(dataset: HubDataset) -> str:
    """Commit of the data set, or "unknown" for local folders and hubs that do not say."""
    if dataset.revision:
        return dataset.revision
    try:
        from huggingface_hub import HfApi

        return str(HfApi().dataset_info(dataset.id, timeout=10).sha)
    except Exception:
        return "unknown"
