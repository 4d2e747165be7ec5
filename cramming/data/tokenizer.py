"""The WordPiece tokenizer: normaliser, training, folder, and a fast encoder for whole corpora. Not for packing."""

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from cramming.errors import UserError

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>", "<cls>", "<sep>", "<mask>")
PAD, BOS, EOS, UNK, CLS, SEP, MASK = range(7)
PREFIX = "##"
MAX_WORD = 100
WORDS = re.compile(r"\w+|[^\w\s]+", re.ASCII)
# Bounds the memory of a worker's word cache; text without end of new words starts it anew.
CACHED_WORDS = 400_000


def normalizer() -> normalizers.Normalizer:
    """`` and '' to ", NFD, lower case, accents off, spaces collapsed, non-ASCII dropped (CRAM's order)."""
    return normalizers.Sequence(
        [
            normalizers.Replace("``", '"'),
            normalizers.Replace("''", '"'),
            normalizers.NFD(),
            normalizers.Lowercase(),
            normalizers.StripAccents(),
            normalizers.Replace(Regex(" {2,}"), " "),
            normalizers.Replace(Regex(r"[^\x00-\x7F]+"), ""),
        ]
    )


def split_words(text: str) -> list[str]:
    """The words that the tokenizer's normaliser and pre-tokeniser make of a text.

    Dropping all non-ASCII after NFD also drops the accents, and spaces do not matter to the split: the same words,
    many times faster.
    """
    text = text.replace("``", '"').replace("''", '"')
    if not text.isascii():
        text = unicodedata.normalize("NFD", text).encode("ascii", "ignore").decode()
    return WORDS.findall(text.lower())


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train WordPiece with the special tokens at ids 0..6; the same texts give the same tokenizer.

    Raises:
        UserError: the texts give fewer than `vocab_size` tokens.
    """
    counts: dict[str, int] = {}
    for text in texts:
        for word in split_words(text):
            counts[word] = counts.get(word, 0) + 1
    # Longer words become <unk> whatever the vocabulary.
    counts = {word: count for word, count in counts.items() if len(word) <= MAX_WORD}
    # The trainer numbers letters inside of words in the order of a randomly seeded hash table, and ties between
    # merges follow those numbers. Given as special tokens in sorted order, they stand before it begins.
    letters = sorted({letter for word in counts for letter in word})
    inner = sorted({PREFIX + letter for word in counts for letter in word[1:]})
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=[*SPECIAL_TOKENS, *letters, *inner], show_progress=False
    )
    scratch = Tokenizer(models.WordPiece(unk_token="<unk>"))
    scratch.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    scratch.train_from_iterator(repeated_words(counts), trainer)
    vocabulary = scratch.get_vocab()
    if len(vocabulary) != vocab_size:
        raise UserError(
            f"data.vocab_size is {vocab_size}, but the text gives {len(vocabulary)} tokens; "
            f"set data.vocab_size={len(vocabulary)}, or give more text or data.tokenizer_megabytes."
        )
    return wordpiece(vocabulary)


def repeated_words(counts: dict[str, int]) -> Iterator[str]:
    """Lines in which every word occurs as often as counted: what the trainer counts again."""
    for word in sorted(counts):
        left = counts[word]
        while left > 0:
            yield " ".join([word] * min(left, 1000))
            left -= 1000


def wordpiece(vocabulary: dict[str, int]) -> Tokenizer:
    """The tokenizer around a vocabulary, with normaliser, pre-tokeniser and templates."""
    tokenizer = Tokenizer(
        models.WordPiece(
            vocabulary, unk_token="<unk>", continuing_subword_prefix=PREFIX, max_input_chars_per_word=MAX_WORD
        )
    )
    tokenizer.normalizer = normalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(prefix=PREFIX)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.post_processor = template()
    return tokenizer


def template() -> processors.PostProcessor:
    """Single text "A <sep>", pair "<cls> A <sep> B <sep>"."""
    return processors.TemplateProcessing(
        single="$A <sep>", pair="<cls> $A <sep> $B:0 <sep>:0", special_tokens=[("<cls>", CLS), ("<sep>", SEP)]
    )


def save_tokenizer(tokenizer: Tokenizer, folder: Path, seq_len: int) -> None:
    """Write a folder that AutoTokenizer reads, with `model_max_length` = seq_len."""
    names = ("pad", "bos", "eos", "unk", "cls", "sep", "mask")
    named = {f"{name}_token": token for name, token in zip(names, SPECIAL_TOKENS, strict=True)}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=seq_len,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        **named,
    ).save_pretrained(str(folder))


def load_tokenizer(folder: Path, vocab_size: int) -> Tokenizer:
    """Read `folder`/tokenizer.json; UserError when it is missing, or its size or special ids do not fit."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"data.tokenizer: {path} is missing; give a folder that save_pretrained wrote, or null.")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise UserError(f"data.tokenizer: {path} is damaged ({error}).") from None
    size = tokenizer.get_vocab_size()
    if size != vocab_size:
        raise UserError(f"data.tokenizer: {folder} has {size} tokens; set data.vocab_size={size}.")
    for number, token in enumerate(SPECIAL_TOKENS):
        found = tokenizer.token_to_id(token)
        if found != number:
            raise UserError(
                f"data.tokenizer: {folder} has {token} at id {found}, not {number}; "
                f"the special tokens must be {', '.join(SPECIAL_TOKENS)} at ids 0 to 6."
            )
    return tokenizer


def letters_per_token(tokenizer: Tokenizer) -> np.ndarray:
    """int64 (vocab,): letters that each id decodes to, without the prefix; 0 for the special tokens."""
    letters = np.zeros(tokenizer.get_vocab_size(), dtype=np.int64)
    for token, number in tokenizer.get_vocab().items():
        letters[number] = len(token.removeprefix(PREFIX))
    letters[: len(SPECIAL_TOKENS)] = 0
    return letters


class WordCache(dict[str, bytes]):
    """Word -> its ids as bytes, encoded on first sight."""

    def __init__(self, tokenizer: Tokenizer, dtype: np.dtype) -> None:
        self.model, self.dtype = tokenizer.model, dtype

    def __missing__(self, word: str) -> bytes:
        if len(self) >= CACHED_WORDS:
            self.clear()
        ids = np.array([token.id for token in self.model.tokenize(word)], dtype=self.dtype).tobytes()
        self[word] = ids
        return ids


class Encoder:
    """Texts to ids, equal to the tokenizer's own without templates; text like "<mask>" stays text.

    Words repeat, so each is encoded once; a tokenizer with another normaliser goes through its own code.
    """

    def __init__(self, tokenizer: Tokenizer, dtype: np.dtype) -> None:
        self.tokenizer, self.dtype = tokenizer, dtype
        self.cache = WordCache(tokenizer, dtype) if is_ours(tokenizer) else None
        tokenizer.encode_special_tokens = True

    def __call__(self, text: str) -> bytes:
        """Ids of one document as bytes of `dtype`."""
        if self.cache is None:
            ids = self.tokenizer.encode(text, add_special_tokens=False).ids
            return np.array(ids, dtype=self.dtype).tobytes()
        return b"".join(map(self.cache.__getitem__, split_words(text)))


def is_ours(tokenizer: Tokenizer) -> bool:
    """Whether normaliser, pre-tokeniser and model are the ones made here, whatever the vocabulary."""
    given, ours = json.loads(tokenizer.to_str()), json.loads(wordpiece({"<unk>": UNK}).to_str())
    for description in (given, ours):
        description["model"].pop("vocab")
    return all(given[part] == ours[part] for part in ("normalizer", "pre_tokenizer", "model"))
