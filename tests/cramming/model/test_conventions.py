"""The models do what transformers' users expect: arguments, losses of parts, Auto classes, PEFT's saved modules."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import Trainer, TrainingArguments

from cramming.model import CrammedForMaskedLM, CrammedForSequenceClassification, CrammedModel
from fff.decay import parameter_groups
from tests.helpers.model import FFNS, batch, config

HEADS = tuple(f"AutoModel{head}" for head in ("", *(f"For{task}" for task in ("MaskedLM", "SequenceClassification"))))
HEADS += tuple(f"AutoModelFor{task}" for task in ("TokenClassification", "QuestionAnswering", "MultipleChoice"))


def classifier(**changes) -> CrammedForSequenceClassification:
    torch.manual_seed(0)
    return CrammedForSequenceClassification(config(initializer_range=0.3, classifier_dropout=0.0, **changes))


def labelled(model: str) -> dict[str, torch.Tensor]:
    tokens, positions, chosen = batch()
    if model == "masked":
        labels = torch.full_like(tokens, -100).scatter(1, positions, chosen)
        labels[0, :12] = -100  # parts of a batch have unequal numbers of labels
        return {"input_ids": tokens, "labels": labels}
    targets = {"one": torch.tensor([0, 2, 1]), "several": torch.rand(3, 3).round(), "number": torch.randn(3)}
    return {"input_ids": tokens, "labels": targets[model]}


def model_for(kind: str) -> torch.nn.Module:
    if kind == "masked":
        torch.manual_seed(0)
        return CrammedForMaskedLM(config(initializer_range=0.3))
    return classifier(num_labels=1 if kind == "number" else 3)


@pytest.mark.parametrize("kind", ["masked", "one", "several", "number"])
@pytest.mark.parametrize("training", [True, False])
def test_losses_of_parts_add_up_to_the_whole(kind: str, training: bool) -> None:
    model, inputs = model_for(kind).train(training), labelled(kind)
    items = (inputs["labels"] != -100).sum()
    whole = model(**inputs)
    parts = [model(**{k: v[i : i + 1] for k, v in inputs.items()}, num_items_in_batch=items).loss for i in range(3)]
    torch.testing.assert_close(sum(parts), whole.loss)


@pytest.mark.parametrize("kind", ["masked", "one", "several", "number"])
def test_trainer_takes_the_same_step_in_parts(kind: str, tmp_path: Path) -> None:
    inputs = labelled(kind)
    rows = [{name: tensor[i % 3] for name, tensor in inputs.items()} for i in range(6)]
    losses = []
    for size, parts in ((6, 1), (2, 3), (1, 6)):
        settings = {"per_device_train_batch_size": size, "gradient_accumulation_steps": parts, "max_steps": 1}
        arguments = TrainingArguments(
            str(tmp_path / str(size)), report_to=[], use_cpu=True, logging_steps=1, **settings
        )
        trainer = Trainer(model_for(kind), arguments, train_dataset=rows)
        trainer.train()
        losses.append({k: trainer.state.log_history[0][k] for k in ("loss", "grad_norm")})
    for found in losses[1:]:
        assert found["loss"] == pytest.approx(losses[0]["loss"], rel=2e-4)
        assert found["grad_norm"] == pytest.approx(losses[0]["grad_norm"], rel=2e-4)


def test_several_classes_at_once_and_float_labels() -> None:
    model, inputs = classifier(num_labels=3).eval(), labelled("several")
    output = model(**inputs)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(output.logits, inputs["labels"])
    torch.testing.assert_close(output.loss, expected)
    with pytest.raises(ValueError, match=r"needs labels \(3, 3\), got \(3,\)"):
        model(inputs["input_ids"], labels=torch.rand(3))
    model.config.problem_type = "regression"
    loss = model(**inputs).loss
    torch.testing.assert_close(loss, torch.nn.functional.mse_loss(output.logits, inputs["labels"]))
    model.config.problem_type = "single_label_classification"
    with pytest.raises(ValueError, match="whole numbers"):
        model(inputs["input_ids"], labels=torch.rand(3))


@pytest.mark.parametrize("model", [CrammedModel, CrammedForMaskedLM, CrammedForSequenceClassification])
def test_no_argument_is_swallowed(model: type) -> None:
    found, tokens = model(config()).eval(), batch()[0]
    with pytest.raises(TypeError, match=r"unexpected argument 'atention_mask'; did you mean attention_mask\?"):
        found(tokens, atention_mask=torch.ones_like(tokens))
    with pytest.raises(ValueError, match="knows no segments"):
        found(tokens, token_type_ids=torch.ones_like(tokens))
    found(tokens, token_type_ids=torch.zeros_like(tokens), use_cache=False)


@pytest.mark.parametrize("positions", ["sinusoidal", "rotary"])
def test_positions_may_be_given(positions: str) -> None:
    torch.manual_seed(0)
    model, tokens = CrammedModel(config(positions=positions, initializer_range=0.3)).eval(), batch()[0]
    counted = torch.arange(16)
    expected = model(tokens).last_hidden_state
    for given in (counted[None], counted.expand(3, -1)):
        assert torch.equal(model(tokens, position_ids=given).last_hidden_state, expected)
    # Tokens in another order, with their own places: the same states in that order.
    order = torch.randperm(16)
    moved = model(tokens[:, order], position_ids=order[None]).last_hidden_state
    torch.testing.assert_close(moved, expected[:, order], atol=2e-5, rtol=2e-4)
    assert not torch.allclose(model(tokens, position_ids=counted.flip(0)[None]).last_hidden_state, expected, atol=1e-2)


@pytest.mark.parametrize("padded", [True, False])
def test_attentions_are_weights_and_change_nothing(padded: bool) -> None:
    torch.manual_seed(0)
    model, tokens = CrammedModel(config(initializer_range=0.3)).eval(), batch()[0]
    mask = torch.ones_like(tokens)
    if padded:
        mask[1, 10:] = 0
    plain, looked = (model(tokens, attention_mask=mask, output_attentions=look) for look in (False, True))
    assert plain.attentions is None
    assert len(looked.attentions) == 2
    for weights in looked.attentions:
        assert weights.shape == (3, 4, 16, 16)
        torch.testing.assert_close(weights.sum(-1), torch.ones(3, 4, 16))
        assert not padded or not weights[1, :, :, 10:].any()
    torch.testing.assert_close(looked.last_hidden_state, plain.last_hidden_state)


def test_the_last_of_the_hidden_states_is_the_last_hidden_state() -> None:
    model, tokens = CrammedModel(config()).eval(), batch()[0]
    output = model(tokens, output_hidden_states=True)
    assert len(output.hidden_states) == 3
    assert torch.equal(output.hidden_states[-1], output.last_hidden_state)
    assert torch.equal(output.hidden_states[0], model.embedding(tokens, None))


@pytest.mark.parametrize("ffn", sorted(set(FFNS) - {"none"}))
def test_what_a_hook_keeps_is_not_written_over(ffn: str) -> None:
    torch.manual_seed(0)
    model, tokens = CrammedModel(config(ffn, initializer_range=0.3)).eval(), batch()[0]
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []
    model.blocks[0].ffn_norm.register_forward_pre_hook(lambda _, inputs: kept.append((inputs[0], inputs[0].clone())))
    with torch.no_grad():
        model(tokens)
    assert torch.equal(*kept[0])


LOAD = """
import sys, torch
{block}
import transformers
for auto in sys.argv[2:]:
    model = getattr(transformers, auto).from_pretrained(sys.argv[1], trust_remote_code=True)
    assert not any(name.startswith("cramming") for name in sys.modules)
    ids = torch.arange(7, 15)[None]
    print(type(model).__name__, model(ids[None] if "Choice" in auto else ids)[0].shape[-1])
