"""Writing results/tables and results/curves from results/runs and results/paper.yaml alone. Not a page's content."""

from pathlib import Path
from typing import Any

import yaml

from cramming.errors import UserError
from cramming.files import write_atomic
from cramming.record import read_records
from cramming.report.curves import write_curves
from cramming.report.groups import pretrain_groups, suite_groups
from cramming.report.images import images_csv, images_markdown
from cramming.report.leaves import leaves_csv, leaves_markdown
from cramming.report.pretraining import pretraining_csv, pretraining_markdown
from cramming.report.suites import glue_csv, glue_markdown, mini_csv, mini_markdown


def read_paper(path: Path) -> dict[str, Any]:
    """The published numbers; UserError names the file when it is missing or no YAML."""
    try:
        facts = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} is missing; it belongs to the repository: git checkout {path}.") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML ({error}); git checkout {path}.") from None
    if not isinstance(facts, dict) or "glue" not in facts:
        raise UserError(f"{path} has no key 'glue'; git checkout {path}.")
    return facts


def build_tables(records: list[dict[str, Any]], paper: dict[str, Any]) -> dict[str, str]:
    """File name -> content of every table; a pure function of its arguments."""
    pretraining = pretrain_groups(records)
    leaf_fff = paper.get("leaf_fff", {})
    glue, mini = suite_groups(records, "glue"), suite_groups(records, "mini")
    return {
        "pretraining.md": pretraining_markdown(pretraining),
        "pretraining.csv": pretraining_csv(pretraining),
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
    """Write every table and picture of curves, and return the paths. UserError names a damaged record."""
    records = read_records(results_dir)
    tables = build_tables(records, read_paper(results_dir / "paper.yaml"))
    paths = []
    for name, content in tables.items():
        write_atomic(results_dir / "tables" / name, content)
        paths.append(results_dir / "tables" / name)
    return paths + write_curves(records, results_dir / "curves")
