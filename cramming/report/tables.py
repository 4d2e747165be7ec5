"""Writing results/tables and figures from records, rows of speed and results/paper.yaml. Not a page's content."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cramming.errors import UserError
from cramming.files import remove_leftovers, write_atomic
from cramming.record import Record, read_records
from cramming.report.comparisons import comparisons
from cramming.report.controls import controls_csv, controls_markdown, controls_tex
from cramming.report.decoding import decoding_markdown
from cramming.report.depth import depth_csv, depth_markdown, depth_tex
from cramming.report.distill import distill_csv, distill_markdown
from cramming.report.effective import effective_csv, effective_markdown, effective_tex
from cramming.report.figures import build_figures
from cramming.report.groups import pretrain_groups, suite_groups
from cramming.report.images import images_csv, images_markdown
from cramming.report.leaves import leaves_csv, leaves_markdown
from cramming.report.pretraining import pretraining_csv, pretraining_markdown
from cramming.report.readme import write_readme
from cramming.report.speed import Row, read_speed, speed_csv, speed_markdown, speed_tex
from cramming.report.suites import glue_csv, glue_markdown, glue_tex, mini_csv, mini_markdown
from cramming.report.times import layer_times
from cramming.report.trend import trend_csv, trend_markdown, trend_tex

CHECKOUT = Path(__file__).resolve().parents[2]
# What code raises that finds another value than a record has there.
MALFORMED = (AttributeError, LookupError, TypeError, ValueError, ArithmeticError, UserError)


def read_paper(path: Path) -> dict[str, Any]:
    """The published numbers; UserError names the file when it is missing or no YAML."""
    try:
        facts = yaml.safe_load(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; it belongs to the repository: git checkout {path}.") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML ({error}); git checkout {path}.") from None
    if not isinstance(facts, dict) or "glue" not in facts:
        raise UserError(f"{path} has no key 'glue'; git checkout {path}.")
    return facts


def paper_file(results_dir: Path) -> Path:
    """Where the published numbers are; runs that were written elsewhere have the checkout's."""
    own = results_dir / "paper.yaml"
    elsewhere = (results_dir / "runs").is_dir() and not own.exists()
    return CHECKOUT / "results" / "paper.yaml" if elsewhere else own


def build_tables(records: list[Record], paper: dict[str, Any], rows: Sequence[Row] = ()) -> dict[str, str]:
    """File name -> content of every table; a pure function of its arguments.

    Args:
        rows: rows of speed in the order of their dates, see `cramming.report.speed.read_speed`.
    """
    pretraining, times = pretrain_groups(records), layer_times(rows)
    sets = comparisons(pretraining)
    leaf_fff, speed = paper.get("leaf_fff", {}), paper.get("speed", {})
    glue, mini = suite_groups(records, "glue"), suite_groups(records, "mini")
    return {
        "pretraining.md": pretraining_markdown(pretraining),
        "pretraining.csv": pretraining_csv(pretraining),
        "effective_width.md": effective_markdown(sets, pretraining, times),
        "effective_width.csv": effective_csv(sets, times),
        "effective_width.tex": effective_tex(sets, times),
        "controls.md": controls_markdown(sets),
        "controls.csv": controls_csv(sets),
        "controls.tex": controls_tex(sets),
        "depth.md": depth_markdown(sets),
        "depth.csv": depth_csv(sets),
        "depth.tex": depth_tex(sets),
        "trend.md": trend_markdown(sets),
        "trend.csv": trend_csv(sets),
        "trend.tex": trend_tex(sets),
        "leaves.md": leaves_markdown(pretraining),
        "leaves.csv": leaves_csv(pretraining),
        "glue.md": glue_markdown(glue, paper["glue"]),
        "glue.csv": glue_csv(glue, paper["glue"]),
        "glue.tex": glue_tex(glue, paper["glue"]),
        "mini.md": mini_markdown(mini),
        "mini.csv": mini_csv(mini),
        "distill.md": distill_markdown(records),
        "distill.csv": distill_csv(records),
        "images.md": images_markdown(records, leaf_fff),
        "images.csv": images_csv(records, leaf_fff),
        "decoding.md": decoding_markdown(rows),
        "speed.md": speed_markdown(rows, speed),
        "speed.csv": speed_csv(rows),
        "speed.tex": speed_tex(rows, speed),
    }


Build = Callable[..., Mapping[str, str | bytes]]


def write_tables(results_dir: Path) -> list[Path]:
    """Write every table and return the paths. UserError names a damaged record or file of speed."""
    written = write(results_dir, {"tables": build_tables})
    if results_dir.resolve() == CHECKOUT / "results":  # README is of the checkout's own results
        write_readme(CHECKOUT / "README.md", read_speed(results_dir / "bench"))
    return written


def write_figures(results_dir: Path) -> list[Path]:
    """Write every figure of which there is something to show and return the paths. UserError as `write_tables`."""
    return write(results_dir, {"figures": build_figures})


def write_report(results_dir: Path) -> list[Path]:
    """Write both, of results that are read once."""
    return write(results_dir, {"tables": build_tables, "figures": build_figures})


def write(results_dir: Path, builds: Mapping[str, Build]) -> list[Path]:
    """Write what is made of the results into folders of theirs, by name: all of it, or nothing where some fails."""
    records, paper = read_records(results_dir), read_paper(paper_file(results_dir))
    rows = read_speed(results_dir / "bench")
    remove_leftovers(results_dir / "runs")
    try:
        made = {folder: build(records, paper, rows) for folder, build in builds.items()}
    except MALFORMED:
        name_malformed(records, paper)
        raise
    files = {results_dir / folder / name: each for folder, mine in made.items() for name, each in mine.items()}
    for path, content in files.items():
        write_atomic(path, content)
    return list(files)


def name_malformed(records: list[Record], paper: dict[str, Any]) -> None:
    """UserError that names the first record of which no table can be made: a field is missing, or of a wrong type."""
    for record in records:
        try:
            build_tables([record], paper)
            build_figures([record, {**record, "seed": record["seed"] + 1}], paper)  # two, as curves need, of two seeds
        except MALFORMED as error:
            raise UserError(
                f"runs/{record['name']}.json: no table can be made of it ({type(error).__name__}: {error}); it was "
                "changed, or written by other code: move it away or run it again."
            ) from None
