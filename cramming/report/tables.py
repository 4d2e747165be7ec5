"""Writing results/tables, curves and figures from results/runs and results/paper.yaml alone. Not a page's content."""

from pathlib import Path
from typing import Any

import yaml

from cramming.errors import UserError
from cramming.files import remove_leftovers, write_atomic
from cramming.record import Record, read_records
from cramming.report.comparisons import comparisons
from cramming.report.curves import draw_curves
from cramming.report.effective import effective_csv, effective_markdown, effective_tex
from cramming.report.figures import draw_figures
from cramming.report.groups import pretrain_groups, suite_groups
from cramming.report.images import images_csv, images_markdown
from cramming.report.leaves import leaves_csv, leaves_markdown
from cramming.report.pretraining import pretraining_csv, pretraining_markdown
from cramming.report.speed import speed_tables
from cramming.report.suites import glue_csv, glue_markdown, mini_csv, mini_markdown

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


def build_tables(records: list[Record], paper: dict[str, Any]) -> dict[str, str]:
    """File name -> content of every table; a pure function of its arguments."""
    pretraining = pretrain_groups(records)
    widths = comparisons(pretraining)
    leaf_fff = paper.get("leaf_fff", {})
    glue, mini = suite_groups(records, "glue"), suite_groups(records, "mini")
    return {
        "pretraining.md": pretraining_markdown(pretraining),
        "pretraining.csv": pretraining_csv(pretraining),
        "effective_width.md": effective_markdown(widths, pretraining),
        "effective_width.csv": effective_csv(widths),
        "effective_width.tex": effective_tex(widths),
        "leaves.md": leaves_markdown(pretraining),
        "leaves.csv": leaves_csv(pretraining),
        "glue.md": glue_markdown(glue, paper["glue"]),
        "glue.csv": glue_csv(glue, paper["glue"]),
        "mini.md": mini_markdown(mini),
        "mini.csv": mini_csv(mini),
        "images.md": images_markdown(records, leaf_fff),
        "images.csv": images_csv(records, leaf_fff),
    }


def write_tables(results_dir: Path) -> list[Path]:
    """Write every table, picture of curves and figure, and return the paths. UserError names a damaged record."""
    records, paper = read_records(results_dir), read_paper(paper_file(results_dir))
    remove_leftovers(results_dir / "runs")
    try:
        tables, curves = build_tables(records, paper), draw_curves(records)
        figures = draw_figures(comparisons(pretrain_groups(records)))
    except MALFORMED:
        name_malformed(records, paper)
        raise
    tables |= speed_tables(results_dir / "bench", paper)
    files: dict[str, str | bytes] = {f"tables/{name}": content for name, content in tables.items()}
    files |= {f"curves/{name}": content for name, content in curves.items()}
    files |= {f"figures/{name}": content for name, content in figures.items()}
    for name, content in files.items():
        write_atomic(results_dir / name, content)
    return [results_dir / name for name in files]


def name_malformed(records: list[Record], paper: dict[str, Any]) -> None:
    """UserError that names the first record of which no table can be made: a field is missing, or of a wrong type."""
    for record in records:
        try:
            build_tables([record], paper)
            draw_curves([record, record])
        except MALFORMED as error:
            raise UserError(
                f"runs/{record['name']}.json: no table can be made of it ({type(error).__name__}: {error}); it was "
                "changed, or written by other code: move it away or run it again."
            ) from None
