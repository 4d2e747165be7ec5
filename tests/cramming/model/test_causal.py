"""The crammed decoder: no token sees a later one, the cache changes nothing, and no class takes the other's weights."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    DynamicCache,
    StaticCache,
    Trainer,
    TrainingArguments,
)

from cramming.model import CrammedConfig, CrammedForCausalLM, CrammedForMaskedLM, CrammedModel
from cramming.model.card import model_card
from cramming.model.flops import BACKWARD, training_flops
from fff.feedforward import KINDS
from tests.helpers.model import FFNS, batch, config

LAYERS = {
    **FFNS,
    "leaf": {"kind": "leaf", "depth": 2, "leaf_width": 4},
    "moe": {"kind": "moe", "experts": 4, "expert_width": 8, "top": 2},
    "peer": {"kind": "peer", "keys": 8, "heads": 2, "top": 2, "query_width": 8},
    "random": {"kind": "fixed", "trees": 2, "depth": 3, "path": "random"},
    "token": {"kind": "fixed", "trees": 2, "depth": 3, "path": "token"},
}
POSITIONS = ("sinusoidal", "rotary")


def test_every_kind_is_tried() -> None:
    assert {layer["kind"] for layer in LAYERS.values()} == set(KINDS)


def decoder(ffn: str = "path", attention: str = "sdpa", **changes) -> CrammedForCausalLM:
    torch.manual_seed(0)
    settings = {"causal": True, "initializer_range": 0.3, "max_position_embeddings": 32, **changes}
    return CrammedForCausalLM._from_config(config(LAYERS[ffn], **settings), attn_implementation=attention).eval()


def prompts(length: int = 9) -> torch.Tensor:
    return batch()[0][:, :length]


def greedy(model: CrammedForCausalLM, ids: torch.Tensor, mask: torch.Tensor | None = None, **settings) -> torch.Tensor:
    mask = torch.ones_like(ids) if mask is None else mask
    found = model.generate(ids, attention_mask=mask, max_new_tokens=15, do_sample=False, **settings)
    return found[:, ids.shape[1] :]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("ffn", LAYERS)
@torch.no_grad()
def test_a_later_token_changes_no_earlier_logit(ffn: str, attention: str) -> None:
    model, tokens = decoder(ffn, attention), batch()[0]
    changed = tokens.clone()
    changed[:, 10] = (tokens[:, 10] - 6) % 73 + 7
    before, after = model(tokens).logits, model(changed).logits
    torch.testing.assert_close(after[:, :10], before[:, :10], atol=1e-5, rtol=1e-5)
    assert ((after - before)[:, 10:].abs().amax(-1) > 1e-3).all()


@pytest.mark.parametrize("positions", POSITIONS)
@torch.no_grad()
def test_of_one_layer_each_position_is_the_end_of_a_shorter_text(positions: str) -> None:
    # Keys and values of one layer depend on embeddings alone, so that the last token of a text that is seen whole is
    # what a causal model has there, with the same weights.
    model = decoder(num_hidden_layers=1, positions=positions)
    whole = CrammedForMaskedLM(config(num_hidden_layers=1, positions=positions, max_position_embeddings=32)).eval()
    whole.load_state_dict(model.state_dict())
    tokens = batch()[0]
    expected = torch.stack([whole(tokens[:, :end]).logits[:, -1] for end in range(1, 17)], dim=1)
    torch.testing.assert_close(model(tokens).logits, expected, atol=1e-5, rtol=1e-4)
    loss = torch.nn.functional.cross_entropy(expected[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    torch.testing.assert_close(model(tokens, labels=tokens).loss, loss)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("ffn", LAYERS)
def test_generation_with_a_cache_is_generation_without_to_the_token(ffn: str, positions: str) -> None:
    model = decoder(ffn, positions=positions)
    # Without one token again and again, which any cache would give.
    found, expected = (greedy(model, prompts(), use_cache=cached, no_repeat_ngram_size=1) for cached in (True, False))
    assert found.shape == (3, 15)
    assert torch.equal(found, expected)
    assert all(len(row.unique()) == 15 for row in found)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_generation_is_the_greedy_choice_of_whole_passes(attention: str) -> None:
    model, ids = decoder(attention=attention), prompts()
    for token in greedy(model, ids).T:
        assert torch.equal(model(ids).logits[:, -1].argmax(-1), token)
        ids = torch.cat((ids, token[:, None]), dim=1)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("positions", POSITIONS)
@torch.no_grad()
def test_padding_on_the_left_changes_nothing(positions: str, attention: str) -> None:
    model, lengths = decoder(positions=positions, attention=attention), (9, 4, 6)
    rows = [row[:length] for row, length in zip(prompts(), lengths, strict=True)]
    ids, mask = torch.zeros(3, 9, dtype=torch.long), torch.zeros(3, 9, dtype=torch.long)
    for number, row in enumerate(rows):
        ids[number, -len(row) :], mask[number, -len(row) :] = row, 1
    logits = model(ids, attention_mask=mask).logits
    together = greedy(model, ids, mask)
    for number, row in enumerate(rows):
        alone = model(row[None]).logits[0]
        torch.testing.assert_close(logits[number, -len(row) :], alone, atol=1e-5, rtol=1e-4)
        assert torch.equal(greedy(model, row[None])[0], together[number])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("make", [DynamicCache, StaticCache])
@torch.no_grad()
def test_a_text_may_come_in_pieces(make: type, attention: str) -> None:
    model, tokens = decoder(attention=attention), batch()[0]
    expected = model(tokens, output_attentions=True)
    cache = make(config=model.config, max_cache_len=20) if make is StaticCache else make(config=model.config)
    pieces = [model(piece, past_key_values=cache).logits for piece in tokens.split([5, 1, 7, 3], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), expected.logits, atol=1e-5, rtol=1e-4)
    assert cache.get_seq_length() == 16
    for weights in expected.attentions:
        assert not weights.triu(1).any()
        torch.testing.assert_close(weights.sum(-1), torch.ones(3, 4, 16))
    seen = model(tokens[:, :5], use_cache=True, output_attentions=True).past_key_values
    looked = model(tokens[:, 5:8], past_key_values=seen, output_attentions=True).attentions
    for piece, whole in zip(looked, expected.attentions, strict=True):
        torch.testing.assert_close(piece, whole[:, :, 5:8, :8], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_some_positions_may_get_logits() -> None:
    model, tokens = decoder(), batch()[0]
    logits = model(tokens).logits
    torch.testing.assert_close(model(tokens, logits_to_keep=1).logits, logits[:, -1:])
    torch.testing.assert_close(model(tokens, logits_to_keep=torch.tensor([0, 3])).logits, logits[:, [0, 3]])
    assert model(tokens).past_key_values is None
    assert model(tokens, labels=tokens, with_logits=False).logits is None


def test_a_cache_beyond_the_models_length_is_refused() -> None:
    model, tokens = decoder(max_position_embeddings=16), batch()[0]
    cache = model(tokens, use_cache=True).past_key_values
    with pytest.raises(ValueError, match=r"cache has 16 tokens and the input 1; the model takes 16 at most"):
        model(tokens[:, :1], past_key_values=cache)


def test_padding_is_no_label_and_parts_add_up() -> None:
    model, tokens = decoder().train(), batch()[0]
    labels = tokens.clone()
    labels[1, 9:] = -100
    whole = model(tokens, labels=labels)
    chosen = model(tokens).logits[:, :-1][labels[:, 1:] != -100]
    torch.testing.assert_close(
        whole.loss, torch.nn.functional.cross_entropy(chosen, labels[:, 1:][labels[:, 1:] != -100])
    )
    items = (labels[:, 1:] != -100).sum()
    parts = [model(tokens[i : i + 1], labels=labels[i : i + 1], num_items_in_batch=items).loss for i in range(3)]
    torch.testing.assert_close(sum(parts), whole.loss)


@pytest.mark.parametrize("ffn", LAYERS)
@torch.no_grad()
def test_saved_and_loaded_it_is_the_same(ffn: str, tmp_path: Path) -> None:
    model = decoder(ffn)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(again) is CrammedForCausalLM
    assert torch.equal(again(batch()[0]).logits, model(batch()[0]).logits)
    trunk = AutoModel.from_pretrained(tmp_path).eval()
    assert torch.equal(trunk(batch()[0]).last_hidden_state, model.model(batch()[0]).last_hidden_state)


OUTSIDE = """
import sys, torch, transformers
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
assert not any(name.startswith("cramming") for name in sys.modules)
ids = torch.arange(7, 12)[None]
print(model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False).tolist())
"""


def test_it_generates_where_the_project_is_unknown(tmp_path: Path) -> None:
    model, ids = decoder(), torch.arange(7, 12)[None]
    model.save_pretrained(tmp_path / "model")
    command = [sys.executable, "-c", OUTSIDE, str(tmp_path / "model")]
    environment = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment |= {"PYTHONPATH": str(Path(__file__).resolve().parents[3]), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-800:]
    expected = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
    assert json.loads(done.stdout) == expected.tolist()


def test_a_folder_names_the_heads_that_it_can_have(tmp_path: Path) -> None:
    decoder().save_pretrained(tmp_path)
    mapped = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert set(mapped) == {"AutoConfig", "AutoModel", "AutoModelForCausalLM"}


@pytest.mark.parametrize("auto", [AutoModelForMaskedLM, AutoModelForSequenceClassification])
def test_a_decoder_is_no_model_of_whole_texts_and_the_reverse(auto: type, tmp_path: Path) -> None:
    decoder().save_pretrained(tmp_path / "causal")
    with pytest.raises(ValueError, match=r"config\.causal is True.* AutoModelForCausalLM and AutoModel take it"):
        auto.from_pretrained(tmp_path / "causal")
    CrammedForMaskedLM(config()).save_pretrained(tmp_path / "masked")
    with pytest.raises(ValueError, match=r"config\.causal is False.* CrammedForCausalLM does not take it"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "masked")


def test_the_trunk_of_a_model_of_whole_texts_ignores_caches() -> None:
    model, tokens = CrammedModel(config()).eval(), batch()[0]
    output = model(tokens, use_cache=True, past_key_values=DynamicCache())
    assert output.past_key_values is None
    assert torch.equal(output.last_hidden_state, model(tokens).last_hidden_state)


def test_the_card_says_how_to_generate() -> None:
    card = model_card(decoder(), {})
    assert "pipeline_tag: text-generation" in card
    assert "a crammed decoder" in card
    assert "AutoModelForCausalLM.from_pretrained" in card
    assert "model.generate(" in card
    assert "model.generate(" not in model_card(CrammedForMaskedLM(config()), {})


def test_half_of_the_positions_are_seen_and_counted() -> None:
    sizes = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 1, "ffn": {"kind": "none"}}
    heads = {"num_attention_heads": 2}
    whole, causal = (training_flops(CrammedConfig(causal=c, **sizes, **heads), 16, 4) for c in (False, True))
    assert whole.path - causal.path == BACKWARD * 4 * 32 * (16 - 17 / 2)


def test_the_trainer_of_transformers_trains_it(tmp_path: Path) -> None:
    rows = [{"input_ids": row, "labels": row} for row in batch()[0]] * 4
    settings = {"max_steps": 30, "learning_rate": 5e-3, "report_to": [], "use_cpu": True, "disable_tqdm": True}
    trainer = Trainer(decoder(), TrainingArguments(str(tmp_path), **settings), train_dataset=rows, eval_dataset=rows)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before - 1
