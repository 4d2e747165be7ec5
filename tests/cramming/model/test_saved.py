"""A model folder: written complete, read with every damage named, and no code or path of it ever obeyed."""

import json
from pathlib import Path

import pytest
from transformers import AutoModelForMaskedLM

from cramming.errors import UserError
from cramming.files import read_json, sha256, write_json
from cramming.model.saved import load_tokenizer, open_pretrained, write_model
from tests.helpers.glue import tiny_run, tiny_tokenizer

PLANTED = "from pathlib import Path\nPath({!r}).touch()\nclass Planted:\n    pass\n"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tiny_run(tmp_path / "runs" / "tiny-1x2-s0-abc123")


def record(run: Path, **values: object) -> None:
    write_json(run / "record.json", read_json(run / "record.json") | values)


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def test_a_flipped_bit_in_the_weights_is_named_with_the_mend(run: Path) -> None:
    weights = run / "model" / "model.safetensors"
    record(run, weights_sha256=sha256(weights))
    assert open_pretrained(run) == open_pretrained(run / "model")
    size = 8 * weights.stat().st_size
    for bit in (size - 1, size // 2, size - 4000):
        flip(weights, bit)
        with pytest.raises(UserError, match=r"model\.safetensors is damaged .*`make pretrain` .* exports"):
            open_pretrained(run)
        flip(weights, bit)
    assert open_pretrained(run).weights_sha256 == sha256(weights)


def test_a_record_of_before_has_no_hash_and_its_model_is_taken(run: Path) -> None:
    assert "weights_sha256" not in read_json(run / "record.json")
    assert open_pretrained(run).run == run.name


@pytest.mark.parametrize("key", ["name", "experiment", "ffn", "group", "data_fingerprint"])
@pytest.mark.parametrize("value", ["../../../x", "/etc/passwd", ["a"], 7, "a\nb"])
def test_a_name_in_a_record_is_no_path(run: Path, key: str, value: object) -> None:
    record(run, **{key: value})
    with pytest.raises(UserError, match=rf"record\.json: {key}: .* cannot name files"):
        open_pretrained(run)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("record.json", [1], "record.json holds no table"),
        ("record.json", {"config": 1}, "config is no table"),
        ("model/config.json", [], "config.json holds no table"),
        ("model/config.json", {"model_type": "crammed_fff", "vocab_size": 22}, "max_position_embeddings is None"),
        ("model/config.json", {"model_type": "crammed_fff", "vocab_size": "22"}, "vocab_size is '22'"),
    ],
)
def test_files_of_another_form_are_named(run: Path, file: str, content: object, words: str) -> None:
    (run / file).write_text(json.dumps(content))
    with pytest.raises(UserError, match=words):
        open_pretrained(run)


def test_a_model_without_a_record_is_named_after_its_folder(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run / "record.json").unlink()
    other = run.rename(run.with_name("ours (copy)"))
    assert open_pretrained(other).run == "ours__copy_"
    monkeypatch.chdir(other / "model")
    assert open_pretrained(Path(".")).run == "ours__copy_"


def test_a_tokenizer_with_code_of_its_own_is_never_run_and_nobody_is_asked(run: Path, monkeypatch) -> None:
    def asked(*_: object) -> str:
        raise AssertionError("asked on the terminal")

    monkeypatch.setattr("builtins.input", asked)
    mark = run / "ran"
    (run / "model" / "planted.py").write_text(PLANTED.format(str(mark)))
    settings = run / "model" / "tokenizer_config.json"
    code = {"auto_map": {"AutoTokenizer": ["planted.Planted", "planted.Planted"]}, "tokenizer_class": "Planted"}
    write_json(settings, read_json(settings) | code)
    with pytest.raises(UserError, match=r"tokenizer_config\.json asks for code .* no code of a checkpoint is ever run"):
        load_tokenizer(open_pretrained(run))
    assert not mark.exists()


def test_a_model_folder_is_replaced_as_a_whole_and_returns_its_hash(run: Path) -> None:
    model = AutoModelForMaskedLM.from_pretrained(run / "model")
    model.config.ffn = {**model.config.ffn, "provider": "gather"}
    (run / "model" / "stale").touch()
    (run / ".model").mkdir()
    assert write_model(model, tiny_tokenizer(), run / "model") == sha256(run / "model" / "model.safetensors")
    assert read_json(run / "model" / "config.json")["ffn"]["provider"] == "auto"
    assert model.config.ffn["provider"] == "gather"
    assert sorted(path.name for path in run.iterdir()) == [".model", "model", "record.json"]
    assert not (run / "model" / "stale").exists()
    modes = {path.stat().st_mode & 0o777 for path in (run / "model").iterdir()}
    assert modes == {run.stat().st_mode & 0o666}
    assert len(load_tokenizer(open_pretrained(run))) == 22
