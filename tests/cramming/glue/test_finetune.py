"""Finetuning and the suite's runs on a tiny model: it learns, follows its seed, skips, fails honestly."""

import json
import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from cramming.data.lengths import equal_lengths
from cramming.errors import UserError
from cramming.files import read_json, write_json
from cramming.glue import finetune as finetune_module
from cramming.glue import suite as suite_module
from cramming.glue.classifier import load_classifier
from cramming.glue.config import GlueConfig
from cramming.glue.encode import encode, evaluation_batches, training_batches
from cramming.glue.finetune import predict, scored
from cramming.glue.sources import Split
from cramming.glue.suite import Suite, run_suite
from cramming.glue.summary import summary
from cramming.glue.tasks import suite_tasks
from cramming.model.saved import load_tokenizer, open_pretrained
from fff.layers.path import PathFFF
from fff.layers.quantised import QuantisedPath
from fff.optimise import fastest_linears
from fff.successors import InBfloat16
from tests.helpers.glue import WORDS, tiny_run, tiny_tokenizer, write_sst2

SST2 = suite_tasks("glue")["sst2"]


@pytest.fixture
def suite(tmp_path):
    def make(**changes):
        if not (tmp_path / "runs").exists():
            tiny_run(tmp_path / "runs" / "tiny-1x2-s0-abc123")
            write_sst2(tmp_path / "glue")
        values = {"source": "local", "dir": str(tmp_path / "glue"), "tasks": ["sst2"], "seeds": [0], "max_length": 16}
        config = GlueConfig(**{**values, "epochs": 1, "lr": 3e-3, **changes})
        return Suite(config, open_pretrained(tmp_path / "runs" / "tiny-1x2-s0-abc123"), tmp_path / "results")

    return make


def test_single_texts_are_encoded_as_pairs_with_an_empty_second_text():
    data = encode(tiny_tokenizer(), Split(["the film", "a"], None, np.array([0, 1])), 16)
    batch = data.batch(np.array([0, 1]))
    assert batch["input_ids"].tolist() == [[4, 10, 9, 5, 5, 0, 0, 0], [4, 11, 5, 5, 0, 0, 0, 0]]
    assert batch["attention_mask"].sum(1).tolist() == [5, 4]
    assert batch["labels"].tolist() == [0, 1]
    pair = encode(tiny_tokenizer(), Split(["the film"], ["bad"], np.array([0])), 16)
    assert pair.tokens.tolist() == [4, 10, 9, 5, 8, 5]


def test_too_long_pairs_lose_tokens_of_the_longer_text():
    split = Split(["the " * 30], ["bad bad"], np.array([0]))
    tokens = encode(tiny_tokenizer(), split, 12).tokens.tolist()
    assert len(tokens) == 12
    assert tokens[-4:] == [5, 8, 8, 5]


def test_every_example_once_per_epoch_in_an_order_by_seed_and_epoch():
    orders = {key: np.concatenate(list(training_batches(50, 16, *key))) for key in [(0, 0), (0, 1), (1, 0)]}
    assert all(sorted(order) == list(range(50)) for order in orders.values())
    assert len({tuple(order) for order in orders.values()}) == 3
    assert (np.concatenate(list(training_batches(50, 16, 0, 0))) == orders[0, 0]).all()
    data = encode(tiny_tokenizer(), Split(["a " * n for n in (5, 1, 9, 2)], None, np.zeros(4, int)), 16)
    assert np.concatenate(list(evaluation_batches(data, 3))).tolist() == [1, 3, 0, 2]


def test_learns_a_separable_task_and_records_it(suite):
    made = suite(epochs=12, dropout=0.0)
    (record,) = run_suite(made)
    assert record["status"] == "finished"
    assert record["metrics"]["accuracy"] >= 0.95
    assert record == read_json(made.results_dir / "runs" / f"{record['name']}.json")
    assert record["name"].startswith("glue-tiny-1x2-s0-abc123-glue-sst2-s0-")
    assert (record["kind"], record["suite"], record["task"], record["seed"]) == ("glue", "glue", "sst2", 0)
    assert (record["pretrain"], record["experiment"], record["ffn"], record["group"]) == (
        "tiny-1x2-s0-abc123",
        "tiny",
        "1x2",
        "abc123",
    )
    assert record["samples"] == {"train": 96, "dev": 32}
    assert record["config"]["glue"]["warmup_steps"] == 7
    assert record["config"]["model"] == {"layers": 1, "hidden_size": 32}
    assert str(made.config.dir) not in json.dumps(record)


def test_same_seed_same_result_and_the_order_of_tasks_does_not_matter(suite, tmp_path):
    first = run_suite(suite(seeds=[3, 4]))
    for path in (tmp_path / "results" / "runs").glob("*"):
        path.unlink()
    second = run_suite(suite(seeds=[4, 3]))
    losses = {r["seed"]: r["metrics"]["train_loss"] for r in first}
    assert losses == {r["seed"]: r["metrics"]["train_loss"] for r in second}
    assert losses[3] != losses[4]


