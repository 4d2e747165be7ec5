"""The first paper's experiment: data, one tiny run end to end, its records, the table, bad input."""

import csv
import io
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

from cramming.errors import UserError
from cramming.files import read_json, write_json
from cramming.images.config import VARIANTS, ImagesConfig, Row
from cramming.images.data import load_images
from cramming.images.root import ImagesRoot
from cramming.images.suite import run_images, run_name
from cramming.images.train import build_row, fresh_row, row_loss, train_row
from cramming.report.tables import build_tables, read_paper
from fff import LeafFFF
from tests.helpers.composed import composed, options

PAPER = read_paper(Path(__file__).resolve().parents[3] / "results" / "paper.yaml")
TINY = ImagesConfig(epochs=2, widths=[4], leaf_widths=[2], seeds=[0, 1])


def record(value: float, seed: int = 0, row: Row | None = None, status: str = "finished", **changes) -> dict:
    row = row or Row(16, 8, "hardened")
    settings = {**ImagesConfig().settings(), **changes}
    return {
        "kind": "images",
        "name": f"images-{settings['name']}-{row.tag}-s{seed}-{settings['epochs']}",
        "status": status,
        "seed": seed,
        "config": {"images": settings},
        "data_fingerprint": "f1",
        "data_library": "scikit-learn 1",
        "samples": {"train": 1293, "valid": 144, "test": 360},
        "row": {"width": row.width, "leaf_width": row.leaf_width, "variant": row.variant, "depth": row.depth},
        "metrics": {"memorisation": value, "generalisation": value - 0.1, "dead_leaves": 1.0},
    }


def line(text: str, start: str) -> list[str]:
    """Cells of the first table row that starts so."""
    found = next(row for row in text.splitlines() if row.startswith(start))
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_the_rows_are_the_papers_and_more() -> None:
    rows = ImagesConfig().rows()
    assert len(rows) == len({row.tag for row in rows}) == 4 + 4 + 4 * 4 * len(VARIANTS)
    assert {(row.width, row.depth) for row in rows if row.leaf_width == 1 and row.variant == "plain"} == {
        (16, 4),
        (32, 5),
        (64, 6),
        (128, 7),
    }
    assert Row(128, 8, "hardened").depth == 4
    assert Row(8, 8, "dense").tag == "dense8"


def test_digits_are_split_the_same_way_each_time_and_evenly() -> None:
    data = load_images(ImagesConfig())
    assert (len(data.train), len(data.valid), len(data.test), data.pixels, data.classes) == (1293, 144, 360, 64, 10)
    assert data.fingerprint() == load_images(ImagesConfig()).fingerprint()
    assert data.fingerprint() != load_images(ImagesConfig(split_seed=1)).fingerprint()
    for split in (data.train, data.valid, data.test):
        share = torch.bincount(split.y).double() / len(split)
        assert (share - 0.1).abs().max() < 0.02
    assert abs(data.train.x.mean()) < 1e-5
    seen = {row.numpy().tobytes() for row in data.train.x}
    assert not any(row.numpy().tobytes() in seen for row in data.test.x)


def test_training_is_repeatable_and_learns() -> None:
    config, row = replace(TINY, epochs=30), Row(16, 8, "hardened")
    data = load_images(config)
    first = train_row(config, row, data, fresh_row(config, row, data, 0))
    assert first == train_row(config, row, data, fresh_row(config, row, data, 0))
    assert first["memorisation"] > 0.9
    assert first["generalisation"] > 0.85
    assert 1 <= first["best_epoch"] <= 30
    assert first["dead_leaves"] in (0, 1)
    assert train_row(replace(config, lr=1e9), row, data, fresh_row(config, row, data, 0)) is None


