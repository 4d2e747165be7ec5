"""Training of converted models: a decoder's next words, what names a run, an error that is no number, few waits."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from cramming.convert.pretrained import words
from cramming.convert.pretrained.config import DistillConfig, naming
from cramming.convert.pretrained.judge import perplexity
from cramming.convert.pretrained.teacher import last_hidden
from cramming.convert.pretrained.text import padded
from cramming.convert.pretrained.training import Errors
from cramming.convert.pretrained.whole import Whole
from cramming.convert.pretrained.words import Words, refuse_other_head
from cramming.errors import Diverged, UserError
from cramming.files import read_json, short_hash
from tests.helpers.distilled import bert, documents, job, llama, tokenizer

RECORDS = Path(__file__).parents[3] / "results" / "runs"


@torch.no_grad()
def divergence(dense: nn.Module, model: nn.Module, sequences: list[list[int]]) -> float:
    """Mean KL of held-out next words, written out."""
    total, count = 0.0, 0
    for ids in sequences:
        p, q = (functional.log_softmax(each(torch.tensor([ids])).logits[0].double(), -1) for each in (dense, model))
        total += float((p.exp() * (p - q)).sum())
        count += len(ids)
    return total / count


def trained_llama() -> nn.Module:
    """The tiny decoder, that has read a little of the text: next words hang on few of the numbers within it."""
    dense, read = llama().train(), tokenizer()
    optimiser = torch.optim.Adam(dense.parameters(), lr=3e-3)
    for step in range(120):
        ids = read(documents(16, 100 + step), truncation=True, max_length=32)["input_ids"]
        batch = padded(ids, 0)
        loss = dense(**batch.inputs, labels=batch.ids.masked_fill(batch.mask == 0, -100)).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return dense.eval()


def test_a_decoder_held_to_its_teachers_next_words_is_nearer_to_them_after_as_many_updates(tmp_path: Path) -> None:
    dense = trained_llama()
    found: dict[float, tuple[float, float]] = {}
    for weight in (0.0, 1.0):
        made = job(tmp_path / str(weight), dense, to="none", controls=[], whole_tokens=12_000, word_weight=weight)
        model, held_out = made.make()[0].model, made.exam.held_out
        found[weight] = divergence(dense, model, held_out), perplexity(model, held_out, 0)
    own = perplexity(dense, held_out, 0)
    assert found[1.0][0] < 0.85 * found[0.0][0]
    assert own < found[1.0][1] < found[0.0][1]


def test_divergence_in_parts_is_that_of_all_with_its_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, student = llama(), llama()
    torch.manual_seed(1)
    mine, theirs = torch.randn(23, 32, requires_grad=True), torch.randn(23, 32)
    p, q = (functional.log_softmax(teacher.lm_head(rows), -1) for rows in (theirs, mine))
    wanted = (p.exp() * (p - q)).sum(1).mean()
    (gradient,) = torch.autograd.grad(wanted, mine)
    for held in (2**25, 32 * 5, 1):
        monkeypatch.setattr(words, "HELD", held)
        found = Words(student, teacher).divergence(mine, theirs)
        torch.testing.assert_close(found, wanted)
        torch.testing.assert_close(torch.autograd.grad(found, mine)[0], gradient, rtol=1e-4, atol=1e-7)


def test_the_last_hidden_states_are_recorded_where_next_words_are_compared(tmp_path: Path) -> None:
    made = job(tmp_path, llama())
    number = 3
    batch, rows = made.recording.batches[number], made.recording.span(number)
    with torch.no_grad():
        wanted = last_hidden(made.teacher.model, batch)[batch.mask.bool()]
    torch.testing.assert_close(made.recording.last(rows, torch.device("cpu")), wanted, rtol=1e-3, atol=1e-4)
    for other in (job(tmp_path, llama(), word_weight=0), job(tmp_path, bert())):
        assert not list(other.recording.folder.glob("last.*"))
    blocks = 2 * 3 * 32 * 2 * made.recording.tokens  # bytes of x, y and r of two blocks
    job(tmp_path, llama(), record_gb=1.01e-9 * blocks, word_weight=0)
    with pytest.raises(UserError, match=r"distill\.record_gb"):  # room for them is asked for
        job(tmp_path, llama(), record_gb=1.01e-9 * blocks)


def test_a_decoder_whose_next_words_are_not_its_heads_is_refused() -> None:
    class Scaled(nn.Module):
        """Llama with scaled logits, as some models have them."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = llama()
            self.base_model = self.inner.model

        def get_output_embeddings(self) -> nn.Module:
            return self.inner.lm_head

        def forward(self, **inputs: Any) -> Any:
            found = self.inner(**inputs)
            found.logits = found.logits * 0.5
            return found

    inputs = padded([[5, 6, 7], [8, 9]], 0).inputs
    refuse_other_head(llama(), inputs)
    with pytest.raises(UserError, match=r"distill\.word_weight=0"):
        refuse_other_head(Scaled(), inputs)


def test_encoders_keep_their_names_and_decoders_of_before_are_others() -> None:
    record = read_json(RECORDS / "distill-minilm-leaf-5x192+96-s1-217d41.json")
    settings = {key: value for key, value in record["config"]["distill"].items() if key != "rest"}
    config = DistillConfig(model="minilm", seed=1)
    assert short_hash(settings, 6) == "217d41"
    assert {**naming(config, causal=False), "model": settings["model"], "to": settings["to"]} == settings
    other = dataclasses.replace(config, word_weight=3.0)
    assert naming(other, causal=False) == naming(config, causal=False)
    assert naming(config, causal=True) == naming(config, causal=False) | {"word_weight": 1.0}
    with pytest.raises(UserError, match=r"distill\.word_weight"):
        DistillConfig(model="m", word_weight=-1.0)


def test_an_error_that_is_no_number_ends_training_before_it_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = Errors("here, ")
    errors.note(4, torch.tensor(torch.nan))  # read with the next one, or at the end
    with pytest.raises(Diverged, match="here, update 4"):
        errors.last()
    loss = Whole._loss

    def broken(self: Whole, number: int) -> torch.Tensor:
        self.__dict__["calls"] = self.__dict__.get("calls", 0) + 1
        return loss(self, number) * (torch.nan if self.__dict__["calls"] == 3 else 1.0)

    monkeypatch.setattr(Whole, "_loss", broken)
    with pytest.raises(Diverged, match="update 2"):  # checkpoints are due after every third
        job(tmp_path, to="none", controls=[]).make()
    assert not list(tmp_path.glob("*/checkpoint.pt"))
