"""The probe text: its beginning read and checked, and cut into tokens that know where they stand. Not the model."""

import codecs
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from cramming.errors import UserError

BYTES_PER_TOKEN = 8  # read at most; English has 4 to 5, so the asked number of tokens is nearly always there


@dataclass(frozen=True)
class Probe:
    """N tokens of a text.

    Attributes:
        name: the text's file name.
        text: from its beginning to the last token.
        whole: whether that is all of the file.
        ids: (N,) int64, as the model reads them.
        starts, ends: (N,) int64, where each token stands in `text`, in UTF-16 units as a browser counts.
    """

    name: str
    text: str
    whole: bool
    ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


def read_text(path: Path, tokens: int) -> tuple[str, bool]:
    """The beginning of a UTF-8 text, enough for `tokens` tokens, and whether that is all of it.

    Raises:
        UserError: the file is missing, a folder, not readable, empty or not UTF-8 text.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(tokens * BYTES_PER_TOKEN)
            whole = not file.read(1)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; give a text file.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give a text file.") from None
    try:
        if b"\0" in data:
            raise ValueError("it holds a zero byte")
        # Not final: the last character may be cut, by this read or by the `head -c` that made the file.
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(data)
    except ValueError as error:
        reason = str(error).split(":")[0]
        raise UserError(
            f"{path} is not UTF-8 text ({reason}); give plain text (unpack a compressed file first)."
        ) from None
    if not text.strip():
        raise UserError(f"{path} is empty; give a text with at least a few sentences.")
    return text, whole


def tokenise(path: Path, text: str, whole: bool, tokenizer: PreTrainedTokenizerBase, tokens: int) -> Probe:
    """Cut the beginning of a text into at most `tokens` tokens, without special tokens around them.

    Raises:
        UserError: nothing of the text is in the tokenizer's alphabet.
    """
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True  # text like "<mask>" stays text, as in pretraining
    encoding = backend.encode(text, add_special_tokens=False)
    if not encoding.ids:
        raise UserError(f"{path}: the checkpoint's tokenizer knows nothing of this text; give a text of its language.")
    offsets = np.array(encoding.offsets[:tokens], dtype=np.int64)
    if len(encoding.ids) > tokens:
        whole = False
    last = int(offsets[:, 1].max())
    beyond = np.frombuffer(text.encode("utf-32-le"), dtype="<u4") > 0xFFFF  # two UTF-16 units each
    shift = np.concatenate(([0], np.cumsum(beyond)))
    offsets += shift[offsets]
    ids = np.array(encoding.ids[:tokens], dtype=np.int64)
    return Probe(path.name, text if whole else text[:last], whole, ids, offsets[:, 0], offsets[:, 1])
