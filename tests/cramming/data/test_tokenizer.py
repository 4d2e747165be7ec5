import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, normalizers
from transformers import AutoTokenizer

from cramming.data.normaliser import split_words
from cramming.data.shards import PreparedData
from cramming.data.sources.docs import module_paragraphs
from cramming.data.tokenizer import (
    SPECIAL_TOKENS,
    Encoder,
    load_tokenizer,
    normaliser_of,
    save_tokenizer,
    train_tokenizer,
    wordpiece,
)
from cramming.errors import UserError
from tests.helpers.data import make_documents

TEXTS = make_documents(200)
UINT16 = np.dtype(np.uint16)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, 200)


@pytest.fixture
def folder(tmp_path, tokenizer) -> Path:
    save_tokenizer(tokenizer, tmp_path, 16)
    return tmp_path


def ids(encoder: Encoder, text: str) -> list[int]:
    return np.frombuffer(encoder(text), UINT16).tolist()


def test_special_tokens_stand_at_fixed_ids(tokenizer):
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == list(range(7))
    assert tokenizer.get_vocab_size() == 200


def test_folder_loads_with_auto_tokenizer(folder):
    loaded = AutoTokenizer.from_pretrained(folder)
    named = (loaded.pad_token, loaded.bos_token, loaded.eos_token, loaded.unk_token)
    assert (*named, loaded.cls_token, loaded.sep_token, loaded.mask_token) == SPECIAL_TOKENS
    assert loaded.model_max_length == 16
    assert len(loaded) == 200
    assert loaded.is_fast
    assert set(loaded("The river")) == {"input_ids", "attention_mask"}


def test_templates_of_single_texts_and_pairs(folder):
    loaded = AutoTokenizer.from_pretrained(folder)
    a, b = (loaded(text, add_special_tokens=False)["input_ids"] for text in ("The river", "a bridge"))
    assert loaded("The river")["input_ids"] == [*a, 5]
    assert loaded("The river", "a bridge")["input_ids"] == [4, *a, 5, *b, 5]
    # transformers takes an empty second text for none unless it stands in a list.
    assert loaded(["The river"], [""])["input_ids"] == [[4, *a, 5, 5]]
    assert loaded("The <mask>")["input_ids"][-2:] == [6, 5]


def test_normaliser_follows_the_recipe(tokenizer):
    normalize = tokenizer.normalizer.normalize_str
    assert normalize("``Ça''  va,   CAFÉ—naïve “x” 漢字!") == '"ca" va, cafenaive x !'
    assert split_words("It's 3.5-fold; a_b") == ["it", "'", "s", "3", ".", "5", "-", "fold", ";", "a_b"]


def test_encoder_equals_the_tokenizer_on_real_text(tokenizer):
    # Prose and code of an installed package, raw and cleaned: much that is no sentence, and non-ASCII text.
    raw = Path(json.__file__).read_text() + Path(np.__file__).read_text() + "é ﬁ Ⅷ ½ ñ <mask> <sep> " + "y" * 101
    cleaned = " ".join(module_paragraphs(Path(json.__file__).read_bytes()))
    encoder = Encoder(wordpiece(tokenizer.get_vocab()), UINT16)
    own = wordpiece(tokenizer.get_vocab())
    own.encode_special_tokens = True
    for text in (raw, cleaned, *TEXTS[:20], ""):
        assert ids(encoder, text) == own.encode(text, add_special_tokens=False).ids


def test_special_tokens_in_the_text_stay_text(tokenizer):
    encoder = Encoder(tokenizer, UINT16)
    assert not set(ids(encoder, "a <mask> b <sep>")) & {5, 6}


def test_encoder_with_a_full_cache_gives_the_same(tokenizer, monkeypatch):
    expected = ids(Encoder(tokenizer, UINT16), " ".join(TEXTS))
    monkeypatch.setattr("cramming.data.tokenizer.CACHED_WORDS", 3)
    assert ids(Encoder(tokenizer, UINT16), " ".join(TEXTS)) == expected