"""
WITHOUT_FFF = "sys.modules['fff'] = None"


@pytest.mark.parametrize("saved", [CrammedModel, CrammedForMaskedLM, CrammedForSequenceClassification])
def test_a_folder_names_every_head_and_carries_their_code(saved: type, tmp_path: Path) -> None:
    saved(config()).save_pretrained(tmp_path)
    mapped = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert {"AutoConfig", *HEADS} == set(mapped)
    for name in mapped.values():
        assert (tmp_path / f"{name.split('.')[0]}.py").exists()


def test_any_head_loads_where_the_project_is_unknown(tmp_path: Path) -> None:
    CrammedForMaskedLM(config()).save_pretrained(tmp_path / "model")
    done = load(tmp_path, HEADS, "")
    assert done.returncode == 0, done.stderr[-800:]
    classes = [auto.replace("Auto", "Crammed").replace("ModelFor", "For") for auto in HEADS]
    assert [line.split()[0] for line in done.stdout.splitlines()] == classes


def test_a_machine_without_the_layers_is_told_the_right_name(tmp_path: Path) -> None:
    CrammedForMaskedLM(config()).save_pretrained(tmp_path / "model")
    done = load(tmp_path, ["AutoModelForMaskedLM"], WITHOUT_FFF)
    assert done.returncode != 0
    assert "are in the package fff-cramming" in done.stderr
    assert "pip install fff`" not in done.stderr


def load(home: Path, autos: Sequence[str], block: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", LOAD.format(block=block), str(home / "model"), *autos]
    environment = {"HF_HOME": str(home / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    root = str(Path(__file__).resolve().parents[3])
    environment |= {"PYTHONPATH": root, "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_head_under_its_former_names_still_loads(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = classifier(num_labels=3).eval()
    model.save_pretrained(tmp_path)
    former = {"classifier.dense.": "pooler.", "classifier.out_proj.": "classifier."}
    weights = load_file(tmp_path / "model.safetensors")
    for new, old in former.items():
        weights = {name.replace(new, old) if name.startswith(new) else name: tensor for name, tensor in weights.items()}
    assert "pooler.weight" in weights
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = CrammedForSequenceClassification.from_pretrained(tmp_path).eval()
    tokens = batch()[0]
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)


def test_the_head_is_one_module_of_the_name_that_peft_keeps() -> None:
    encoder = {name for name, _ in CrammedModel(config()).named_parameters(prefix="model")}
    rest = {name.split(".")[0] for name, _ in classifier().named_parameters() if name not in encoder}
    assert rest == {"classifier"}


def test_the_biases_of_an_fff_need_not_decay_under_trainer(tmp_path: Path) -> None:
    model = model_for("one")
    groups = parameter_groups(model, 0.1)
    optimiser = torch.optim.AdamW(groups, lr=0.1)
    arguments = TrainingArguments(str(tmp_path), report_to=[], use_cpu=True, max_steps=1, learning_rate=0.1)
    rows = [{name: tensor[0] for name, tensor in labelled("one").items()}]
    trainer = Trainer(model, arguments, train_dataset=rows, optimizers=(optimiser, None))
    trainer.train()
    without = {id(parameter) for parameter in groups[1]["params"]}
    named = {name for name, parameter in model.named_parameters() if id(parameter) in without}
    assert {name for name in named if "ffn.b_in" in name} == {f"model.blocks.{i}.ffn.b_in" for i in range(2)}
    assert not any(name.endswith(("w_in", "w_out", "qkv.weight")) for name in named)
    assert trainer.optimizer.optimizer.param_groups[1]["weight_decay"] == 0.0
