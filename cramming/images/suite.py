"""All rows with all seeds: one record each, finished ones skipped. Not the training (train.py)."""

import importlib.metadata
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from cramming.files import read_json, short_hash
from cramming.images.config import ImagesConfig, Row
from cramming.images.data import ImageData, load_images
from cramming.images.root import ImagesRoot
from cramming.images.train import build_row, train_row
from cramming.record import record_file, write_record


def run_images(root: ImagesRoot) -> list[dict[str, Any]]:
    """Run what has no finished record yet and return the records of all rows and seeds.

    Raises:
        UserError: the data cannot be read.
    """
    config, results = root.images, Path(root.results_dir)
    data = load_images(config)
    fingerprint = data.fingerprint()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = ImageData(data.train.to(device), data.valid.to(device), data.test.to(device), data.classes)
    runs = [(row, seed) for row in config.rows() for seed in config.seeds]
    records = []
    with tqdm(runs, desc=config.name, unit="run") as bar:
        for row, seed in bar:
            bar.set_postfix_str(f"{row.tag} seed {seed}")
            record = finished_record(results, config, row, seed, fingerprint)
            if record is None:
                metrics = train_row(config, row, data, seed)
                record = save(results, config, row, seed, data, fingerprint, metrics)
            records.append(record)
    return records


def run_name(config: ImagesConfig, row: Row, seed: int) -> str:
    """Name of a run and its record; it ends in a hash of the settings: other settings never replace a result."""
    return f"images-{config.name}-{row.tag}-s{seed}-{short_hash(config.settings(), 6)}"


def finished_record(
    results: Path, config: ImagesConfig, row: Row, seed: int, fingerprint: str
) -> dict[str, Any] | None:
    """The record of this very run (same settings, same data) if it finished."""
    path = record_file(results, run_name(config, row, seed))
    if not path.exists():
        return None
    record = read_json(path)
    return record if record["data_fingerprint"] == fingerprint and record["status"] == "finished" else None


def save(
    results: Path,
    config: ImagesConfig,
    row: Row,
    seed: int,
    data: ImageData,
    fingerprint: str,
    metrics: dict[str, float] | None,
) -> dict[str, Any]:
    """Write the record of one run and return it as written."""
    library = "scikit-learn" if config.source == "digits" else "datasets"
    samples = {"train": len(data.train), "valid": len(data.valid), "test": len(data.test)}
    layer = build_row(config, row, data.pixels, data.classes)
    samples["parameters"] = sum(parameter.numel() for parameter in layer.parameters())
    path = write_record(
        results,
        kind="images",
        name=run_name(config, row, seed),
        status="diverged" if metrics is None else "finished",
        config={"images": config.settings()},
        seed=seed,
        data_fingerprint=fingerprint,
        samples=samples,
        metrics=metrics or {},
        extra={
            "row": {**asdict(row), "depth": row.depth},
            "data_library": f"{library} {importlib.metadata.version(library)}",
            **({"error": "the loss is not finite"} if metrics is None else {}),
        },
    )
    return read_json(path)