def test_head_and_encoder_follow_from_seed_and_checkpoint(suite):
    pretrained = suite().pretrained
    heads = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        model = load_classifier(pretrained, SST2, 0.1)
        heads.append(torch.cat([part.detach().flatten() for part in model.classifier.parameters()]))
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    assert model.config.hidden_dropout_prob == 0.1
    assert load_classifier(pretrained, suite_tasks("glue")["stsb"], 0.1).num_labels == 1
    assert load_classifier(pretrained, suite_tasks("glue")["mnli"], 0.1).num_labels == 3


def test_finished_runs_are_skipped_and_others_run_again(suite, monkeypatch):
    made = suite()
    (record,) = run_suite(made)
    path = made.results_dir / "runs" / f"{record['name']}.json"

    def refuse(*_args, **_kwargs):
        raise AssertionError("ran again")

    with monkeypatch.context() as patch:
        patch.setattr(suite_module, "finetune", refuse)
        assert run_suite(made) == [record]
    write_json(path, {**record, "status": "failed", "error": "x"})
    assert run_suite(made)[0]["status"] == "finished"
    for key in ("weights_sha256", "data_fingerprint"):
        write_json(path, {**record, key: "other"})
        assert run_suite(made)[0][key] == record[key]
    (other,) = run_suite(suite(lr=1e-3))
    assert other["name"] != record["name"]
    assert path.exists()


def test_divergence_is_recorded_and_the_next_seed_runs(suite):
    records = run_suite(suite(lr=1e30, seeds=[0, 1]))
    assert [r["status"] for r in records] == ["diverged", "diverged"]
    assert all(r["metrics"] == {} and "loss" in r["error"] for r in records)
    text = summary(suite().config, records)
    assert "none finished" in text
    assert "0 / 2" in text


def test_a_failing_run_is_recorded_and_never_averaged(suite, monkeypatch):
    def fake(config, accelerator, encoded, make_model, seed, log):
        if seed == 1:
            raise RuntimeError("out of memory\nsecond line")
        return {"accuracy": [0.5, None, 0.9][seed], "train_loss": 0.1, "epoch_seconds": 0.1}

    monkeypatch.setattr(suite_module, "finetune", fake)
    made = suite(seeds=[0, 1, 2])
    records = run_suite(made)
    assert [r["status"] for r in records] == ["finished", "failed", "finished"]
    assert records[1]["error"] == "RuntimeError: out of memory"
    assert "70.0 (50.0–90.0), 2 / 3" in summary(made.config, records)


def test_log_is_told_finite_numbers(suite):
    rows: list[dict[str, float]] = []
    made = suite(epochs=3)
    run_suite(Suite(made.config, made.pretrained, made.results_dir, log=rows.append))
    assert {"glue/sst2/loss", "glue/sst2/accuracy"} <= {key for row in rows for key in row}
    assert all(math.isfinite(value) for row in rows for value in row.values())


def test_missing_input_of_the_last_task_shows_before_any_training(suite, monkeypatch):
    monkeypatch.setattr(suite_module, "finetune", lambda *a: pytest.fail("trained before the data were checked"))
    with pytest.raises(UserError, match="RTE is missing"):
        run_suite(suite(tasks=["sst2", "rte"]))


def test_limited_training_data_are_marked_partial(suite):
    (record,) = run_suite(suite(limit_train=16))
    assert record["partial"]
    assert record["samples"]["train"] == 16
    assert "partial" in summary(suite().config, [record])


