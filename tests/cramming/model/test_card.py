"""A saved folder's card says what the model is, how it loads and what it reached."""

from pathlib import Path

import pytest
import yaml

from cramming.model import CrammedForMaskedLM, CrammedForSequenceClassification
from cramming.model.card import model_card
from cramming.model.saved import write_model
from tests.helpers.glue import tiny_tokenizer
from tests.helpers.model import config


@pytest.mark.parametrize(
    ("model", "auto", "task"),
    [
        (CrammedForMaskedLM, "AutoModelForMaskedLM", "fill-mask"),
        (CrammedForSequenceClassification, "AutoModelForSequenceClassification", "text-classification"),
    ],
)
def test_the_card_names_class_layer_and_numbers(model: type, auto: str, task: str) -> None:
    found = model(config())
    card = model_card(found, {"validation loss": "4.3700 nats"})
    head = yaml.safe_load(card.split("---")[1])
    assert head["pipeline_tag"] == task
    assert f"{auto}.from_pretrained" in card
    assert f"{found.num_parameters():,} parameters" in card
    assert "| validation loss | 4.3700 nats |" in card
    assert "None are known" in model_card(found, {})


def test_a_written_folder_has_its_card(tmp_path: Path) -> None:
    write_model(CrammedForMaskedLM(config()), tiny_tokenizer(), tmp_path / "model", {"accuracy": "12 %"})
    assert "| accuracy | 12 % |" in (tmp_path / "model/README.md").read_text()
