"""`mini`: three tasks with true labels, made from held-out documents. Not GLUE, and never shown as GLUE."""

import re
from collections.abc import Callable, Sequence

import numpy as np

from cramming.errors import UserError
from cramming.glue.sources import Split, TaskData
from cramming.glue.tasks import Task

MIN_WORDS, MAX_WORDS = 7, 24
DEV_SHARE = 0.2  # of the documents
MIN_TRAIN, MIN_DEV = 200, 50  # fewer examples than this say nothing
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[\"'(\[]?[A-Z])")

Documents = list[list[str | None]]


def load_mini(task: Task, documents: Sequence[str], train: int, dev: int, seed: int) -> TaskData:
    """Make one task from raw documents; the same arguments give the same examples.

    Args:
        documents: raw text; each document's examples are all in train or all in dev, and a sentence that stands in
            several documents is used in its first one only.
        train: number of training examples at most.
        dev: number of dev examples at most.
        seed: chooses documents, sentences and changes.

    Raises:
        UserError: the text gives too few examples.
    """
    parts = split_documents(documents, np.random.default_rng(seed))
    splits = []
    for place, (part, wanted) in enumerate(zip(parts, (train, dev), strict=True)):
        splits.append(MAKERS[task.name](part, wanted, np.random.default_rng([seed, place, len(task.name)])))
    if len(splits[0]) < min(MIN_TRAIN, train) or len(splits[1]) < min(MIN_DEV, dev):
        raise UserError(
            f"glue=mini: {len(documents)} held-out documents give only {len(splits[0])} training and {len(splits[1])} "
            f"dev examples for {task.name}; prepare more text (a larger held-out part), or use glue=local or glue=hub."
        )
    return TaskData(task, splits[0], {"dev": splits[1]})


def split_documents(documents: Sequence[str], rng: np.random.Generator) -> tuple[Documents, Documents]:
    """Sentences of each document, for train and for dev; None stands where a sentence was dropped."""
    seen: set[str] = set()
    usable: Documents = []
    for document in documents:
        sentences = [keep_once(sentence, seen) for sentence in split_sentences(document)]
        if any(sentences):
            usable.append(sentences)
    order = rng.permutation(len(usable))
    count = max(1, round(DEV_SHARE * len(usable)))
    return [usable[i] for i in order[count:]], [usable[i] for i in order[:count]]


def split_sentences(document: str) -> list[str]:
    """Split each line at ., ! or ? before a capital letter. Abbreviations split too; length filters most of those."""
    return [part.strip() for line in document.split("\n") for part in SENTENCE_END.split(line) if part.strip()]


def keep_once(sentence: str, seen: set[str]) -> str | None:
    """The sentence if it has 7 to 24 words, ends like a sentence and was not seen before; otherwise None."""
    words = re.findall(r"[a-z]+", sentence.lower())
    key = " ".join(words)
    fits = MIN_WORDS <= len(sentence.split()) <= MAX_WORDS and len(words) >= MIN_WORDS and sentence[-1] in ".!?"
    if not fits or key in seen:
        return None
    seen.add(key)
    return sentence


def word_order(documents: Documents, wanted: int, rng: np.random.Generator) -> Split:
    """Label 1: the sentence as written. Label 0: the same words in another order. Half each, no sentence twice."""
    sentences = [sentence for document in documents for sentence in document if sentence]
    texts: list[str] = []
    labels: list[int] = []
    for index in rng.permutation(len(sentences)):
        if len(texts) == wanted:
            break
        # Originals pass the same test, so that both halves hold the same kind of sentence.
        changed = reorder(sentences[index].split(), rng)
        if changed is None:
            continue
        label = len(texts) % 2
        texts.append(sentences[index] if label else " ".join(changed))
        labels.append(label)
    return shuffled(texts, None, np.asarray(labels, dtype=np.int64), rng)


