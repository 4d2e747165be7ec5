"""Pretraining with objective=causal: what is predicted, what comes of a run, and what refuses it."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cramming.data.tokenizer import SEP
from cramming.errors import UserError
from cramming.glue.evaluate import evaluate_run
from cramming.glue.root import GlueRoot
from cramming.model import CrammedForCausalLM
from cramming.objectives.causal import CausalTokens
from cramming.objectives.config import OBJECTIVES, ObjectiveConfig
from cramming.report.comparisons import conditions
from cramming.report.groups import scale_of
from cramming.train.pretrain import pretrain
from cramming.train.root import PretrainRoot
from tests.helpers.composed import composed, options
from tests.helpers.glue import tiny_tokenizer
from tests.helpers.model import config
from tests.helpers.tiny import tiny_root

CAUSAL = ObjectiveConfig("causal")


def causal_root(folder: Path, **train: object) -> PretrainRoot:
    return replace(tiny_root(folder, **train), objective=CAUSAL)


def model() -> CrammedForCausalLM:
    torch.manual_seed(0)
    return CrammedForCausalLM(config(causal=True, initializer_range=0.3)).eval()


def sequences() -> np.ndarray:
    return np.random.default_rng(0).integers(7, 80, (4, 16))


def test_every_objective_has_an_option_and_the_reverse() -> None:
    assert set(options("objective")) == set(OBJECTIVES)
    for kind in OBJECTIVES:
        assert composed("pretrain", f"objective={kind}").objective == ObjectiveConfig(kind)
    with pytest.raises(UserError, match=r"objective\.kind is 'next'; choose one of masked, causal"):
        ObjectiveConfig("next")


def test_each_token_but_the_first_is_predicted_from_those_before() -> None:
    objective, found = CausalTokens(), model()
    batch = objective.batch(sequences(), np.arange(4))
    assert objective.predicted(16) == 15
    with torch.no_grad():
        logits = found(batch.input_ids).logits
        loss, parts = objective.losses(found, batch)
    losses = [
        -torch.log_softmax(logits[row, place], -1)[batch.input_ids[row, place + 1]]
        for row in range(4)
        for place in range(15)
    ]
    torch.testing.assert_close(loss, torch.stack(losses).mean())
    assert parts.keys() == {"causal"}
    figures = objective.figures(objective.sums(found, batch).tolist())
    assert figures["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert figures["perplexity"] == pytest.approx(math.exp(loss.item()), rel=1e-4)
    right = (logits[:, :-1].argmax(-1) == batch.input_ids[:, 1:]).float().mean().item()
    assert figures["accuracy"] == pytest.approx(right)


def test_sums_add_up_over_batches() -> None:
    objective, found = CausalTokens(), model()
    parts = [objective.sums(found, objective.batch(sequences()[i : i + 1], np.arange(1))) for i in range(4)]
    whole = objective.sums(found, objective.batch(sequences(), np.arange(4)))
    torch.testing.assert_close(torch.stack(parts).sum(0), whole)


def test_the_baseline_is_of_the_predicted_tokens_alone() -> None:
    batch = CausalTokens().batch(np.array([[9, 8, 8, 7]]), np.arange(1))
    counts = np.zeros(10, dtype=np.int64)
    counts[8] = 10
    expected = -(2 * math.log(11 / 20) + math.log(1 / 20)) / 3
    assert CausalTokens().baseline(counts, [batch]) == pytest.approx(expected)


def test_text_goes_on_from_the_mask_and_is_not_ended() -> None:
    objective, tokenizer = CausalTokens(), tiny_tokenizer()
    made = objective.exported(tokenizer)
    assert made("good film")["input_ids"] == tokenizer("good film")["input_ids"][:-1]
    assert tokenizer("good film")["input_ids"][-1] == SEP  # the data's own is as it was
    padded = made(["good film is", "bad"], padding=True)
    assert padded["attention_mask"] == [[1, 1, 1], [0, 0, 1]]
    texts = ["good film", "good film <mask> bad plot.", "<mask> film"]
    shown = list(objective.shown(model(), made, texts))
    assert [given for given, _ in shown] == ["good film", "good film", ""]
    assert shown[0][1] == shown[1][1]


def test_a_decoder_is_pretrained_saved_and_speaks(tmp_path: Path, capsys) -> None:
    root = causal_root(tmp_path, budget_steps=60, lr=1e-2)
    root = replace(root, data=replace(root.data, examples=["The cat sees the <mask>."]))
    pretrain(root)
    record = json.loads((root.run_folder / "record.json").read_text())
    metrics = record["metrics"]
    assert metrics["valid_loss"] < metrics["unigram_loss"] - 0.5
    assert metrics["valid_perplexity"] == pytest.approx(math.exp(metrics["valid_loss"]))
    assert record["config"]["objective"] == {"kind": "causal"}
    printed = capsys.readouterr().out
    assert "The cat sees the\n    -> " in printed
    assert f"perplexity {metrics['valid_perplexity']:.2f}" in printed

    folder = root.run_folder / "model"
    card = (folder / "README.md").read_text()
    assert f"| perplexity | {metrics['valid_perplexity']:.2f} |" in card
    assert "nats per token" in card
    assert "masked" not in card
    assert AutoTokenizer.from_pretrained(folder)(["The cat", "The"], padding=True)["attention_mask"][1] == [0, 0, 1]
    # The card's own lines.
    code = card.split("```python\n")[-1].split("```")[0]
    names = {"model": AutoModelForCausalLM.from_pretrained(folder), "tokenizer": AutoTokenizer.from_pretrained(folder)}
    exec(code, names)
    # Its 80 words have no "of".
    assert capsys.readouterr().out.lower().startswith("['the number ")
    assert names["model"].generation_config.eos_token_id == SEP

    pretrain(root)  # the same command finds it
    assert "is finished already" in capsys.readouterr().out

    own = GlueRoot(**{name: getattr(root, name) for name in PretrainRoot.__dataclass_fields__})
    for glue in (own, replace(own, checkpoint=str(folder), objective=ObjectiveConfig())):
        with pytest.raises(UserError, match=r"objective\.kind=causal.*pretrained with objective=masked"):
            evaluate_run(glue)


def test_the_objective_names_another_run_and_a_masked_one_is_named_as_before() -> None:
    masked, causal = composed("pretrain"), composed("pretrain", "objective=causal")
    assert masked.group != causal.group
    assert "objective" not in masked._essence()
    assert causal._essence()["objective"] == {"kind": "causal"}


def test_losses_of_objectives_are_not_compared() -> None:
    records = [
        {"config": composed("pretrain", f"objective={kind}").as_recorded(), "data_fingerprint": "x"}
        for kind in OBJECTIVES
    ]
    assert conditions(records[0]) != conditions(records[1])
    assert "objective causal" in scale_of(records[1]["config"])
    assert "objective" not in scale_of(records[0]["config"])


@pytest.mark.parametrize("key", ["train.mask_rate=0.5", "model.sparse_prediction=false"])
def test_keys_of_masking_are_refused(key: str) -> None:
    composed("pretrain", key)
    with pytest.raises(UserError, match=rf"{key.split('=')[0]} is .* belongs to objective=masked"):
        composed("pretrain", "objective=causal", key)


def test_an_example_needs_no_mask_but_has_no_two(tmp_path: Path) -> None:
    root = causal_root(tmp_path)
    with pytest.raises(UserError, match=r"data\.examples\[0\] is .*once, where it goes on, or not at all"):
        pretrain(replace(root, data=replace(root.data, examples=["<mask> sees <mask>"])))