def test_variants_are_what_they_say() -> None:
    built = {variant: build_row(TINY, Row(16, 4, variant), 64, 10) for variant in VARIANTS}
    assert {name: layer.losses for name, layer in built.items()} == {name: VARIANTS[name][0] for name in VARIANTS}
    assert {name for name, layer in built.items() if layer.master_width} == {"master"}
    data = load_images(TINY)
    losses = {
        name: row_loss(TINY, Row(16, 4, name), built["hardened"], data.train.x, data.train.y) for name in VARIANTS
    }
    entropy = built["hardened"].forward_with_losses(data.train.x)[1]["entropy"]
    assert (losses["summed"] - losses["hardened"]).item() == pytest.approx(3 * (1 - 1 / 3) * entropy.item(), rel=1e-5)
    assert {layer.form for layer in built.values()} == {"soft"}
    assert build_row(TINY, Row(16, 16, "dense"), 64, 10).depth == 0


def test_a_tiny_run_leaves_records_and_skips_them_next_time(tmp_path: Path, monkeypatch) -> None:
    root = ImagesRoot(results_dir=str(tmp_path), images=TINY)
    records = run_images(root)
    assert len(records) == len(list((tmp_path / "runs").iterdir())) == 2 * (1 + 1 + len(VARIANTS))
    name = run_name(TINY, Row(4, 2, "master"), 1)
    found = read_json(tmp_path / "runs" / f"{name}.json")
    assert (found["kind"], found["status"], found["seed"], found["name"]) == ("images", "finished", 1, name)
    assert found["row"] == {"width": 4, "leaf_width": 2, "variant": "master", "depth": 1}
    assert found["config"]["images"] == TINY.settings()
    assert found["samples"] == {"train": 1293, "valid": 144, "test": 360, "parameters": 65 + 2 * 160 + 8 * 75 + 11}
    assert 0 <= found["metrics"]["generalisation"] <= 1
    assert found["data_library"].startswith("scikit-learn ")
    assert set(found["provider"].split(" + ")) <= {"masked", "gather", "cpu"}

    def refuse(*_):
        raise AssertionError("a finished row ran again")

    monkeypatch.setattr("cramming.images.suite.train_row", refuse)
    assert run_images(root) == records
    write_json(tmp_path / "runs" / f"{name}.json", {**found, "status": "diverged"})
    with pytest.raises(AssertionError, match="ran again"):
        run_images(root)
    monkeypatch.setattr("cramming.images.suite.train_row", lambda *_: None)
    again = next(r for r in run_images(root) if r["name"] == name)
    assert (again["status"], again["metrics"], again["error"]) == ("diverged", {}, "the loss is not finite")


@pytest.mark.parametrize("diverged", [False, True])
def test_a_record_says_who_computed_where_the_layer_can_tell(tmp_path: Path, monkeypatch, diverged: bool) -> None:
    monkeypatch.setattr(LeafFFF, "computed_by", frozenset({"gather", "cpu"}), raising=False)
    if diverged:
        monkeypatch.setattr("cramming.images.suite.train_row", lambda *_: None)
    root = ImagesRoot(results_dir=str(tmp_path), images=replace(TINY, variants=[], controls=False, seeds=[0]))
    (record,) = run_images(root)
    assert (record["status"], record["provider"]) == ("diverged" if diverged else "finished", "cpu + gather")


def test_a_finished_row_stays_when_the_images_change(tmp_path: Path, monkeypatch) -> None:
    root = ImagesRoot(results_dir=str(tmp_path), images=replace(TINY, variants=[], controls=False, seeds=[0]))
    (first,) = run_images(root)
    path = tmp_path / "runs" / f"{first['name']}.json"
    before, whole = path.read_bytes(), load_images(TINY)
    flipped = replace(whole, train=replace(whole.train, x=-whole.train.x))
    monkeypatch.setattr("cramming.images.suite.load_images", lambda _: flipped)
    (second,) = run_images(root)
    assert path.read_bytes() == before
    assert second["name"].startswith(f"{first['name']}-")
    assert second["data_fingerprint"] != first["data_fingerprint"]
    monkeypatch.setattr("cramming.images.suite.load_images", lambda _: whole)
    assert run_images(root) == [first]