def test_legacy_warmup_takes_the_first_tasks_steps_for_all(suite, tmp_path):
    home = tmp_path / "glue" / "WNLI"
    made = suite(tasks=["wnli", "sst2"], warmup="legacy", epochs=4)
    home.mkdir()
    for name in ("train", "dev"):
        (home / f"{name}.tsv").write_text("index\tsentence1\tsentence2\tlabel\n0\tgood\tbad\t1\n1\tbad\tbad\t0\n")
    records = run_suite(made)
    assert [r["config"]["glue"]["warmup_steps"] for r in records] == [2, 2]
    assert records[0]["status"] == "finished"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda model: [path.unlink() for path in model.iterdir()], "make pretrain"),
        (lambda model: (model / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda model: (model / "tokenizer.json").unlink(), "tokenizer.json is missing"),
        (lambda model: change(model, model_type="bert"), "model_type is 'bert'"),
        (lambda model: change(model, vocab_size=40), "tokenizer has 22 tokens, the model 40"),
        (lambda model: cut(model / "model.safetensors"), "model.safetensors is damaged"),
        (lambda model: (model / "tokenizer.json").write_text("{}"), "the tokenizer is damaged"),
        (lambda model: change(model, num_hidden_layers=2), "lacks"),
        (lambda model: change(tiny_run(model.parent, layers=2) / "model", num_hidden_layers=1), "has too many, namely"),
        (lambda model: change(model, hidden_size=64), "do not fit"),
        (lambda model: change(model, ffn={"kind": "dense", "width": 16, "activation": "gelu"}), "lacks"),
        (lambda model: change(model, ffn={"kind": "dense"}), "do not fit"),
        (lambda model: change(model, max_position_embeddings=8), "glue.max_length"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_named_before_training(suite, tmp_path, damage, words):
    suite()
    damage(tmp_path / "runs" / "tiny-1x2-s0-abc123" / "model")
    with pytest.raises(UserError, match=words):
        run_suite(suite())
    assert not (tmp_path / "results").exists()


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def change(model, **values):
    path = model / "config.json"
    path.write_text(json.dumps({**read_json(path), **values}))


def test_missing_run_and_fp16_without_gpu(suite, tmp_path):
    with pytest.raises(UserError, match="make pretrain"):
        open_pretrained(tmp_path / "nothing")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match=r"glue\.precision"):
            run_suite(suite(precision="fp16"))


def test_bf16_runs_on_any_device(suite):
    (record,) = run_suite(suite(precision="bf16"))
    assert record["status"] == "finished"


def test_tokenizer_of_the_checkpoint_is_the_one_used(suite):
    assert load_tokenizer(suite().pretrained)(["the film"], [""])["input_ids"] == [[4, 10, 9, 5, 5]]


def test_examples_of_one_length_are_read_together_without_padding():
    texts = [" ".join(["good film"] * n) for n in (5, 1, 3, 1, 5, 5, 2)]
    data = encode(tiny_tokenizer(), Split(texts, None, np.arange(7)), 16)
    batches = list(equal_lengths(data.lengths, 2))
    assert [each.tolist() for each in batches] == [[1, 3], [6], [2], [0, 4], [5]]
    for indices in batches:
        inputs = data.alike(indices)
        padded = data.batch(indices)
        assert set(inputs) == {"input_ids", "labels"}
        length = inputs["input_ids"].shape[1]
        assert padded["attention_mask"].sum(1).tolist() == [length] * len(indices)
        assert torch.equal(inputs["input_ids"], padded["input_ids"][:, :length])
        assert torch.equal(inputs["labels"], padded["labels"])
    assert list(equal_lengths(np.zeros(0, int), 4)) == []


def test_without_padding_results_are_the_padded_ones_in_the_callers_order(suite):
    torch.manual_seed(0)
    model = load_classifier(suite().pretrained, suite_tasks("glue")["stsb"], 0.0).eval()
    texts = [" ".join(np.random.default_rng(n).choice(WORDS, n)) for n in (9, 2, 5, 2, 12, 7, 1, 9)]
    data = encode(tiny_tokenizer(), Split(texts, None, np.zeros(8)), 16)
    with torch.no_grad():
        for form in (model, scored(suite(optimise="int8").config, model)):
            padded, whole = (predict(data, form, torch.device("cpu"), 4, True, padded=p) for p in (True, False))
            assert np.ptp(padded) > 1e-3
            np.testing.assert_allclose(whole, padded, atol=1e-5)


@pytest.mark.parametrize("trees", ["int8", "bfloat16", "auto"])
def test_a_suite_may_score_an_optimised_copy(suite, tmp_path, trees):
    made = suite(optimise=trees, epochs=12, dropout=0.0, save=True)
    made = Suite(made.config, made.pretrained, made.results_dir, kept=tmp_path / "kept")
    (record,) = run_suite(made)
    assert record["metrics"]["accuracy"] >= 0.95
    assert record["config"]["glue"]["optimise"] == (f"auto: {fastest_linears()}" if trees == "auto" else trees)
    assert "optimise" not in suite().config.settings(), "results of before keep their names"
    kept = AutoModelForSequenceClassification.from_pretrained(tmp_path / "kept" / record["name"])
    assert isinstance(kept.model.blocks[0].ffn, PathFFF), "what is kept is the float model"
    assert isinstance(scored(made.config, kept).model.blocks[0].ffn, QuantisedPath | InBfloat16)


def test_an_optimised_copy_that_cannot_be_is_refused_at_once(suite, monkeypatch):
    with pytest.raises(UserError, match=r"glue.optimise is 'int4'"):
        suite(optimise="int4")
    with pytest.raises(UserError, match="starts from float32; leave glue"):
        suite(optimise="int8", precision="bf16")
    monkeypatch.setattr(finetune_module, "unusable", lambda: "no VNNI")
    with pytest.raises(UserError, match="int8 cannot be used: no VNNI"):
        run_suite(suite(optimise="int8"))
    assert suite().config.optimise is None
