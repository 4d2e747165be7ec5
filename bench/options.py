"""The benches' command lines, checked before anything is timed. Not what is timed."""

import argparse
import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.rows import read_rows
from cramming.checks import number, one_of
from cramming.door import path_argument
from cramming.errors import UserError
from cramming.files import check_writable
from fff.feedforward import settings_from
from fff.layers.base import Settings

DTYPES = ("float32", "bfloat16", "float16", "float64")
MODES = ("inference", "training")
INPUTS = ("iid", "skewed")
DEEPEST = 20
MOST_THREADS = 1024
PATH_SHAPE, LEAF_SHAPE = re.compile(r"(\d{1,6})x(\d{1,2})"), re.compile(r"leaf(\d{1,6})x(\d{1,2})")
# The rivals' tags, with the keys of their settings.
RIVALS = {
    "moe": re.compile(r"moe(?P<expert_width>\d{1,6})x(?P<experts>\d{1,6})top(?P<top>\d{1,6})"),
    "peer": re.compile(r"peer(?P<keys>\d{1,6})x(?P=keys)h(?P<heads>\d{1,6})top(?P<top>\d{1,6})"),
}


@dataclass(frozen=True)
class Shape:
    """Trees of a depth; with a leaf_width the one tree of a LeafFFF; or the settings of a rival, without trees."""

    trees: int
    depth: int
    leaf_width: int | None = None
    rival: Settings | None = None

    def __str__(self) -> str:
        if self.rival is not None:
            return self.rival.tag
        return f"leaf{self.leaf_width}x{self.depth}" if self.leaf_width else f"{self.trees}x{self.depth}"


@dataclass(frozen=True)
class Setting:
    """What a group of rows has in common."""

    trees: int
    depth: int
    tokens: int
    dtype: torch.dtype
    mode: str  # inference | training
    inputs: str = "iid"
    compiled: bool = False  # dense layers also through torch.compile
    seconds: float = 2.0  # for each case
    providers: tuple[str, ...] = ()  # those that are timed; empty for all that can
    leaf_width: int | None = None  # of a LeafFFF
    rival: Settings | None = None  # instead of trees

    @property
    def title(self) -> dict[str, Any]:
        """The columns that the group's rows share."""
        return {
            "shape": str(Shape(self.trees, self.depth, self.leaf_width, self.rival)),
            "tokens": self.tokens,
            "dtype": name_of(self.dtype),
            "mode": self.mode,
            "inputs": self.inputs,
        }


def name_of(dtype: torch.dtype) -> str:
    """float32 for torch.float32."""
    return str(dtype).removeprefix("torch.")


def parser(prog: str, description: str | None) -> argparse.ArgumentParser:
    """What the layers' timings are asked for; defaults are fit for the device that is there."""
    gpu = torch.cuda.is_available()
    found = argparse.ArgumentParser(prog=prog, description=description)
    shapes = "1x11,32x6,128x4" if gpu else "1x11,32x6"
    found.add_argument(
        "--shapes",
        default=f"{shapes},leaf32x7",
        help="TREESxDEPTH, leafWIDTHxDEPTH or a rival's tag, e.g. 1x11,leaf32x7,moe32x32top1; '' for none",
    )
    found.add_argument("--tokens", default="128,16384" if gpu else "1,128,2048")
    found.add_argument("--dtypes", default="bfloat16" if gpu else "float32")
    found.add_argument("--modes", default="inference,training")
    found.add_argument("--inputs", default="iid", help="iid, skewed")
    found.add_argument("--threads", default=str(torch.get_num_threads()), help="of the host, e.g. 1,2")
    found.add_argument("--seconds", type=float, default=0.7, help="for each case")
    compiled = argparse.BooleanOptionalAction
    found.add_argument("--compiled", action=compiled, default=gpu, help="time dense layers through torch.compile too")
    found.add_argument("--out", type=path_argument, help="JSON file to write")
    return found


def names(key: str, text: str, *, empty: bool = False) -> list[str]:
    """The comma-separated parts of an option; UserError where there are none and `empty` does not allow it."""
    found = [part.strip() for part in text.split(",") if part.strip()]
    if not (found or empty):
        raise UserError(f"--{key} is empty; name at least one.")
    return found