def test_a_folder_that_cannot_be_written_shows_before_any_training(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(
        "cramming.images.suite.train_row", lambda *_: pytest.fail("trained before the folder was tried")
    )
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        run_images(ImagesRoot(results_dir=str(tmp_path / "file"), images=TINY))


def test_a_share_that_leaves_no_image_of_a_class_is_named() -> None:
    with pytest.raises(UserError, match=r"images\.test_share is 0\.001: the split is impossible"):
        load_images(replace(TINY, test_share=0.001))


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"label": ["cat"] * 40}, "no class numbers from 0"),
        ({"label": [0.5] * 40}, "no class numbers from 0"),
        ({"label": [-1] * 40}, "no class numbers from 0"),
        ({"label": [[1, 2]] * 40}, "no class numbers from 0"),
        ({"img": [None] * 40}, "no images"),
        ({"img": ["text"] * 40}, "no images"),
    ],
)
def test_columns_of_another_kind_are_named(monkeypatch, columns: dict, words: str) -> None:
    load = hub()
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: Table(load(*a, **k) | columns))
    with pytest.raises(UserError, match=words):
        load_images(composed("images", "images=cifar10").images)


def test_the_table_has_ours_beside_the_nearest_of_the_papers() -> None:
    records = [record(0.9 + seed / 100, seed) for seed in range(3)]
    records += [record(0.97, row=Row(16, 16, "dense")), record(0.8, row=Row(8, 8, "dense"))]
    records += [record(0.7, row=Row(32, 8, "balanced")), record(0.1, 3, status="diverged")]
    text = build_tables(records, PAPER)["images.md"]
    digits, generalisation = text.split("### Generalisation")[:2]
    assert "The paper does not use digits; its nearest data set, USPS, stands beside it." in digits
    assert "1,293 to train, 144 to validation, 360 to test" in digits
    assert line(digits, "| leaf 8, hardened | paper, USPS")[2:] == ["99.3", "99.2", "99.2", "99.5"]
    assert line(digits, "| leaf 8, hardened | ours")[2:] == ["91.0 (90.0–92.0), n=3", "—", "—", "—"]
    assert line(digits, "| leaf 8, hardened, balanced | ours")[2:] == ["—", "70.0, n=1", "—", "—"]
    assert line(generalisation, "| leaf 8, hardened | ours")[2] == "81.0 (80.0–82.0), n=3"
    assert line(generalisation, "| leaf 8, hardened | 1 of 2")[1:] == ["1 of 2", "—", "—", "—"]
    assert line(generalisation, "| FF 8 |")[1:] == ["80.0, n=1", "70.0, n=1"]
    assert "`images-digits-w16-l8-hardened-s3-200`: diverged" in text.split("## Left out")[1]


def test_other_settings_are_another_block_and_what_is_missing_stays_missing() -> None:
    short = record(0.5, epochs=7)
    short["metrics"] = {"memorisation": 0.5, "dead_leaves": 0.0}
    text = build_tables([record(0.9), short], PAPER)["images.md"]
    assert "## digits, settings S1" in text
    assert "## digits, settings S2" in text
    second = text.split("## digits, settings S2")[1].split("### Generalisation")[1]
    assert line(second, "| leaf 8, hardened | ours")[2] == "—"
    assert "- S2: " in text
    empty = build_tables([], PAPER)["images.md"]
    assert empty.count(", not run") == 3
    assert line(empty, "| FF | ours")[2:] == ["—"] * 4
    own = build_tables([record(0.9, name="MNIST"), record(0.9, name="CIFAR10")], PAPER)["images.md"]
    assert "The paper's own data set" in own
    assert "The paper's Table 1 has no CIFAR10" in own
    assert "n=1" not in empty


