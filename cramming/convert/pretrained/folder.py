"""The converted model's folder: configuration, safetensors, tokenizer and a card with numbers. Not how it is read."""

from collections.abc import Mapping
from pathlib import Path

from cramming.convert.pretrained.job import DENSE, Made
from cramming.convert.pretrained.judge import Judged
from cramming.convert.pretrained.teacher import Teacher
from cramming.files import new_folder
from cramming.model.saved import quiet
from fff import surgery

COLUMNS = {
    "spearman": "STS-B Spearman",
    "spearman_in_use": "in int8",
    "neighbours": "neighbours kept",
    "neighbours_in_use": "in int8",
    "cosine": "cosine",
    "perplexity": "perplexity",
    "perplexity_in_use": "in int8",
    "batch_against_float32": "times dense float32",
    "batch_against_dense": "times dense in int8",
}
NOTE = """## What it is worth

Made from {name} as `{to}`, in {minutes:.0f} minutes. The controls, pruned dense layers and none, were made and judged
in the same way: where one of them is as good and as fast, take it.
"""


def write_folder(made: Made, teacher: Teacher, metrics: Mapping[str, Judged], out: Path, *, replace: bool) -> None:
    """Complete or absent; UserError where something is at `out` and may not be replaced."""
    with new_folder(out, replace=replace) as beside, quiet():
        if made.target.in_place:
            made.model.save_pretrained(beside)
            (beside / "README.md").write_text(f"# {teacher.name} with fewer neurons\n")
        else:
            surgery.save(made.model, beside)
        teacher.tokenizer.save_pretrained(beside)
        with open(beside / "README.md", "a") as card:
            note = NOTE.format(name=teacher.name, to=made.target.text, minutes=made.minutes)
            card.write(f"\n{note}\n{numbers(metrics)}\n")


def numbers(metrics: Mapping[str, Judged]) -> str:
    """A Markdown table of what was measured."""
    shown = [key for key in COLUMNS if any(key in each for each in metrics.values())]
    lines = [["model", *(COLUMNS[key] for key in shown)], ["---"] * (len(shown) + 1)]
    for name, own in sorted(metrics.items(), key=lambda each: each[0] != DENSE):
        lines.append([name, *(f"{own[key]:.3f}" if key in own else "" for key in shown)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
