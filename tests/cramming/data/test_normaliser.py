import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from cramming.data.normaliser import ASCII_FORMS, split_words, splitter
from cramming.data.prepare import prepare
from cramming.data.tokenizer import SPECIAL_TOKENS, UNK, Encoder, normaliser_of, train_tokenizer, wordpiece
from cramming.errors import UserError
from tests.helpers.data import make_documents, text_config, write_txt

KINDS = ("paper", "ascii", "unicode")
RUSSIAN = [
    f"Предложение {index}: река течёт мимо старого дома — «тихо», и никто {index % 7} не видит её в {index} году."
    for index in range(400)
]
CHINESE = [f"第{index}句：河水流过老房子，没有人看见它。今天是{index % 7}月。" for index in range(400)]


def empty(kind: str) -> Tokenizer:
    return wordpiece({token: number for number, token in enumerate(SPECIAL_TOKENS)}, kind)


def own_words(kind: str, text: str) -> list[str]:
    tokenizer = empty(kind)
    return [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text))]


LETTERS = "`' \t\n\x0b\x1c\x1f\x85\xa0ÄİſKß–“”́aB1_-<>" + "".join(ASCII_FORMS.values())


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60) | st.text(alphabet=LETTERS, max_size=40))
def test_words_equal_the_tokenizers_own(kind, text):
    assert splitter(kind)(text) == own_words(kind, text)


@pytest.mark.parametrize(
    ("text", "paper", "ascii_form", "kept"),
    [
        ("1914–1918", "19141918", "1914 - 1918", "1914 - 1918"),
        ("word—word…", "wordword", "word -- word ...", "word -- word ..."),
        ("“It’s ‚so’”", "its so", "\" it ' s ' so '\"", "\" it ' s ' so '\""),
        ("10\xa0km\u2028away", "10kmaway", "10 km away", "10 km away"),
        ("‘‘quoted’’ Café", "quoted cafe", '" quoted " cafe', '" quoted " café'),
        ("Река\xad«ВОЛГА»", "", '""', 'река " волга "'),
        ("我们走", "", "", "我 们 走"),
    ],
)
def test_what_each_makes_of_a_text(text, paper, ascii_form, kept):
    assert [" ".join(splitter(kind)(text)) for kind in KINDS] == [paper, ascii_form, kept]


@pytest.mark.parametrize("kind", KINDS)
def test_encoder_equals_the_tokenizer(kind):
    texts = [text.replace("the ", "the – “café”…\xa0") for text in make_documents(200)] + RUSSIAN[:50] + CHINESE[:50]
    tokenizer = train_tokenizer(texts, 400, kind)
    assert normaliser_of(tokenizer) == kind
    ids = [np.frombuffer(Encoder(tokenizer, np.dtype(np.uint16))(text), np.uint16).tolist() for text in texts]
    assert ids == [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]


@pytest.mark.parametrize(("texts", "letters", "size"), [(RUSSIAN, "предложение", 180), (CHINESE, "流", 120)])
def test_other_scripts_are_refused_by_the_recipe_and_kept_by_unicode(tmp_path, texts, letters, size):
    path = write_txt(tmp_path / "a.txt", texts)
    for kind in ("paper", "ascii"):
        with pytest.raises(UserError, match=rf"data\.normaliser={kind} drops \d\d% .*set data\.normaliser=unicode"):
            prepare(text_config([path], normaliser=kind), tmp_path)
    data = prepare(text_config([path], normaliser="unicode", vocab_size=size), tmp_path)
    tokens = data.unigram_counts()
    assert tokens[UNK] == 0
    assert data.manifest["lost"]["letters_dropped"] == 0
    assert letters in re.sub(r"\s", "", data.tokenizer().decode(data.train.take(np.arange(4)).ravel()))


def test_a_given_tokenizer_of_the_recipe_is_refused_the_same_text(tmp_path):
    english = prepare(text_config([write_txt(tmp_path / "a.txt", make_documents(200))]), tmp_path)
    path = write_txt(tmp_path / "b.txt", RUSSIAN)
    with pytest.raises(UserError, match=r"data\.normaliser=paper drops"):
        prepare(text_config([path], tokenizer=str(english.folder / "tokenizer")), tmp_path)


def test_a_share_that_is_dropped_is_counted_and_told(tmp_path, capsys):
    path = write_txt(tmp_path / "a.txt", [*make_documents(300), *RUSSIAN[:100]])
    data = prepare(text_config([path]), tmp_path)
    lost = data.manifest["lost"]
    assert 0.02 < lost["letters_dropped"] / lost["letters"] < 0.2
    assert re.search(r"note: data\.normaliser=paper drops \d+\.\d% of the text's letters", capsys.readouterr().err)
    prepare(text_config([write_txt(tmp_path / "b.txt", make_documents(300))]), tmp_path)
    assert "note:" not in capsys.readouterr().err


def test_letters_beyond_the_vocabulary_are_told(tmp_path, capsys):
    path = write_txt(tmp_path / "a.txt", CHINESE)
    many = "".join(chr(0x4E00 + index) for index in range(300))
    path.write_text(path.read_text() + "\n\n" + many)
    prepare(text_config([path], normaliser="unicode", vocab_size=72, seq_len=64), tmp_path)
    assert "of the training tokens are <unk>" in capsys.readouterr().err


def test_the_normaliser_makes_other_data_unless_the_tokenizer_is_given(tmp_path):
    path = write_txt(tmp_path / "a.txt", make_documents(300))
    paper, ascii_form = (prepare(text_config([path], normaliser=kind), tmp_path) for kind in ("paper", "ascii"))
    assert paper.folder != ascii_form.folder
    tokenizer = str(paper.folder / "tokenizer")
    given = [
        prepare(text_config([path], normaliser=k, tokenizer=tokenizer), tmp_path).folder for k in ("paper", "ascii")
    ]
    assert given[0] == given[1]
    assert split_words("a–b", "ascii") == ["a", "-", "b"]