def reorder(words: list[str], rng: np.random.Generator) -> list[str] | None:
    """Swap two words that are not neighbours, or permute a span of 4 to 8, of the plain lower-case words.

    Words with capitals or punctuation stay where they are: out of place they would give the label away. None when there
    are too few words to move, or when the order of words would stay the same.
    """
    movable = [i for i, word in enumerate(words) if word.isalpha() and word.islower()]
    if len(movable) < 4:
        return None
    if rng.random() < 0.5:
        first, second = sorted(rng.choice(len(movable), size=2, replace=False))
        places, sources = [movable[first], movable[second]], [movable[second], movable[first]]
        if abs(places[1] - places[0]) < 2:
            return None
    else:
        length = int(rng.integers(4, min(8, len(movable)) + 1))
        start = int(rng.integers(0, len(movable) - length + 1))
        places = movable[start : start + length]
        sources = [places[i] for i in rng.permutation(length)]
    changed = list(words)
    for place, source in zip(places, sources, strict=True):
        changed[place] = words[source]
    return changed if changed != words else None


def same_document(documents: Documents, wanted: int, rng: np.random.Generator) -> Split:
    """Label 1: a sentence and the next one. Label 0: a sentence and a second sentence of another document's pair.

    Second sentences of both labels are second sentences of such pairs, so that neither text alone tells the label.
    """
    pairs = [
        (number, a, b)
        for number, document in enumerate(documents)
        for a, b in zip(document[0::2], document[1::2], strict=False)
        if a and b
    ]
    chosen = [pairs[i] for i in rng.permutation(len(pairs))[:wanted]]
    half = len(chosen) // 2
    true, rest = chosen[:half], sorted(chosen[half : 2 * half], key=lambda pair: pair[0])
    # Sorted by document, a shift by the largest document's size moves every second sentence into another document.
    sizes = np.bincount([pair[0] for pair in rest]) if rest else np.zeros(1, dtype=np.int64)
    shift = int(sizes.max())
    false = []
    if rest and 2 * shift <= len(rest):
        false = [(pair[1], rest[(i + shift) % len(rest)][2]) for i, pair in enumerate(rest)]
    true = true[: len(false)]
    first = [a for _, a, _ in true] + [a for a, _ in false]
    second = [b for _, _, b in true] + [b for _, b in false]
    return shuffled(first, second, np.repeat([1, 0], [len(true), len(false)]).astype(np.int64), rng)


def word_overlap(documents: Documents, wanted: int, rng: np.random.Generator) -> Split:
    """Label: overlap of the two word sets, 0 to 5. The second text is a piece of the first beside another sentence's.

    The piece's length is drawn so that the overlap spreads over the whole range; the label is counted afterwards.
    """
    sentences = [sentence for document in documents for sentence in document if sentence]
    order = rng.permutation(len(sentences))
    first: list[str] = []
    second: list[str] = []
    for a, b in zip(order[0::2], order[1::2], strict=False):
        if len(first) == wanted:
            break
        words, others = sentences[a].split(), sentences[b].split()
        share = rng.random()
        keep = min(len(words), round(2 * len(words) * share / (1 + share)))
        start = int(rng.integers(0, len(words) - keep + 1))
        pieces = [words[start : start + keep], others[: len(words) - keep]]
        if rng.random() < 0.5:
            pieces.reverse()
        first.append(sentences[a])
        second.append(" ".join(pieces[0] + pieces[1]))
    labels = np.asarray([overlap(a, b) for a, b in zip(first, second, strict=True)], dtype=np.float32)
    return shuffled(first, second, labels, rng)


def overlap(first: str, second: str) -> float:
    """Five times the Jaccard overlap of the two texts' sets of lower-case words; in [0, 5]."""
    a, b = (set(re.findall(r"[^\W_]+", text.lower())) for text in (first, second))
    return 5.0 * len(a & b) / len(a | b) if a | b else 0.0


def shuffled(first: list[str], second: list[str] | None, labels: np.ndarray, rng: np.random.Generator) -> Split:
    """The examples in a random order."""
    order = rng.permutation(len(first))
    return Split([first[i] for i in order], None if second is None else [second[i] for i in order], labels[order])


MAKERS: dict[str, Callable[[Documents, int, np.random.Generator], Split]] = {
    "word_order": word_order,
    "same_document": same_document,
    "word_overlap": word_overlap,
}
