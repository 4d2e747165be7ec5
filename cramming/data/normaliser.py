"""What becomes of letters before words are made of them: three normalisers, and a fast form of two. Not the words' ids.

paper    The recipe's: `` and '' to ", NFD, lower case, accents off, spaces collapsed, all that is not ASCII dropped.
ascii    The same, after dashes, quotes, spaces and the ellipsis of Unicode took their ASCII forms.
unicode  These forms, NFC, lower case; letters of every script stay, and each Chinese one is a word.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from tokenizers import Regex, normalizers, pre_tokenizers

from cramming.errors import UserError

ASCII_FORMS = {
    "'": "‘’‚‛‹›′ʼ",
    '"': "“”„‟«»″",
    "-": "‐‑‒–−",
    "--": "—―",
    "...": "…",
    " ": "\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000",
}
FORMS = {ord(letter): form for form, letters in ASCII_FORMS.items() for letter in letters}
WORDS = re.compile(r"\w+|[^\w\s]+", re.ASCII)
NON_ASCII = re.compile(r"[^\x00-\x7F]")
# Shares of a text's letters, spaces aside.
WARN_ABOVE, REFUSE_ABOVE = 0.02, 0.5


def normalizer(kind: str = "paper") -> normalizers.Normalizer:
    """The normaliser as the tokenizer carries it (paper: CRAM's order, arXiv 2212.14034)."""
    quotes = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    forms = [normalizers.Replace(Regex(f"[{letters}]"), form) for form, letters in ASCII_FORMS.items()]
    recipe = [
        *quotes,
        normalizers.NFD(),
        normalizers.Lowercase(),
        normalizers.StripAccents(),
        normalizers.Replace(Regex(" {2,}"), " "),
        normalizers.Replace(Regex(r"[^\x00-\x7F]+"), ""),
    ]
    clean = normalizers.BertNormalizer(clean_text=True, handle_chinese_chars=True, strip_accents=False, lowercase=True)
    steps = {"paper": recipe, "ascii": [*forms, *recipe], "unicode": [*forms, *quotes, normalizers.NFC(), clean]}
    return normalizers.Sequence(steps[kind])


def in_ascii(text: str, kind: str) -> tuple[str, int]:
    """(the text as `paper` or `ascii` leaves it, but for the case and spaces; number of letters that are dropped).

    Dropping all non-ASCII after NFD also drops the accents: they and invisible characters are no loss.
    """
    if kind == "ascii" and not text.isascii():
        text = text.translate(FORMS)
    text = text.replace("``", '"').replace("''", '"')
    if text.isascii():
        return text, 0
    text = unicodedata.normalize("NFD", text)
    dropped = sum(1 for letter in NON_ASCII.findall(text) if unicodedata.category(letter) not in ("Mn", "Cf", "Zs"))
    return text.encode("ascii", "ignore").decode(), dropped


def split_words(text: str, kind: str = "paper") -> list[str]:
    """The words that a tokenizer with the normaliser `paper` or `ascii` makes of a text, many times faster."""
    return words_of(in_ascii(text, kind)[0])


def words_of(ascii_text: str) -> list[str]:
    """The words of what `in_ascii` gives."""
    return WORDS.findall(ascii_text.lower())


def splitter(kind: str) -> Callable[[str], list[str]]:
    """A function from a text to its words."""
    if kind != "unicode":
        return lambda text: split_words(text, kind)
    normal, words = normalizer(kind), pre_tokenizers.Whitespace()
    return lambda text: [word for word, _ in words.pre_tokenize_str(normal.normalize_str(text))]


@dataclass
class Dropped:
    """How much of a text a normaliser drops, in letters without spaces."""

    letters: int = 0
    letters_dropped: int = 0

    def add(self, text: str, dropped: int) -> None:
        """Count a text."""
        self.letters += len(text) - text.count(" ")
        self.letters_dropped += dropped

    def watch(self, texts: Iterable[str], kind: str) -> Iterator[str]:
        """The texts as they come, counted; UserError at their end when little of them is left."""
        for text in texts:
            self.add(text, 0 if kind == "unicode" else in_ascii(text, kind)[1])
            yield text
        self.refuse(kind)

    @property
    def share(self) -> float:
        """Dropped letters of all."""
        return self.letters_dropped / max(1, self.letters)

    def refuse(self, kind: str) -> None:
        """UserError when little of the text is left."""
        if self.share > REFUSE_ABOVE:
            raise UserError(
                f"data.normaliser={kind} drops {self.share:.0%} of the text's letters, all that are not ASCII; "
                "set data.normaliser=unicode, which keeps every script."
            )

    def warning(self, kind: str) -> str | None:
        """What to tell of a loss that is worth a word."""
        if self.share <= WARN_ABOVE:
            return None
        other = "ascii keeps dashes and quotes, unicode every letter" if kind == "paper" else "unicode keeps them"
        return f"data.normaliser={kind} drops {self.share:.1%} of the text's letters, which are not ASCII; {other}"
