"""The WordPiece tokenizer: training, folder, and a fast encoder for whole corpora. Not its normaliser, nor packing."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from cramming.data.config import LEAST_VOCABULARY, MOST_VOCABULARY, NORMALISERS
from cramming.data.normaliser import Dropped, in_ascii, normalizer, splitter, words_of
from cramming.errors import UserError

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>", "<cls>", "<sep>", "<mask>")
PAD, BOS, EOS, UNK, CLS, SEP, MASK = range(7)
PREFIX = "##"
MAX_WORD = 100
# Bounds the memory of a worker's word cache; text without end of new words starts it anew.
CACHED_WORDS = 400_000


def train_tokenizer(texts: Iterable[str], vocab_size: int, normaliser: str = "paper") -> Tokenizer:
    """Train WordPiece with the special tokens at ids 0..6; the same texts give the same tokenizer.

    Raises:
        UserError: the texts give fewer than `vocab_size` tokens, or their letters alone more.
    """
    words, counts = splitter(normaliser), Counter[str]()
    for text in texts:
        counts.update(words(text))
    # Longer words become <unk> whatever the vocabulary.
    counts = Counter({word: count for word, count in counts.items() if len(word) <= MAX_WORD})
    # The trainer numbers letters inside of words in the order of a randomly seeded hash table, and ties between
    # merges follow those numbers. Given as special tokens in sorted order, they stand before it begins.
    letters = alphabet(counts)
    if normaliser == "unicode":  # some scripts have more letters than a vocabulary has room for
        letters = common(letters, vocab_size // 2)
        counts = Counter({word: count for word, count in counts.items() if letters.keys() >= set(pieces(word))})
    ordered = sorted(letters, key=lambda letter: (letter.startswith(PREFIX), letter))
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=[*SPECIAL_TOKENS, *ordered], limit_alphabet=0, show_progress=False
    )
    scratch = Tokenizer(models.WordPiece(unk_token="<unk>"))
    scratch.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    scratch.train_from_iterator(repeated_words(counts), trainer)
    vocabulary = scratch.get_vocab()
    if len(vocabulary) != vocab_size:
        raise wrong_size(vocab_size, len(vocabulary))
    return wordpiece(vocabulary, normaliser)


def pieces(word: str) -> Iterator[str]:
    """The word's letters, with the prefix those inside."""
    return (PREFIX + letter if place else letter for place, letter in enumerate(word))


def alphabet(counts: Counter[str]) -> Counter[str]:
    """How often each letter stands anywhere in a word, and with the prefix how often inside."""
    letters = Counter[str]()
    for word, count in counts.items():
        for letter in (*word, *(PREFIX + letter for letter in word[1:])):
            letters[letter] += count
    return letters


def common(letters: Counter[str], most: int) -> Counter[str]:
    """The `most` common ones."""
    return Counter(dict(sorted(letters.items(), key=lambda item: (-item[1], item[0]))[:most]))


def wrong_size(vocab_size: int, found: int) -> UserError:
    """The error for a text that does not give the tokens asked for."""
    if found < LEAST_VOCABULARY:
        return UserError(
            f"data: the text gives {found} tokens, too few for any data.vocab_size (from {LEAST_VOCABULARY}); "
            "give more text."
        )
    mend = f"set data.vocab_size={found}"
    if found < vocab_size:
        mend += ", or give more text or data.tokenizer_megabytes"
    return UserError(f"data.vocab_size is {vocab_size}, but the text gives {found} tokens; {mend}.")


def repeated_words(counts: dict[str, int]) -> Iterator[str]:
    """Lines in which every word occurs as often as counted: what the trainer counts again."""
    for word in sorted(counts):
        left = counts[word]
        while left > 0:
            yield " ".join([word] * min(left, 1000))
            left -= 1000


def wordpiece(vocabulary: dict[str, int], normaliser: str = "paper") -> Tokenizer:
    """The tokenizer around a vocabulary, with normaliser, pre-tokeniser and templates."""
    tokenizer = Tokenizer(
        models.WordPiece(
            vocabulary, unk_token="<unk>", continuing_subword_prefix=PREFIX, max_input_chars_per_word=MAX_WORD
        )
    )
    tokenizer.normalizer = normalizer(normaliser)
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
        raise UserError(
            f"data.tokenizer: {path} is missing; give a folder that save_pretrained wrote, or null (code that a "
            "tokenizer brings is never run)."
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise UserError(f"data.tokenizer: {path} is damaged ({error}).") from None
    size = tokenizer.get_vocab_size()
    if not LEAST_VOCABULARY <= size <= MOST_VOCABULARY or max(tokenizer.get_vocab().values()) >= size:
        raise UserError(
            f"data.tokenizer: {folder} has {size} tokens, or ids that leave some numbers out; "
            f"give one with {LEAST_VOCABULARY} to {MOST_VOCABULARY} tokens numbered from 0."
        )
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

    Words repeat, so each is encoded once; with a normaliser that has no fast form a text goes through its own code.
    """

    def __init__(self, tokenizer: Tokenizer, dtype: np.dtype) -> None:
        self.tokenizer, self.dtype = tokenizer, dtype
        self.normaliser = normaliser_of(tokenizer)
        self.cache = WordCache(tokenizer, dtype)
        self.dropped = Dropped()  # by the texts so far, as far as the normaliser is one made here
        tokenizer.encode_special_tokens = True

    def __call__(self, text: str) -> bytes:
        """Ids of one document as bytes of `dtype`."""
        if self.normaliser is None or self.normaliser == "unicode":
            self.dropped.add(text, 0)
            ids = self.tokenizer.encode(text, add_special_tokens=False).ids
            return np.array(ids, dtype=self.dtype).tobytes()
        ascii_text, dropped = in_ascii(text, self.normaliser)
        self.dropped.add(text, dropped)
        return b"".join(map(self.cache.__getitem__, words_of(ascii_text)))


def normaliser_of(tokenizer: Tokenizer) -> str | None:
    """Which of our normalisers a tokenizer has; None where any part but the vocabulary is another than ours."""
    given = json.loads(tokenizer.to_str())
    for name in NORMALISERS:
        ours = json.loads(wordpiece({"<unk>": UNK}, name).to_str())
        for description in (given, ours):
            description["model"].pop("vocab", None)
        if all(given[part] == ours[part] for part in ("normalizer", "pre_tokenizer", "model")):
            return name
    return None
