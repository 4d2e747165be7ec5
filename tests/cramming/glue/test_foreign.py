"""Finetuning encoders of other projects, plain and converted: the encoder is theirs, and what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cramming.errors import UserError
from cramming.glue.classifier import load_classifier
from cramming.glue.config import GlueConfig
from cramming.glue.evaluate import open_given
from cramming.glue.suite import Suite, run_suite
from cramming.glue.tasks import suite_tasks
from cramming.model.foreign import encoder_of, is_foreign, open_foreign
from fff import LeafFFF, surgery
from tests.helpers.distilled import bert, llama, tokenizer
from tests.helpers.glue import write_sst2

TASK = suite_tasks("glue")["sst2"]
TREE = {"kind": "leaf", "depth": 2, "leaf_width": 4}


def saved(folder: Path, *, trees: bool = False, model: Any = None) -> Path:
    """A model's folder as its own project writes it."""
    model = bert() if model is None else model
    if trees:
        surgery.replace_feedforward(model, TREE)
        surgery.save(model, folder)
    else:
        model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("trees", [False, True])
def test_the_classifier_reads_the_folders_own_encoder(tmp_path: Path, trees: bool) -> None:
    folder = saved(tmp_path / "other", trees=trees)
    pretrained = open_foreign(folder)
    model: Any = load_classifier(pretrained, TASK, dropout=0.25).eval()
    ids = torch.randint(4, 30, (3, 9))
    with torch.no_grad():
        expected = encoder_of(folder)(input_ids=ids).last_hidden_state
        assert torch.equal(model.base_model(input_ids=ids).last_hidden_state, expected)
        assert model(input_ids=ids).logits.shape == (3, 2)
    assert sum(isinstance(each, LeafFFF) for each in model.modules()) == (2 if trees else 0)
    assert model.dropout.p == model.bert.encoder.layer[1].output.dropout.p == 0.25
    assert (pretrained.run, pretrained.max_length) == ("other", 64)


@pytest.mark.parametrize("trees", [False, True])
def test_a_record_names_the_folder_and_its_layers(tmp_path: Path, trees: bool) -> None:
    write_sst2(tmp_path / "glue")
    config = GlueConfig(source="local", dir=str(tmp_path / "glue"), tasks=["sst2"], seeds=[0], max_length=16, epochs=1)
    pretrained = open_foreign(saved(tmp_path / "other", trees=trees))
    (record,) = run_suite(Suite(config, pretrained, tmp_path / "results"))
    assert (record["status"], record["pretrain"]) == ("finished", "other")
    assert record["ffn"] == ("leaf4x2" if trees else f"dense{bert().config.intermediate_size}")
    (again,) = run_suite(Suite(replace(config, eval_batch=8), pretrained, tmp_path / "results"))
    assert again == record


def test_other_weights_in_the_folder_are_another_result(tmp_path: Path) -> None:
    first = open_foreign(saved(tmp_path / "other"))
    model = bert()
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[5] += 1
    assert open_foreign(saved(tmp_path / "other", model=model)).weights_sha256 != first.weights_sha256


def given(**changes: Any) -> GlueConfig:
    return GlueConfig(**{"source": "local", "dir": "x", **changes})


@pytest.mark.parametrize(
    ("glue", "words"), [({"source": "mini"}, "glue=local or glue=hub"), ({"save": True}, "glue.save keeps")]
)
def test_what_another_projects_model_cannot_do_is_said(tmp_path: Path, glue: dict[str, Any], words: str) -> None:
    folder = saved(tmp_path / "other")
    with pytest.raises(UserError, match=words):
        open_given(given(**glue), folder)


def test_a_decoder_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "decoder", model=llama())
    assert is_foreign(folder)
    with pytest.raises(UserError, match="holds a decoder"):
        open_given(given(), folder)
