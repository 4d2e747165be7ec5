"""The native classes: sparse prediction, padding, round trips, pipeline, Trainer."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM, Trainer, TrainingArguments, pipeline

from cramming.data.config import DataConfig
from cramming.data.prepare import prepare
from cramming.model import CrammedForMaskedLM, CrammedForSequenceClassification
from cramming.model.positions import RotaryPositions, rotate
from fff import PathFFF
from tests.helpers.model import FFNS, batch, config
from tests.helpers.tiny import write_text


@pytest.mark.parametrize("ffn", FFNS)
def test_sparse_prediction_has_the_full_loss_and_gradients(ffn: str) -> None:
    torch.manual_seed(0)
    model = CrammedForMaskedLM(config(ffn))
    tokens, positions, chosen = batch()
    labels = torch.full_like(tokens, -100).scatter(1, positions, chosen)
    model.eval()
    full = model(input_ids=tokens, labels=labels)
    assert full.logits.shape == (3, 16, 80)
    forms = [model(input_ids=tokens, masked_positions=positions, labels=chosen)]
    model.train()
    forms.append(model(input_ids=tokens, labels=labels))
    assert forms[1].logits.shape == (12, 80)
    expected = torch.autograd.grad(full.loss, list(model.parameters()))
    for form in forms:
        torch.testing.assert_close(form.loss, full.loss)
        for ours, theirs in zip(torch.autograd.grad(form.loss, list(model.parameters())), expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_padding_changes_nothing(attention: str) -> None:
    torch.manual_seed(0)
    model = CrammedForMaskedLM._from_config(config(), attn_implementation=attention).eval()
    tokens = batch()[0][:, :10]
    alone = model(input_ids=tokens).logits
    padded = torch.nn.functional.pad(tokens, (0, 6))
    mask = torch.nn.functional.pad(torch.ones_like(tokens), (0, 6))
    together = model(input_ids=padded, attention_mask=mask).logits[:, :10]
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_initialisation_is_the_published_models() -> None:
    torch.manual_seed(0)
    model = CrammedForMaskedLM(config(hidden_size=128))
    (layer,) = [m for m in model.model.blocks[0].modules() if isinstance(m, PathFFF)]
    assert layer.w_in.std().item() == pytest.approx(0.02, rel=0.05)
    assert layer.w_out.std().item() == pytest.approx(0.02, rel=0.05)
    assert not layer.b_in.any()
    assert model.model.embedding.position_scale.item() == pytest.approx(128**-0.5)
    assert model.decoder.weight is model.model.embedding.words.weight


def test_rotary_scores_depend_on_the_distance_alone() -> None:
    rotary = RotaryPositions(16, 8, base=100.0)
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 8, generator=generator).unbind()
    turned_q, turned_k = (rotate(v.expand(16, 8), rotary(16, torch.zeros(1))) for v in (q, k))
    scores = turned_q @ turned_k.T
    torch.testing.assert_close(scores[1:, 1:], scores[:-1, :-1])
    assert (scores[0] - scores[0, 0]).abs().max() > 0.1
    torch.testing.assert_close(turned_q.norm(dim=-1), q.norm().expand(16))
    # Columns 1 and 5 form the second pair, which turns by 100^(-2/8) per token.
    angle = torch.atan2(turned_k[3, 5], turned_k[3, 1]) - torch.atan2(k[5], k[1])
    assert torch.remainder(angle, 2 * math.pi).item() == pytest.approx(3 * 100 ** (-2 / 8), abs=1e-5)


@pytest.mark.parametrize("positions", ["sinusoidal", "rotary"])
def test_the_order_of_words_matters(positions: str) -> None:
    torch.manual_seed(0)
    model = CrammedForMaskedLM(config(positions=positions, initializer_range=0.2)).eval()
    tokens = batch()[0]
    swapped = tokens[:, [1, 0, *range(2, 16)]]
    assert (model(input_ids=tokens).logits - model(input_ids=swapped).logits)[:, 2:].abs().max() > 1e-3


@pytest.mark.parametrize("positions", ["sinusoidal", "rotary"])
@pytest.mark.parametrize("ffn", FFNS)
def test_save_and_load_round_trip(ffn: str, positions: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = CrammedForMaskedLM(config(ffn, positions=positions)).eval()
    with torch.no_grad():
        if positions == "sinusoidal":
            model.model.embedding.position_scale.fill_(0.7)
    model.save_pretrained(tmp_path)
    again = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    tokens = batch()[0]
    assert torch.equal(again(input_ids=tokens).logits, model(input_ids=tokens).logits)


def test_a_plain_auto_model_loads_a_saved_folder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = CrammedForMaskedLM(config()).eval()
    model.save_pretrained(tmp_path / "saved")
    code = (
        "import sys, torch\nfrom transformers import AutoModelForMaskedLM\n"
        f"model = AutoModelForMaskedLM.from_pretrained({str(tmp_path / 'saved')!r}, trust_remote_code=True)\n"
        "assert 'cramming' not in sys.modules\n"
        "print(model(input_ids=torch.arange(16)[None]).logits.double().sum().item())"
    )
    environment = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    expected = model(input_ids=torch.arange(16)[None]).logits.double().sum().item()
    assert float(done.stdout) == pytest.approx(expected, abs=1e-3)


def test_classification_and_regression_losses() -> None:
    torch.manual_seed(0)
    tokens = batch()[0]
    model = CrammedForSequenceClassification(config(num_labels=3)).eval()
    output = model(input_ids=tokens, labels=torch.tensor([0, 1, 2]))
    expected = torch.nn.functional.cross_entropy(output.logits, torch.tensor([0, 1, 2]))
    torch.testing.assert_close(output.loss, expected)
    model = CrammedForSequenceClassification(config(num_labels=1)).eval()
    target = torch.tensor([0.5, 2.0, 5.0])
    output = model(input_ids=tokens, labels=target)
    torch.testing.assert_close(output.loss, (output.logits[:, 0] - target).square().mean())


def test_fill_mask_pipeline_and_hf_trainer(tmp_path: Path) -> None:
    write_text(tmp_path / "text.txt")
    files = [str(tmp_path / "text.txt")]
    data = prepare(
        DataConfig(name="t", source="text", files=files, valid_share=0.2, vocab_size=80, seq_len=32, workers=1),
        tmp_path,
    )
    torch.manual_seed(0)
    model = CrammedForMaskedLM(config(max_position_embeddings=32))
    sequences = torch.from_numpy(data.train.take(torch.arange(64).numpy()))
    rows = [{"input_ids": row, "labels": torch.where(torch.arange(32) % 4 == 0, row, -100)} for row in sequences]
    arguments = TrainingArguments(
        str(tmp_path / "hf"), max_steps=30, learning_rate=5e-3, report_to=[], use_cpu=True, disable_tqdm=True
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before - 0.5
    fill = pipeline("fill-mask", model=model.eval(), tokenizer=data.tokenizer())
    guesses = fill("the cat sees the <mask> near the tree.", top_k=3)
    assert len({guess["token_str"] for guess in guesses}) == 3
    assert sum(guess["score"] for guess in guesses) <= 1


@pytest.mark.parametrize("ffn", FFNS)
def test_a_pass_without_gradients_is_the_same_pass(ffn: str) -> None:
    model = CrammedForMaskedLM(config(ffn, hidden_dropout_prob=0.5)).train()
    tokens = batch()[0]

    def states() -> tuple[torch.Tensor, ...]:
        torch.manual_seed(1)
        return model.model(tokens, output_hidden_states=True).hidden_states

    expected = states()
    with torch.no_grad():
        found = states()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


def test_too_long_and_missing_inputs_are_refused() -> None:
    model = CrammedForMaskedLM(config())
    with pytest.raises(ValueError, match="17 tokens"):
        model(input_ids=torch.zeros(1, 17, dtype=torch.long))
    with pytest.raises(ValueError, match="exactly one"):
        model()
    with pytest.raises(ValueError, match="does not divide"):
        config(num_attention_heads=5)
    with pytest.raises(ValueError, match="positions is 'learned'; choose one of sinusoidal, rotary"):
        config(positions="learned")


def test_masked_equals_gather_in_the_model() -> None:
    torch.manual_seed(0)
    masked = CrammedForMaskedLM(config(ffn="path"))
    masked.config.ffn = FFNS["path"]
    tokens, positions, chosen = batch()
    losses = []
    for provider in ("masked", "gather"):
        for module in masked.modules():
            if isinstance(module, PathFFF):
                module.provider = provider
        loss = masked(input_ids=tokens, masked_positions=positions, labels=chosen).loss
        losses.append((loss, *torch.autograd.grad(loss, list(masked.parameters()))))
    for ours, theirs in zip(*losses, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)
