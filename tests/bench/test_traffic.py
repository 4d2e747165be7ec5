"""The arithmetic of bytes between processes: formulas, and the page that shows them. No network is timed."""

from pathlib import Path

import pytest

from bench.traffic import MODELS, Weights, sent_per_step, table, weights
from cramming.model import CrammedForMaskedLM
from tests.helpers.model import config

PAGE = Path(__file__).parents[2] / "docs" / "scale.md"


def test_rings_send_all_but_the_part_at_home() -> None:
    model = Weights(whole=1000, blocks=600)
    assert sent_per_step(model, 1, "ddp", 8) == sent_per_step(model, 1, "fsdp", 8) == 0
    assert sent_per_step(model, 2, "ddp", 8) == 4 * 1000
    assert sent_per_step(model, 4, "ddp", 1) == pytest.approx(1.5 * 4 * 1000)
    assert sent_per_step(model, 2, "fsdp", 3) == pytest.approx(3 * 0.5 * (1600 * 2 + 1000 * 4))
    assert sent_per_step(model, 2, "fsdp", 3, travelling=4) == pytest.approx(3 * 0.5 * (1600 * 4 + 1000 * 4))


def test_weights_are_those_of_the_model() -> None:
    model = CrammedForMaskedLM(config("path"))
    sizes = {"vocab_size": 80, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    found = weights({"kind": "path", "trees": 2, "depth": 3}, max_position_embeddings=16, **sizes)
    assert found.whole == sum(p.numel() for p in model.parameters())
    assert found.blocks == sum(p.numel() for p in model.model.blocks.parameters())


def test_a_whole_tree_travels_and_not_its_path() -> None:
    tree, dense = (weights(MODELS[name]) for name in ("1x11", "dense 3072"))
    assert tree.blocks - dense.blocks == 16 * (2 * (4095 - 3072) * 768 + 4095)


def test_the_page_shows_what_the_function_gives() -> None:
    assert "\n".join(table()) in PAGE.read_text()
