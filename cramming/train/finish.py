"""The end of a pretraining run: metrics and curve from its history, examples, summary. Not the run itself (run.py)."""

from pathlib import Path
from typing import Any

from cramming.data.shards import PreparedData
from cramming.model import CrammedForMaskedLM

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

    Losses in nats per masked token; `train_loss` is the mean over the last twentieth, `train_tokens_per_s` the median;
    what the leaves do (see fff.usage) is that of the last mark.
    """
    metrics = {"unigram_loss": unigram_loss}
    if valid := [row for row in rows if "valid/loss" in row]:
        metrics |= {"valid_loss": valid[-1]["valid/loss"], "valid_accuracy": valid[-1]["valid/accuracy"]}
        metrics |= {name: valid[-1][f"fff/{name}"] for name in LEAVES if f"fff/{name}" in valid[-1]}
    if rows:
        tail = [row["train/loss"] for row in rows[-max(1, len(rows) // 20) :]]
        rates = sorted(row["train/tokens_per_s"] for row in rows)
        metrics |= {
            "train_loss": sum(tail) / len(tail),
            "train_tokens_per_s": rates[len(rates) // 2],
            "hours": rows[-1]["budget/hours"],
        }
        metrics |= device_metrics(rows)
    return metrics


def card_numbers(metrics: dict[str, float], tokens: int, data: str) -> dict[str, str]:
    """What a model's card shows of a record's metrics.

    Args:
        tokens: read in training; data: their fingerprint.
    """
    shown = {
        "validation loss": f"{metrics['valid_loss']:.4f} nats per masked token",
        "unigram loss of the same tokens": f"{metrics['unigram_loss']:.4f} nats",
        "accuracy": f"{metrics['valid_accuracy']:.2%} of masked tokens",
    }
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


def print_examples(model: CrammedForMaskedLM, data: PreparedData, examples: list[str]) -> None:
    """Print what the model puts for <mask> in a few sentences."""
    from transformers import pipeline  # slow to import, and needed at the end only

    fill = pipeline("fill-mask", model=model.eval().cpu().float(), tokenizer=data.tokenizer(), device="cpu")
    for text in examples:
        guesses = ", ".join(f"{guess['token_str']} {guess['score']:.0%}" for guess in fill(text, top_k=5))
        print(f"\n  {text}\n    -> {guesses}")


def print_summary(content: dict[str, Any], *, model: Path, history: Path, record: Path) -> None:
    """Print the results of a finished run's record, what was written where, and the next command."""
    metrics, samples = content["metrics"], content["samples"]
    gain, rate = metrics["unigram_loss"] - metrics["valid_loss"], metrics["train_tokens_per_s"]
    print(f"\nvalidation loss    {metrics['valid_loss']:.4f} nats, accuracy {metrics['valid_accuracy']:.2%}")
    print(f"unigram baseline   {metrics['unigram_loss']:.4f} nats ({gain:.4f} above the model)")
    for name in (name for name in metrics if name.startswith("oracle_")):
        print(f"{name:<18} {metrics[name]:.4f} nats with each token's most active neurons alone")
    print(f"tokens             {samples['train_tokens']:,} in {samples['train_steps']:,} steps, {rate:,.0f} tokens/s")
    print(f"model              {model}\nhistory            {history}\nrecord             {record}")
    print(f"next               make glue EXP={content['experiment']} (same TREES=, DEPTH=, SEED=, ARGS=)", flush=True)
