"""The few numbers that the measurement of a machine is for, from its parts' rows. Pure functions; not the parts."""

from typing import Any

from bench.check.size import DENSE, PATH

Rows = list[dict[str, Any]]
STEP = "pretraining step"  # as bench.model names a whole one


def table(parts: dict[str, Any]) -> Rows:
    """One row per question; values that no part has found are None.

    `ours` and `against` carry what the row's `unit` says, `times` is how many times better ours is.
    """
    rows = {name: part.get("rows", []) for name, part in parts.items()}
    layer = rows.get("layer", [])
    # Beside the steps stand rows of their updates alone, which are quicker.
    training = [row for row in rows.get("model_training", []) if row["what"] == STEP]
    inference, pretraining = rows.get("model_inference", []), rows.get("pretraining", [])
    found = [correctness(rows.get("correctness", []))]
    for mode in ("inference", "training"):
        mine = [row for row in layer if row["mode"] == mode and "median" in row]
        for group in ("dense of as many neurons", "dense 3072", "masked"):
            found.append(layer_row(mine, mode, group))
    found.append(model_row("pretraining step, whole model", training))
    found.append(model_row("inference of one sequence, whole model", inference))
    found.append(pair("pretraining through the loop", "tokens/s", rate(pretraining, PATH), rate(pretraining, DENSE)))
    for title, mine in (("dense 3072, pretraining step", training), ("dense 3072, through the loop", pretraining)):
        found.append({"row": title, "unit": "model FLOP utilisation", "ours": named(mine, DENSE).get("mfu")})
    return found


def correctness(rows: Rows) -> dict[str, Any]:
    """How many checks there were, and which went wrong."""
    checked = [row for row in rows if "ok" in row]
    wrong = [f"{row['provider']} {row['shape']} {row['dtype']} {row['tokens']}" for row in checked if not row["ok"]]
    return {"row": "providers against the definition", "unit": "checks right", "ours": len(checked) - len(wrong)} | {
        "against": len(checked),
        "wrong": wrong,
    }


def layer_row(rows: Rows, mode: str, group: str) -> dict[str, Any]:
    """The fastest conditional provider against the fastest of a group of opponents."""
    dense = [row for row in rows if row["name"].startswith("dense ")]
    opponents = {
        "dense of as many neurons": [row for row in dense if not row["name"].startswith("dense 3072 ")],
        "dense 3072": [row for row in dense if row["name"].startswith("dense 3072 ")],
        "masked": [row for row in rows if row["name"] == "masked"],
    }[group]
    ours = [row for row in rows if row not in dense and row["name"] != "masked"]
    return pair(f"layer {mode}, against {group}", "seconds", fastest(ours), fastest(opponents), less_is_better=True)


def model_row(title: str, rows: Rows) -> dict[str, Any]:
    """The path's best way of running against the dense layer's best."""
    best = {}
    for name in (PATH, DENSE):
        mine = [row for row in rows if row["name"] == name and "tokens_per_s" in row]
        best[name] = max(((r["tokens_per_s"], r["compiler"]) for r in mine), default=(None, None))
    return pair(title, "tokens/s", best[PATH], best[DENSE])


def rate(rows: Rows, name: str) -> tuple[float | None, str | None]:
    """Tokens per second of a pretraining."""
    row = named(rows, name)
    return row.get("tokens_per_s"), row.get("name")


def named(rows: Rows, name: str) -> dict[str, Any]:
    """The first row of a feedforward; empty where there is none."""
    return next((row for row in rows if row["name"] == name), {})


def fastest(rows: Rows) -> tuple[float | None, str | None]:
    """Seconds and name of the quickest row."""
    return min(((row["median"], row["name"]) for row in rows), default=(None, None))


def pair(
    title: str,
    unit: str,
    ours: tuple[float | None, str | None],
    against: tuple[float | None, str | None],
    less_is_better: bool = False,
) -> dict[str, Any]:
    """A row of two values and their ratio."""
    times = None
    if ours[0] and against[0]:
        times = against[0] / ours[0] if less_is_better else ours[0] / against[0]
    return {
        "row": title,
        "unit": unit,
        "ours": ours[0],
        "ours_is": ours[1],
        "against": against[0],
        "against_is": against[1],
        "times": times,
    }


def lines(rows: Rows) -> str:
    """The table as text."""
    text = []
    for row in rows:
        ours, against = (f"{v:.4g}" if isinstance(v, float) else str(v) for v in (row["ours"], row.get("against")))
        times = f"{row['times']:8.2f}x" if row.get("times") else " " * 9
        of = f" ({row['ours_is']} against {row['against_is']})" if row.get("ours_is") else ""
        text.append(f"{row['row']:<48} {row['unit']:<24} {ours:>10} {against:>10} {times}{of}")
    return "\n".join(text)
