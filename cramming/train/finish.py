"""The end of a pretraining run: metrics and curve from its history, examples, summary. Not the run itself (run.py)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cramming.data.shards import PreparedData
from cramming.model.language import CrammedLanguageModel
from cramming.objectives.base import Objective

# What a record keeps of the leaves; the history has it per layer, tree and level too.
LEAVES = (
    "usage_entropy",
    "usage_entropy_relative",
    "dead_leaves",
    "fullest_leaf",
    "decided",
    "churn",
    "soft_hard_gap",
    "usage_time",
)


def history_metrics(rows: list[dict[str, Any]], unigram_loss: float) -> dict[str, float]:
    """A record's metrics from the rows of its metrics.jsonl, which are right also for a run that was resumed.

    Losses in nats per predicted token; `train_loss` is the mean over the last twentieth, `train_tokens_per_s` the
    median; what the leaves do (see fff.usage) is that of the last mark.
    """
    metrics = {"unigram_loss": unigram_loss}
    if valid := [row for row in rows if "valid/loss" in row]:
        metrics |= {"valid_loss": valid[-1]["valid/loss"], "valid_accuracy": valid[-1]["valid/accuracy"]}
        if "valid/perplexity" in valid[-1]:  # of objectives that have one
            metrics["valid_perplexity"] = valid[-1]["valid/perplexity"]
        metrics |= {name: valid[-1][f"fff/{name}"] for name in LEAVES if f"fff/{name}" in valid[-1]}
    if rows:
        tail = [row["train/loss"] for row in rows[-max(1, len(rows) // 20) :]]
        rates = sorted(row["train/tokens_per_s"] for row in rows)
        metrics |= {
            "train_loss": sum(tail) / len(tail),
            "train_tokens_per_s": rates[len(rates) // 2],
            "hours": rows[-1]["budget/hours"],
        }
        if "exchange/bytes_per_token" in rows[-1]:  # of several processes
            metrics["exchange_bytes_per_token"] = rows[-1]["exchange/bytes_per_token"]
        for name in ("rows", "touched", "overlap"):  # of the last meeting before each row
            if found := [row[f"exchange/{name}"] for row in rows if f"exchange/{name}" in row]:
                metrics[f"exchange_{name}"] = sum(found) / len(found)
        metrics |= device_metrics(rows)
    return metrics


def card_numbers(metrics: dict[str, float], tokens: int, data: str, unit: str) -> dict[str, str]:
    """What a model's card shows of a record's metrics.

    Args:
        tokens: read in training; data: their fingerprint; unit: what is predicted, "masked token".
    """
    shown = {
        "validation loss": f"{metrics['valid_loss']:.4f} nats per {unit}",
        "unigram loss of the same tokens": f"{metrics['unigram_loss']:.4f} nats",
        "accuracy": f"{metrics['valid_accuracy']:.2%} of {unit}s",
    }
    if "valid_perplexity" in metrics:
        shown["perplexity"] = f"{metrics['valid_perplexity']:.2f}"
    return shown | {"training tokens": f"{tokens:,}", "fingerprint of the data": f"`{data}`"}


def device_metrics(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Median MFU (see cramming.model.flops) and peak memory (GB), of a run whose rows have them."""
    metrics = {}
    for name in ("mfu", "mfu_dense_equivalent"):
        if found := sorted(row[f"train/{name}"] for row in rows if f"train/{name}" in row):
            metrics[f"train_{name}"] = found[len(found) // 2]
    if found := [row["device/peak_memory_gb"] for row in rows if "device/peak_memory_gb" in row]:
        metrics["peak_memory_gb"] = max(found)
    return metrics


def history_curve(rows: list[dict[str, Any]]) -> list[dict[str, float]]:
    """A record's curve: progress, tokens, validation loss and what the leaves do, at each validation mark."""
    return [
        {"progress": row["budget/progress"], "tokens": row["budget/tokens"], "valid_loss": row["valid/loss"]}
        | {name: row[f"fff/{name}"] for name in LEAVES if f"fff/{name}" in row}
        for row in rows
        if "valid/loss" in row
    ]


def print_examples(
    objective: Objective, model: CrammedLanguageModel, data: PreparedData, examples: Sequence[str]
) -> None:
    """Print what the model makes of a few texts."""
    for text, answer in objective.shown(model.eval().cpu().float(), data.tokenizer(), examples):
        print(f"\n  {text}\n    -> {answer}")


def print_summary(content: dict[str, Any], *, model: Path, history: Path, record: Path) -> None:
    """Print the results of a finished run's record, what was written where, and the next command."""
    metrics, samples = content["metrics"], content["samples"]
    gain, rate = metrics["unigram_loss"] - metrics["valid_loss"], metrics["train_tokens_per_s"]
    perplexity = f", perplexity {metrics['valid_perplexity']:.2f}" if "valid_perplexity" in metrics else ""
    accuracy = f"accuracy {metrics['valid_accuracy']:.2%}"
    print(f"\nvalidation loss    {metrics['valid_loss']:.4f} nats, {accuracy}{perplexity}")
    print(f"unigram baseline   {metrics['unigram_loss']:.4f} nats ({gain:.4f} above the model)")
    for name in (name for name in metrics if name.startswith("oracle_")):
        print(f"{name:<18} {metrics[name]:.4f} nats with each token's most active neurons alone")
    print(f"tokens             {samples['train_tokens']:,} in {samples['train_steps']:,} steps, {rate:,.0f} tokens/s")
    print(f"model              {model}\nhistory            {history}\nrecord             {record}")
    following = f"make glue EXP={content['experiment']} (same TREES=, DEPTH=, SEED=, ARGS=)"
    if content["config"].get("objective", {}).get("kind") == "causal":
        following = f"AutoModelForCausalLM.from_pretrained({str(model)!r}), see its README.md"
    print(f"next               {following}", flush=True)
