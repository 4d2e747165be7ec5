"""Source `hub`: documents streamed from data sets of the Hugging Face hub. Not for pre-tokenised ones."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets

from cramming.data.config import HubDataset
from cramming.data.sources.source import MOST_PARTS, Advance, Mended, Part, Reading, no_progress
from cramming.errors import Passing, UserError, one_line
from cramming.files import sha256, short_hash

UNKNOWN = "unknown"


class HubSource:
    """One or several data sets; with several, the next document comes from the one with the least text so far."""

    def __init__(self, hub: list[HubDataset]) -> None:
        self.hub = hub
        self.settled: dict[str, Any] = {"commits": [], "files": []}

    def identity(self) -> Any:
        """The content of local folders."""
        return local_content(self.hub) or {}

    def check(self) -> None:
        """Open every data set and read a row (UserError)."""
        for dataset in self.hub:
            next(iter(Rows(dataset)))

    def settle(self, known: Any) -> Any:
        """Commits of the data sets, and the number of their files. What is known is streamed, not what is newest."""
        self.settled = settled(self.hub, known)
        return self.settled

    def total(self) -> int | None:
        """Unknown for a stream."""
        return None

    def parts(self, megabytes: float | None) -> Sequence[Part]:
        """Documents of all data sets; with `megabytes`, the first ones.

        Files of one set are read apart. One part it is where what comes next depends on what came before: of several
        sets, of rows that are joined, and where the first megabytes are all.
        """
        commits, files = self.settled["commits"] or [None] * len(self.hub), self.settled["files"]
        pinned = list(zip(self.hub, commits, strict=True))
        if len(self.hub) > 1 or self.hub[0].join_rows > 1 or megabytes is not None or not files:
            return [HubPart([Rows(dataset, commit) for dataset, commit in pinned], megabytes)]
        (dataset, commit), count = pinned[0], min(files[0], MOST_PARTS)
        return [HubPart([Rows(dataset, commit, (number, count))], None) for number in range(count)]

    def held_out(self, mended: Mended | None = None) -> None:
        """Held out by hash."""

    def provenance(self) -> dict[str, Any]:
        """Ids and commits."""
        return {"source": "hub", "datasets": listed(self.hub, self.settled)}


class HubPart:
    """Documents of one or several streams."""

    def __init__(self, streams: Sequence["Rows"], megabytes: float | None) -> None:
        self.streams, self.megabytes = streams, megabytes

    def read(self, state: Any = None, advance: Advance = no_progress) -> Reading:
        """See Part; the state holds those of the streams, and how much text each has given."""
        rows = [each.again() for each in self.streams]
        taken = [0] * len(rows)
        live = set(range(len(rows)))
        mended = Mended()
        if state is not None:
            taken, live = list(state["taken"]), set(state["live"])
            for each, begin in zip(rows, state["streams"], strict=True):
                each.go_to(begin)

        def documents() -> Iterator[str]:
            streams = [texts(each, mended) for each in rows]
            while live and (self.megabytes is None or sum(taken) < self.megabytes * 1e6):
                turn = min(live, key=lambda index: (taken[index], index))
                document = next(streams[turn], None)
                if document is None:
                    live.discard(turn)
                else:
                    size = len(document.encode())
                    taken[turn] += size
                    advance(size)
                    yield document

        def place() -> dict[str, Any]:
            return {"streams": [each.state() for each in rows], "taken": list(taken), "live": sorted(live)}

        return Reading(documents(), place, mended)


class Rows:
    """A column's values, streamed in order; goes on exactly where it was, by the state that `datasets` keeps.

    Args:
        commit: of the data set; None takes the configuration's, or the newest.
        share: (number, count): of the set's files, cut into `count` runs, the run of this number.

    Raises:
        UserError: when iterated; the hub, the data set or the column is not there.
    """

    def __init__(self, dataset: HubDataset, commit: str | None = None, share: tuple[int, int] = (0, 1)) -> None:
        self.dataset, self.commit, self.share = dataset, commit, share
        self.start: Any = None
        self.stream: Any = None

    def again(self) -> "Rows":
        """The same from the beginning."""
        return Rows(self.dataset, self.commit, self.share)

    def go_to(self, state: Any) -> None:
        """Begin where another one's `state` was; None is the beginning."""
        self.start = state

    def state(self) -> Any:
        """Where the row after the last given one stands, JSON-able."""
        return self.start if self.stream is None else self.stream.state_dict()

    def __iter__(self) -> Iterator[Any]:
        column = self.dataset.column
        # The hub's clients raise their own, the operating system's and plain errors, by version: one door for all.
        try:
            self.stream = opened(self.dataset, self.commit)
            if self.share[1] > 1:
                self.stream = self.stream.shard(num_shards=self.share[1], index=self.share[0])
            if self.start is not None:
                self.stream.load_state_dict(self.start)
            found = iter(self.stream)
            row = next(found, None)
        except Exception as error:
            raise unreachable(self.dataset, error) from error
        if (row is None and self.start is None and self.share[1] == 1) or (row is not None and column not in row):
            raise UserError(f"data.hub: {self.dataset.id} has no column {column!r}, but {sorted(row or {})}.")
        while row is not None:
            yield row[column]
            try:
                row = next(found, None)
            except Exception as error:
                raise unreachable(self.dataset, error) from error


def opened(dataset: HubDataset, commit: str | None = None) -> Any:
    """The data set as a stream of rows."""
    revision = dataset.revision if commit in (None, UNKNOWN) else commit
    return datasets.load_dataset(dataset.id, dataset.config, split=dataset.split, revision=revision, streaming=True)


def settled(hub: list[HubDataset], known: Any) -> dict[str, Any]:
    """Commits of the data sets, and how many files each has; those known before, where there are.

    Raises:
        UserError: a data set has another number of files than was known.
    """
    commits = list(known["commits"]) if known else [hub_version(dataset) for dataset in hub]
    files = []
    for dataset, commit in zip(hub, commits, strict=True):
        try:
            files.append(int(opened(dataset, commit).num_shards))
        except Exception as error:
            raise unreachable(dataset, error) from error
    if known and files != known["files"]:
        raise Passing(
            f"data.hub: {', '.join(dataset.id for dataset in hub)} changed since its preparation began (files: "
            f"{known['files']}, now {files}); set revision to a commit, and data.name to a new one."
        )
    return {"commits": commits, "files": files}


def listed(hub: list[HubDataset], found: dict[str, Any]) -> list[dict[str, Any]]:
    """The data sets with their commits, for the manifest."""
    return [
        {"id": item.id, "config": item.config, "split": item.split, "commit": commit}
        for item, commit in zip(hub, found["commits"], strict=True)
    ]


def local_content(hub: list[HubDataset]) -> list[str]:
    """Hashes of the local folders' files. Of others the id must do: what they hold now takes a network to find out."""
    found = []
    for folder in (Path(dataset.id) for dataset in hub):
        if folder.is_dir():
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            found.append(short_hash([[path.relative_to(folder).as_posix(), sha256(path)] for path in files], 16))
    return found


def texts(rows: Rows, mended: Mended) -> Iterator[str]:
    """Non-empty documents: `join_rows` successive rows each."""
    dataset = rows.dataset
    joined: list[str] = []
    for value in rows:
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


def unreachable(dataset: HubDataset, error: Exception) -> UserError:
    """One clear error for everything that can go wrong on the way to the hub."""
    what = one_line(error)
    return Passing(
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
        return UNKNOWN