def test_encoder_follows_a_foreign_normaliser(tokenizer):
    foreign = wordpiece(tokenizer.get_vocab())
    foreign.normalizer = normalizers.Lowercase()
    assert normaliser_of(tokenizer) == "paper"
    assert normaliser_of(foreign) is None
    text = "The café and the naïve plan"
    assert ids(Encoder(foreign, UINT16), text) == foreign.encode(text, add_special_tokens=False).ids
    assert ids(Encoder(foreign, UINT16), text) != ids(Encoder(tokenizer, UINT16), text)


TRAIN = """
import sys, hashlib
sys.path.insert(0, {tests!r})
from tests.helpers.data import make_documents
from cramming.data.tokenizer import train_tokenizer
print(hashlib.sha256(train_tokenizer(make_documents(200), 200).to_str().encode()).hexdigest())
"""


def test_training_gives_the_same_in_every_process():
    code = TRAIN.format(tests=str(Path(__file__).parents[3]))
    hashes = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout for _ in range(3)}
    assert len(hashes) == 1
    assert len(hashes.pop()) == 65


def test_tokenizers_that_do_not_fit_are_refused(folder, tmp_path, tokenizer):
    assert load_tokenizer(folder, 200).get_vocab_size() == 200
    with pytest.raises(UserError, match=r"has 200 tokens; set data\.vocab_size=200"):
        load_tokenizer(folder, 300)
    with pytest.raises(UserError, match=r"tokenizer\.json is missing"):
        load_tokenizer(folder / "none", 200)
    swapped = tokenizer.get_vocab() | {"<pad>": 4, "<cls>": 0}
    (tmp_path / "swapped").mkdir()
    wordpiece(swapped).save(str(tmp_path / "swapped" / "tokenizer.json"))
    with pytest.raises(UserError, match=r"has <pad> at id 4, not 0"):
        load_tokenizer(tmp_path / "swapped", 200)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"] |= {"the": 1000}
    (tmp_path / "swapped" / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="ids that leave some numbers out"):
        load_tokenizer(tmp_path / "swapped", 200)
    wordpiece({token: number for number, token in enumerate(SPECIAL_TOKENS)}).save(
        str(tmp_path / "swapped" / "tokenizer.json")
    )
    with pytest.raises(UserError, match=r"has 7 tokens.*give one with 64 to"):
        load_tokenizer(tmp_path / "swapped", 200)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer\.json is damaged"):
        load_tokenizer(folder, 200)


def test_what_a_message_suggests_is_taken():
    with pytest.raises(UserError, match=r"the text gives \d\d tokens, too few for any data\.vocab_size"):
        train_tokenizer(["one two"], 8192)
    with pytest.raises(UserError, match=r"set data\.vocab_size=\d+, or give more text") as found:
        train_tokenizer(TEXTS, 8192)
    suggested = int(str(found.value).split("data.vocab_size=")[1].split(",")[0])
    assert train_tokenizer(TEXTS, suggested).get_vocab_size() == suggested
    with pytest.raises(UserError, match=r"set data\.vocab_size=\d+\.$"):
        train_tokenizer([*TEXTS, "abcdefghijklmnopqrstuvwxyz 0123456789 +*~#'"], 70)


def test_code_of_a_tokenizer_is_never_run(folder, tmp_path, monkeypatch):
    """No question on the terminal either: reading from it would fail."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", "mine.Mine"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Mine: pass\n")
    assert load_tokenizer(folder, 200).get_vocab_size() == 200
    manifest = {"fingerprint": "", "seq_len": 16, "vocab_size": 200, "dtype": "uint16"}
    manifest |= {"shards": {"train": [], "valid": []}}
    (tmp_path / "prepared").mkdir()
    shutil.copytree(folder, tmp_path / "prepared" / "tokenizer", ignore=shutil.ignore_patterns("prepared"))
    assert len(PreparedData(tmp_path / "prepared", manifest).tokenizer()) == 200
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="code that a tokenizer brings is never run"):
        load_tokenizer(folder, 200)
    assert not (tmp_path / "ran").exists()
