"""A run before and after it runs: names from what matters, finished?, saved. Not what a record holds (record.py).

A name ends in a hash. The keys that the first results were named by always enter it; a key added later enters only
where it differs from its default, so that adding a key renames nothing. Keys that cannot change a result enter with
their default, or not at all. A path outside the working folder enters, and is recorded, as its base name and a digest:
who runs on /home/somebody/text.txt finds the run again, and the record does not say who it was.
"""

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from cramming.files import short_hash
from cramming.record import Record, private, recognised, write_record


@dataclass(frozen=True)
class Keys:
    """Which keys of a configuration name a run; keys of groups are dotted, those of a list's members have no number.

    Attributes:
        fixed: always enter the hash, whatever their value.
        cosmetic: may change without making it another run.
        paths: name files or folders of this machine.
    """

    fixed: frozenset[str]
    cosmetic: frozenset[str] = frozenset()
    paths: frozenset[str] = frozenset()


def listed(groups: Mapping[str, str]) -> frozenset[str]:
    """Dotted keys from group -> its keys, parted by spaces; the group "" is the top."""
    return frozenset(f"{group}.{key}".lstrip(".") for group, keys in groups.items() for key in keys.split())


def essence(config: Any, keys: Keys, group: str = "") -> dict[str, Any]:
    """The part of a configuration dataclass that names a run, as plain values for `short_hash`."""
    found = {}
    for item in fields(config):
        key, value = f"{group}{item.name}", getattr(config, item.name)
        if key in keys.fixed:
            value = default_of(item) if key in keys.cosmetic else value
        elif key in keys.cosmetic or value == default_of(item):
            continue
        found[item.name] = _plain(value, keys, key)
    return found


def default_of(item: Field) -> Any:
    """A dataclass field's default; MISSING, which equals no value, where it has none."""
    return item.default if item.default_factory is MISSING else item.default_factory()


def _plain(value: Any, keys: Keys, key: str) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(each, keys, key) for each in value]
    if is_dataclass(value):
        return essence(value, keys, f"{key}.")
    return private(value) if key in keys.paths and isinstance(value, str) else value


def recorded(config: Any, paths: Iterable[str]) -> dict[str, Any]:
    """A configuration dataclass as plain values for a record, which may be published: without this machine's paths."""
    return _hidden(asdict(config), frozenset(paths), "")


def _hidden(value: Any, paths: frozenset[str], key: str) -> Any:
    if isinstance(value, dict):
        return {name: _hidden(each, paths, f"{key}.{name}".lstrip(".")) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_hidden(each, paths, key) for each in value]
    return private(value) if key in paths and isinstance(value, str) else value


@dataclass(frozen=True)
class RecordedRun:
    """What a run is told by, before it runs: is it finished, and how it is saved. The same for every kind of run.

    Attributes:
        name: what the settings say; a record of that name and other content stays, and this run's is longer by a hash.
        content: hashes of what the run reads, by the record's keys; "data_fingerprint" is among them.
        facts: further fields of the record that are known beforehand.
    """

    results_dir: Path
    kind: str
    name: str
    seed: int
    config: dict[str, Any]
    content: dict[str, str]
    facts: dict[str, Any] = field(default_factory=dict)

    def finished(self) -> Record | None:
        """The record of this very run, if it finished; UserError where it is damaged."""
        return recognised(self.results_dir, self.name, self.content)[1]

    def save(
        self, status: str, samples: dict[str, int], metrics: dict[str, float], error: str = "", **extra: Any
    ) -> Record:
        """Write the record and return it; `extra` goes to `write_record`, or into the record."""
        told = {key: extra.pop(key) for key in ("processes", "provider") if key in extra}
        return write_record(
            self.results_dir,
            kind=self.kind,
            name=self.name,
            status=status,
            config=self.config,
            seed=self.seed,
            data_fingerprint=self.content["data_fingerprint"],
            samples=samples,
            metrics=metrics,
            extra={**self.content, **self.facts, **({"error": error} if error else {}), **extra},
            **told,
        )


@dataclass(frozen=True)
class RunName:
    """The readable name of a run: experiment, feedforward layer, seed, and the hash of all that matters but the seed.

    Runs of one `group` are repetitions of one another; `identity` is the long hash, the seed included.
    """

    experiment: str
    ffn: str
    seed: int
    group: str
    identity: str

    @property
    def run(self) -> str:
        """Name of the run's folder and record, e.g. "quickstart-1x9-s0-3fa2c1"."""
        return f"{self.experiment}-{self.ffn}-s{self.seed}-{self.group}"

    @property
    def repetitions(self) -> str:
        """Name of the run and its repetitions together: without the seed."""
        return f"{self.experiment}-{self.ffn}-{self.group}"


def run_name(experiment: str, ffn: str, seed: int, matters: dict[str, Any]) -> RunName:
    """The name that follows from a run's essence."""
    return RunName(experiment, ffn, seed, short_hash(matters, 6), short_hash({"seed": seed, **matters}, 16))
