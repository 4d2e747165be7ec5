"""Whether a prepared corpus can be used, and what its user should be told of it. Not for making it."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from cramming.data.config import DataConfig
from cramming.data.encode import Built, how_documents_end
from cramming.data.tokenizer import UNK
from cramming.errors import UserError

UNKNOWN_WARN_ABOVE = 0.01


def refuse_unusable(config: DataConfig, built: Built) -> None:
    """UserError when little of the text is left, or training or validation would have no sequence."""
    counts = built.counts
    built.dropped.refuse(config.normaliser)
    if not built.train.sequences and counts.documents_filtered:
        raise UserError(
            f"data.max_tokens_per_char={config.max_tokens_per_char} left out {counts.documents_filtered} of "
            f"{counts.documents + counts.documents_filtered} documents, and nothing remains; raise it or set null."
        )
    if not built.train.sequences or not built.valid.sequences:
        part = "held-out text" if built.train.sequences else "text"
        documents = counts.documents_held_out if built.train.sequences else counts.documents
        raise UserError(
            f"data: the {part} ({documents} documents) gives less than one sequence of data.seq_len={config.seq_len} "
            f"tokens; {mend(config, built)}."
        )


def mend(config: DataConfig, built: Built) -> str:
    """What helps against too little text."""
    counts = built.counts
    if counts.documents + counts.documents_held_out == 1:
        return f"all of it is one document: {how_documents_end(config)}"
    if config.max_megabytes is not None:
        return f"raise data.max_megabytes={config.max_megabytes:g}, which is all that is read"
    if not built.train.sequences:
        return "give more text"
    return f"raise data.valid_share={config.valid_share} or give data.valid_files"


def remarks(config: DataConfig, built: Built) -> Iterator[str]:
    """One line for each thing that is lost or changed on the way."""
    if warning := built.dropped.warning(config.normaliser):
        yield warning
    if built.mended.rows_without_text:
        yield f"{built.mended.rows_without_text:,} rows without text (null) were left out"
    if built.mended.half_letters:
        yield f"{built.mended.half_letters:,} documents held halves of letters (lone surrogates), which became U+FFFD"
    if built.mended.cuts:
        yield f"longer documents were cut, {built.mended.cuts:,} times; {how_documents_end(config)}"
    tokens = built.train.counts
    if (unknown := float(tokens[UNK] / max(1, tokens.sum()))) > UNKNOWN_WARN_ABOVE:
        yield (
            f"{unknown:.1%} of the training tokens are <unk>: words of over 100 letters, or of letters that are not in "
            "the vocabulary; raise data.vocab_size or data.tokenizer_megabytes"
        )


def losses(built: Built) -> dict[str, Any]:
    """The same as numbers, for the manifest."""
    return {**asdict(built.mended), **asdict(built.dropped)}