def test_same_records_give_equal_bytes_and_the_csv_has_them_all() -> None:
    records = [record(0.9 + seed / 100, seed, row) for seed in range(3) for row in ImagesConfig().rows()]
    tables, turned = build_tables(records, PAPER), build_tables(records[::-1], PAPER)
    assert (tables["images.md"], tables["images.csv"]) == (turned["images.md"], turned["images.csv"])
    rows = list(csv.DictReader(io.StringIO(tables["images.csv"])))
    ours = [row for row in rows if row["source"] == "ours"]
    assert len(ours) == 2 * len(ImagesConfig().rows())
    assert {(row["median"], row["n"]) for row in ours if row["quantity"] == "memorisation"} == {("91", "3")}
    paper = [row for row in rows if row["source"] == "paper" and row["data"] == "MNIST"]
    assert len(paper) == 5 * 4 * 2
    assert {row["n"] for row in paper} == {""}


class Table(dict):
    """Stands for a data set of the hub."""

    column_names = ("img", "label")


def hub(sizes: tuple[int, ...] = (40, 20), shape: tuple[int, ...] = (4, 4, 3)):
    def load(name: str, config: str | None, split: str, revision: str | None) -> Table:
        count = sizes[split == "test"]
        images = [np.full(shape, index % 256, dtype=np.uint8) for index in range(count)]
        return Table(img=images, label=[index % 4 for index in range(count)])

    return load


def test_a_hub_data_set_is_read_and_its_faults_are_named(monkeypatch) -> None:
    config = composed("images", "images=cifar10").images
    monkeypatch.setattr(datasets, "load_dataset", hub())
    data = load_images(config)
    assert (len(data.train), len(data.valid), len(data.test), data.pixels, data.classes) == (36, 4, 20, 48, 4)
    with pytest.raises(UserError, match=r"images\.image_column is 'image'; uoft-cs/cifar10 has img, label"):
        load_images(replace(config, image_column="image"))
    with pytest.raises(UserError, match=r"images\.valid_share"):
        load_images(replace(config, valid_share=0.001))

    def unreachable(*_, **__):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(UserError, match=r"uoft-cs/cifar10 .* cannot be read \(ConnectionError: no route to host\)"):
        load_images(config)


def test_every_option_composes() -> None:
    names = {option: composed("images", f"images={option}").images.name for option in options("images")}
    assert names["digits"] == "digits"
    assert {"MNIST", "FashionMNIST", "USPS", "CIFAR10"} < set(names.values())
    assert composed("images").images == composed("images", "images=digits").images == ImagesConfig()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "disk"}, r"images\.source is 'disk'; choose one of digits, hub"),
        ({"source": "hub"}, r"images\.id is missing"),
        ({"name": "a/b"}, r"images\.name is 'a/b'"),
        ({"widths": [12]}, r"images\.widths has 12, which is no 8"),
        ({"widths": [8]}, r"images\.widths has 8, which is no 8"),
        ({"leaf_widths": [0]}, r"images\.leaf_widths is 0; set it from 1"),
        ({"variants": ["harder"]}, r"images\.variants names 'harder'; use some of hardened"),
        ({"seeds": []}, r"images\.seeds is \[\]"),
        ({"seeds": [1, 1]}, r"images\.seeds names something twice"),
        ({"epochs": 0}, r"images\.epochs is 0"),
        ({"lr": 0.0}, r"images\.lr is 0.0"),
        ({"entropy_weight": -1.0}, r"images\.entropy_weight is -1.0"),
        ({"valid_share": 0.0}, r"images\.valid_share is 0.0"),
        ({"activation": "sine"}, r"images\.activation is 'sine'"),
        *[
            ({key: value}, rf"images\.{key} is {value}; set it")
            for key in ("lr", "entropy_weight", "balance_weight", "test_share", "valid_share")
            for value in (float("inf"), float("nan"))
        ],
        ({"split_seed": -1}, r"images\.split_seed is -1; set it"),
        ({"seeds": [-1]}, r"images\.seeds is -1; set it"),
        ({"seeds": [2**64]}, r"images\.seeds is 18446744073709551616; set it"),
        ({"widths": [2**60]}, r"images\.widths is \d+; set it from 1 to 1.04858e\+06"),
        ({"master_width": 10**18}, r"images\.master_width is \d+; set it"),
        ({"name": "x" * 300}, r"images\.name is 'xxx"),
    ],
)
def test_bad_settings_are_named(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ImagesConfig(**changes)
