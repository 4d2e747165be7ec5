"""Texts become vectors in their order, whatever the batches; folders load or say what is wrong with them."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from cramming.errors import UserError
from cramming.sentences.export import write_sentence_model
from cramming.sentences.load import load_encoder
from cramming.sentences.speed import sentences_per_s
from cramming.sentences.stsb import read_pairs, stsb
from fff.kernels.int8_linear import unusable
from fff.layers.bfloat16_linear import Bfloat16Linear
from fff.layers.quantised import QuantisedPath
from fff.optimise import optimise_for_cpu
from tests.helpers.data import make_documents
from tests.helpers.sentences import FOLDERS, TEXTS, bert


@pytest.mark.parametrize("kind", FOLDERS)
def test_vectors_are_normalised_means_over_the_tokens_of_each_text(kind: str, tmp_path: Path) -> None:
    encoder = load_encoder(FOLDERS[kind](tmp_path))
    vectors = encoder.encode(TEXTS, batch=2)
    assert (vectors.shape, vectors.dtype) == ((4, 32), np.float32)
    for text, vector in zip(TEXTS, vectors, strict=True):
        tokens = encoder.tokenizer(text, return_tensors="pt", max_length=encoder.max_length, truncation=True)
        with torch.no_grad():
            mean = encoder.model(input_ids=tokens["input_ids"]).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(vector, mean / mean.norm(), atol=2e-6)


def test_nothing_is_padded_and_results_are_in_the_order_of_the_texts(tmp_path: Path) -> None:
    encoder = load_encoder(FOLDERS["ours"](tmp_path))
    texts = [" ".join(words.split()[: 1 + 7 * at % 20]) for at, words in enumerate(make_documents(50))]
    shapes: list[tuple[int, int]] = []
    encoder.model.register_forward_pre_hook(
        lambda _, __, given: shapes.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    together = encoder.encode(texts, batch=2)
    tokens = encoder.tokenizer(texts, truncation=True, max_length=encoder.max_length)["input_ids"]
    assert sum(rows * width for rows, width in shapes) == sum(map(len, tokens))
    assert {rows for rows, _ in shapes} == {1, 2}
    assert (widths := [width for _, width in shapes]) == sorted(widths, reverse=True)
    alone = np.concatenate([encoder.encode([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=2e-6)
    order = np.random.default_rng(0).permutation(len(texts))
    np.testing.assert_allclose(encoder.encode([texts[at] for at in order], batch=8), together[order], atol=2e-6)


@pytest.mark.skipif(bool(unusable()), reason=str(unusable()))
@pytest.mark.parametrize("kind", ["run", "replaced"])
def test_in_int8_the_model_is_the_optimised_one_and_no_folder_is_written(kind: str, tmp_path: Path) -> None:
    folder = FOLDERS[kind](tmp_path)
    plain, fast = load_encoder(folder), load_encoder(folder, int8=True)
    assert any(isinstance(module, QuantisedPath) for module in fast.model.modules())
    assert plain.identity != fast.identity
    vectors, exact = fast.encode(TEXTS), plain.encode(TEXTS)
    assert not np.array_equal(vectors, exact)
    optimise_for_cpu(plain.model, linears="int8")
    np.testing.assert_array_equal(vectors, plain.encode(TEXTS))
    with pytest.raises(UserError, match="cannot hold a model in int8"):
        write_sentence_model(fast, tmp_path / "written")
    assert not (tmp_path / "written").exists()


def test_fast_is_what_this_processor_does_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cramming.sentences.load.fastest_linears", lambda: "bfloat16")
    folder = FOLDERS["run"](tmp_path)
    plain, fast = load_encoder(folder), load_encoder(folder, fast=True)
    assert any(isinstance(module, Bfloat16Linear) for module in fast.model.modules())
    assert fast.identity == {**plain.identity, "fast": "bfloat16"}
    vectors = fast.encode(TEXTS)
    assert vectors.dtype == np.float32
    assert 0.999 < (vectors * plain.encode(TEXTS)).sum(1).min() < 1 - 1e-6
    with pytest.raises(UserError, match="cannot hold a model made fast"):
        write_sentence_model(fast, tmp_path / "written")
    with pytest.raises(UserError, match="two choices of one thing"):
        load_encoder(folder, int8=True, fast=True)


def test_a_model_in_which_nothing_can_be_int8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"bert cannot be used in int8 \(ValueError: the model has no linear"):
        load_encoder(bert(tmp_path / "bert"), int8=True)


def test_vectors_of_another_tokenizer_are_others(tmp_path: Path) -> None:
    folder = bert(tmp_path / "bert")
    before = load_encoder(folder).identity
    assert load_encoder(folder).identity == before
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "normalizer": {"type": "Lowercase"}}))
    assert load_encoder(folder).identity != before


def test_a_bar_tells_how_far_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encoder = load_encoder(FOLDERS["run"](tmp_path))
    capsys.readouterr()
    encoder.encode(TEXTS)
    assert capsys.readouterr().err == ""
    encoder.encode(TEXTS, progress="embedding")
    assert "embedding:" in (told := capsys.readouterr().err)
    assert "4/4" in told or "0/4" in told


@pytest.mark.parametrize("kind", FOLDERS)
def test_sentence_transformers_loads_what_is_written(kind: str, tmp_path: Path) -> None:
    library = pytest.importorskip(
        "sentence_transformers", reason="sentence-transformers is an extra: pip install fff-cramming[sentences]"
    )
    encoder = load_encoder(FOLDERS[kind](tmp_path))
    write_sentence_model(encoder, tmp_path / "written")
    loaded = library.SentenceTransformer(str(tmp_path / "written"), device="cpu", trust_remote_code=True)
    assert loaded.get_max_seq_length() == encoder.max_length
    assert loaded.get_embedding_dimension() == 32
    np.testing.assert_allclose(loaded.encode(TEXTS), encoder.encode(TEXTS), atol=2e-6)
    again = load_encoder(tmp_path / "written")  # it is a model folder as any other
    np.testing.assert_allclose(again.encode(TEXTS), encoder.encode(TEXTS), atol=2e-6)


def test_the_card_of_a_written_folder_names_what_it_needs(tmp_path: Path) -> None:
    for kind, needs in (("ours", True), ("foreign", False), ("replaced", True)):
        write_sentence_model(load_encoder(FOLDERS[kind](tmp_path / kind)), tmp_path / f"{kind}-written")
        card = (tmp_path / f"{kind}-written" / "README.md").read_text()
        assert ("trust_remote_code=True" in card) is needs
        assert ("package `fff`" in card) is needs
        modules = json.loads((tmp_path / f"{kind}-written" / "modules.json").read_text())
        assert [each["path"] for each in modules] == ["", "1_Pooling", "2_Normalize"]


def test_stsb_is_the_rank_correlation_of_cosines(tmp_path: Path) -> None:
    from scipy.stats import spearmanr

    home = tmp_path / "glue" / "STS-B"
    home.mkdir(parents=True)
    rows = [("a good film", "a good film", 5), ("a good film", "bad plot", 1), ("the plot", "the plot is bad", 3)]
    rows += [("one", "two three", 0.5)]
    lines = ["sentence1\tsentence2\tscore", *("\t".join(map(str, row)) for row in rows)]
    for name in ("train", "dev"):
        (home / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    encoder = load_encoder(FOLDERS["run"](tmp_path))
    found = stsb(encoder, read_pairs(tmp_path / "glue"))
    cosines = [float(a @ b) for a, b in (encoder.encode(row[:2]) for row in rows)]
    assert found["spearman"] == pytest.approx(spearmanr(cosines, [row[2] for row in rows])[0])
    assert cosines[0] == pytest.approx(1)
    with pytest.raises(UserError, match="STS-B is missing"):
        read_pairs(tmp_path)


def test_encoders_take_turns_and_the_median_is_told(tmp_path: Path) -> None:
    encoder = load_encoder(FOLDERS["run"](tmp_path))
    # A call's begin and end; the first round, of 100 s each, is not measured.
    times = iter([0, 100, 0, 100, 0, 1, 0, 2, 0, 4, 0, 8, 0, 2, 0, 4])
    found = sentences_per_s({"a": encoder, "b": encoder}, TEXTS, rounds=3, clock=lambda: float(next(times)))
    assert found == {"a": 2.0, "b": 1.0}


def spoil(name: str, content: str | None) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True) if content is None else path.write_text(content)

    return change


def without_a_weight(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layer.1.intermediate.dense.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (spoil("config.json", None), r"holds no model \(no config.json\); give a model folder"),
        (spoil("config.json", "{"), "config.json is not valid JSON"),
        (spoil("config.json", '{"model_type": "unheard"}'), "the model cannot be loaded"),
        (spoil("model.safetensors", None), r"has no \*.safetensors; save the model again"),
        (spoil("model.safetensors", "x"), "the model cannot be loaded"),
        (without_a_weight, "lacks 1 of its weights, encoder.layer.1.intermediate.dense.weight among them"),
        (spoil("tokenizer.json", None), "tokenizer.json is missing; copy the tokenizer"),
        (spoil("tokenizer.json", "{}"), "the tokenizer is damaged"),
        (spoil("1_Pooling/config.json", '{"pooling_mode_cls_token": true}'), "asks for pooling_mode_cls_token; only"),
        (
            spoil("modules.json", '[{"type": "a.Transformer"}, {"type": "a.Dense"}]'),
            "modules.json asks for Dense",
        ),
        (spoil("1_Pooling/config.json", '{"pooling_mode": "cls"}'), "asks for cls; only the mean"),
    ],
)
def test_a_folder_that_is_no_encoder_is_refused(change: Callable, message: str, tmp_path: Path) -> None:
    folder = bert(tmp_path / "bert")
    change(folder)
    with pytest.raises(UserError, match=message):
        load_encoder(folder)


def test_a_missing_folder_an_empty_text_and_a_length_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere holds no model"):
        load_encoder(tmp_path / "nowhere")
    folder = FOLDERS["foreign"](tmp_path)
    for length in (1, 33):
        with pytest.raises(UserError, match=rf"max_length is {length}; set it from 2 to 32"):
            load_encoder(folder, length)
    encoder = load_encoder(folder, 8)
    assert encoder.max_length == 8
    with pytest.raises(UserError, match="there is no text"):
        encoder.encode([])
    encoder.tokenizer.backend_tokenizer.post_processor = None
    with pytest.raises(UserError, match="text 2 of 3 has no token"):
        encoder.encode(["good", "", "bad"])


def test_a_tokenizer_that_cannot_pad_makes_no_folder(tmp_path: Path) -> None:
    encoder = load_encoder(FOLDERS["foreign"](tmp_path))
    encoder.tokenizer.pad_token = None
    assert encoder.encode(TEXTS).shape == (4, 32)
    with pytest.raises(UserError, match="no padding token"):
        write_sentence_model(encoder, tmp_path / "written")