def whole_numbers(key: str, text: str, *, most: int | None = None, empty: bool = False) -> list[int]:
    """Comma-separated numbers of 1 or more."""
    found = names(key, text, empty=empty)
    for part in found:
        if not re.fullmatch(r"[+-]?\d{1,12}", part):
            raise UserError(f"--{key} names {part!r}; give whole numbers, e.g. --{key} 1,2.")
        number(f"--{key}", int(part), least=1, most=most)
    return [int(part) for part in found]


def dtypes(key: str, text: str) -> list[torch.dtype]:
    """Comma-separated names of floating-point types."""
    found = names(key, text)
    for name in found:
        one_of(f"--{key}", name, DTYPES)
    return [getattr(torch, name) for name in found]


def shapes(text: str, *, empty: bool = False) -> list[Shape]:
    """Comma-separated shapes of PathFFF (1x11) and LeafFFF (leaf32x7), and tags of rivals (moe32x32top1)."""
    return [_shape(name) for name in names("shapes", text, empty=empty)]


def _shape(name: str) -> Shape:
    for kind, pattern in RIVALS.items():
        if sizes := pattern.fullmatch(name):
            try:
                rival = settings_from({"kind": kind} | {key: int(size) for key, size in sizes.groupdict().items()})
            except ValueError as error:
                raise UserError(f"--shapes names {name!r}: {error}") from None
            return Shape(0, 0, rival=rival)
    path, leaf = PATH_SHAPE.fullmatch(name), LEAF_SHAPE.fullmatch(name)
    found = path or leaf
    if found is None or int(found[1]) < 1 or int(found[2]) > DEEPEST:
        raise UserError(
            f"--shapes names {name!r}; give trees x depth, e.g. 1x11, or leaf_width x depth, e.g. leaf32x7, "
            f"of depth 0 to {DEEPEST}, or a rival's tag, e.g. moe32x32top1, peer64x64h4top3."
        )
    return Shape(int(found[1]), int(found[2])) if path else Shape(1, int(found[2]), int(found[1]))


def settings(options: argparse.Namespace, given: list[Shape] | None = None) -> list[Setting]:
    """Every combination of what the command line names; of other shapes where they are given.

    Raises:
        UserError: an option that names something unknown, impossible or nothing.
    """
    check_seconds(options.seconds)
    lists = (
        shapes(options.shapes, empty=True) if given is None else given,
        whole_numbers("tokens", options.tokens),
        dtypes("dtypes", options.dtypes),
        names("modes", options.modes),
        names("inputs", options.inputs),
    )
    for mode in lists[3]:
        one_of("--modes", mode, MODES)
    for kind in lists[4]:
        one_of("--inputs", kind, INPUTS)
    return [
        Setting(
            shape.trees,
            shape.depth,
            tokens,
            dtype,
            mode,
            kind,
            options.compiled,
            options.seconds,
            leaf_width=shape.leaf_width,
            rival=shape.rival,
        )
        for shape, tokens, dtype, mode, kind in itertools.product(*lists)
    ]


def check_seconds(value: float) -> None:
    """Refuse a time that is negative or no number."""
    number("--seconds", value, least=0)


def thread_counts(text: str) -> list[int]:
    """The numbers of threads that the command line names."""
    return whole_numbers("threads", text, most=MOST_THREADS)


def check_out(path: Path | None) -> None:
    """Refuse a file that cannot be written, or that is there and no report of a bench, before hours of timing.

    Raises:
        UserError: a folder, or another file, is there.
        OSError: its folder cannot be made or written to.
    """
    if path is None:
        return
    if path.is_dir():
        raise UserError(f"--out is {path}, a folder; name a file in it, e.g. {path / 'bench.json'}.")
    if path.exists():
        try:
            read_rows(path)
        except UserError as error:
            raise UserError(f"--out would write over {path}, which is no report of a bench: {error}") from None
    check_writable(path.parent, "--out", path.name)
