"""Dependence runs one way: no import runs upwards, and each outside library is used behind its own door."""

import ast
import functools
import sys
from collections.abc import Callable, Iterator, Set
from pathlib import Path

ROOT = Path(__file__).parents[1]

# Rooms from the ground up; those of one floor may not see one another. A file takes the longest name that fits it.
FLOORS = {
    "fff": (
        ("fff.activations", "fff.beside", "fff.decay", "fff.meanwhile", "fff.topology", "fff.unsaved"),
        ("fff.decisions", "fff.reference"),
        ("fff.int8", "fff.losses"),
        ("fff.int8_leaf",),
        ("fff.kernels",),
        ("fff.balance", "fff.layers.base", "fff.layers.checks", "fff.layers.nodes", "fff.layers.operands"),
        ("fff.layers", "fff.rivals"),
        ("fff",),  # the package's own page
        ("fff.feedforward", "fff.frozen", "fff.halving", "fff.hardening", "fff.testing"),
        ("fff.usage", "fff.regions", "fff.inside"),
        ("fff.surgery", "fff.export", "fff.store"),
        ("fff.successors",),
        ("fff.optimise",),
    ),
    "cramming": (
        ("cramming", "cramming.errors"),
        ("cramming.checks", "cramming.files", "cramming.locks", "cramming.values"),
        ("cramming.remote",),
        ("cramming.machine", "cramming.door"),
        ("cramming.provenance",),
        ("cramming.record",),
        ("cramming.runs",),
        ("cramming.parallel",),
        ("cramming.data",),
        ("cramming.model",),
        ("cramming.objectives",),
        ("cramming.train",),
        ("cramming.glue", "cramming.images"),
        ("cramming.sentences",),
        ("cramming.convert", "cramming.regions"),
        ("cramming.report",),
        ("cramming.config",),
        ("cramming.plan",),
        ("cramming.sweep",),
    ),
    "bench": (("bench",), ("bench.check",)),
    "scripts": (("scripts",),),
}
PACKAGES = tuple(FLOORS)  # each may see those before it

# Outside library -> the rooms that may use it.
DOORS = {
    "hydra": ("cramming.config",),
    "omegaconf": ("cramming.config",),
    "accelerate": ("cramming.parallel",),
    "torch.distributed": ("cramming.parallel",),
    "wandb": ("cramming.train.tracking",),
    "matplotlib": ("cramming.report.figures", "cramming.train.pictures"),
    "datasets": ("cramming.data.sources", "cramming.data.readymade", "cramming.glue", "cramming.images.data"),
    "fsspec": ("cramming.remote",),
    "evaluate": ("cramming.glue.metrics",),
}
FFF_TAKES = ("torch", "triton")  # beside the standard library

# What still breaks a rule: (file, what it imports). Take a line away with its cause; never add one.
STILL: set[tuple[str, str]] = set()


@functools.cache
def imported() -> dict[str, frozenset[str]]:
    """Dotted name of every module -> what it imports, wherever in it but under TYPE_CHECKING."""
    files = {}
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        files[".".join(parts[:-1] if path.name == "__init__.py" else parts)] = path
    return {name: frozenset(imports(name, path, files.keys())) for name, path in files.items()}


def imports(name: str, path: Path, known: Set[str]) -> Iterator[str]:
    """What one module imports; members of a package that are modules by their own names."""
    tree, here = ast.parse(path.read_text()), name.split(".") + (["__init__"] if path.name == "__init__.py" else [])
    hints = {id(inner) for node in ast.walk(tree) if is_hint(node) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in hints:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            module = ".".join([*(here[: -node.level] if node.level else ()), *filter(None, [node.module])])
            members = {f"{module}.{alias.name}" for alias in node.names}
            yield from members & known or {module}
        dotted = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
        if dotted.startswith("torch.distributed."):
            yield dotted


def is_hint(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def within(name: str, room: str) -> bool:
    return name == room or name.startswith(f"{room}.")


def floor(name: str) -> tuple[int, str]:
    """Height of a module's room within its package, and the room."""
    rooms = [(height, room) for height, rooms in enumerate(FLOORS[name.split(".", 1)[0]]) for room in rooms]
    alone = len(rooms) > 2  # then the package's own name is its page, not every room that has none
    found = [each for each in rooms if name == each[1] or (within(name, each[1]) and ("." in each[1] or not alone))]
    assert found, f"{name} has no floor in FLOORS"
    return max(found, key=lambda each: len(each[1]))


def upward(name: str, other: str) -> bool:
    """Whether an import of `other` by `name` runs upwards, or across to another room of the same floor."""
    mine, theirs = (PACKAGES.index(each.split(".", 1)[0]) for each in (name, other))
    if mine != theirs:
        return theirs > mine
    (height, room), (other_height, other_room) = floor(name), floor(other)
    return other_height > height or (other_height == height and other_room != room)


def offences(wrong: Callable[[str, str], bool]) -> set[tuple[str, str]]:
    return {(name, other) for name, others in imported().items() for other in others if wrong(name, other)}


def test_no_import_runs_upwards() -> None:
    found = offences(lambda name, other: other.split(".", 1)[0] in PACKAGES and upward(name, other))
    assert sorted(found - STILL) == []


def test_outside_libraries_are_used_behind_their_doors() -> None:
    def past_a_door(name: str, other: str) -> bool:
        return any(
            within(other, library) and not any(within(name, room) for room in rooms)
            for library, rooms in DOORS.items()
            if not name.startswith(("bench", "scripts")) or library in ("hydra", "omegaconf")
        )

    assert sorted(offences(past_a_door) - STILL) == []


def test_the_layers_take_torch_and_the_standard_library_alone() -> None:
    def foreign(name: str, other: str) -> bool:
        top = other.split(".", 1)[0]
        return name.split(".", 1)[0] == "fff" and top not in (*FFF_TAKES, "fff", *sys.stdlib_module_names)

    assert sorted(offences(foreign) - STILL) == []


def test_no_exception_outlives_its_cause() -> None:
    assert sorted(STILL - offences(lambda *_: True)) == []
