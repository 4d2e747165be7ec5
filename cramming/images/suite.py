"""All rows with all seeds: one record each, finished ones skipped. Not the training (train.py)."""

import importlib.metadata
from dataclasses import asdict
from pathlib import Path

import torch
from tqdm import tqdm

from cramming.files import check_writable, short_hash
from cramming.images.config import ImagesConfig, Row
from cramming.images.data import ImageData, load_images
from cramming.images.root import ImagesRoot
from cramming.images.train import fresh_row, train_row
from cramming.record import Record, computed_by, in_one_word
from cramming.runs import RecordedRun


def run_images(root: ImagesRoot) -> list[Record]:
    """Run what has no finished record yet and return the records of all rows and seeds.

    Raises:
        UserError: the data cannot be read.
    """
    config, results = root.images, Path(root.results_dir)
    data, library = load_images(config), data_library(config)
    check_writable(results / "runs", "results_dir")
    fingerprint = data.fingerprint()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = ImageData(data.train.to(device), data.valid.to(device), data.test.to(device), data.classes)
    runs = [(row, seed) for row in config.rows() for seed in config.seeds]
    records = []
    with tqdm(runs, desc=config.name, unit="run") as bar:
        for row, seed in bar:
            bar.set_postfix_str(f"{row.tag} seed {seed}")
            run = recorded_run(results, config, row, seed, fingerprint, library)
            record = run.finished() or train_and_save(run, config, row, data)
            if record["name"] != run.name:
                tqdm.write(f"{run.name}: that record is of other images, and stays; this one is {record['name']}")
            records.append(record)
    return records


def run_name(config: ImagesConfig, row: Row, seed: int) -> str:
    """Name of a run and its record; it ends in a hash of the settings: other settings never replace a result."""
    return f"images-{config.name}-{row.tag}-s{seed}-{short_hash(config.settings(), 6)}"


def data_library(config: ImagesConfig) -> str:
    """Who gives the images, with its version."""
    library = "scikit-learn" if config.source == "digits" else "datasets"
    return f"{library} {importlib.metadata.version(library)}"


def recorded_run(
    results: Path, config: ImagesConfig, row: Row, seed: int, fingerprint: str, library: str
) -> RecordedRun:
    """One row with one seed on these data, as records tell it."""
    return RecordedRun(
        results,
        kind="images",
        name=run_name(config, row, seed),
        seed=seed,
        config={"images": config.settings()},
        content={"data_fingerprint": fingerprint},
        facts={
            "row": {**asdict(row), "depth": row.depth},
            "data_library": library,
        },
    )


def train_and_save(run: RecordedRun, config: ImagesConfig, row: Row, data: ImageData) -> Record:
    """Train one row and write its record."""
    layer = fresh_row(config, row, data, run.seed)
    samples = {"train": len(data.train), "valid": len(data.valid), "test": len(data.test)}
    samples["parameters"] = sum(parameter.numel() for parameter in layer.parameters())
    metrics = train_row(config, row, data, layer)
    provider = in_one_word(computed_by(layer))
    if metrics is None:
        return run.save("diverged", samples, {}, "the loss is not finite", provider=provider)
    return run.save("finished", samples, metrics, provider=provider)
