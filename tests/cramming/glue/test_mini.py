"""The three tasks made from held-out documents: labels true, documents apart, same seed same examples."""

from itertools import pairwise

import numpy as np
import pytest

from cramming.errors import UserError
from cramming.glue.mini import load_mini, overlap, reorder, split_documents, split_sentences
from cramming.glue.tasks import MINI_TASKS, suite_tasks

TASKS = suite_tasks("mini")
NOUNS = [
    a + b for a in ("riv", "mount", "lant", "harb", "mead", "cast") for b in ("er", "ain", "ern", "our", "ow", "le")
]
VERBS = [
    a + b for a in ("cross", "lift", "paint", "follow", "measur", "repair") for b in ("ed", "s", "es", "ing", "en")
]


def documents(count: int = 60) -> list[str]:
    """Made-up prose; every sentence names its document and its place in it."""
    rng = np.random.default_rng(7)
    texts = []
    for document in range(count):
        sentences = []
        for place in range(14):
            a, b, c, d = (NOUNS[i] for i in rng.choice(len(NOUNS), 4, replace=False))
            v, w = (VERBS[i] for i in rng.choice(len(VERBS), 2, replace=False))
            sentences.append(
                f"Doc{chr(97 + document // 26)}{chr(97 + document % 26)} says number {chr(97 + place) * 3} "
                f"{v} the {a} while {b} {w} every {c} near one {d}."
            )
        texts.append(" ".join(sentences))
    return texts


@pytest.fixture(scope="module")
def made():
    texts = documents()
    return {task.name: load_mini(task, texts, 300, 60, 0) for task in MINI_TASKS}


def home(sentence: str) -> str:
    return next(word for word in sentence.split() if word.startswith("Doc"))


@pytest.mark.parametrize("name", ["word_order", "same_document", "word_overlap"])
def test_no_document_stands_in_both_splits(made, name):
    data = made[name]
    sides = [
        {word for text in [*split.first, *(split.second or [])] for word in text.split() if word.startswith("Doc")}
        for split in (data.train, data.dev["dev"])
    ]
    assert sides[0]
    assert sides[1]
    assert not sides[0] & sides[1]
    assert len(data.dev["dev"]) == 60


def test_word_order_keeps_the_words_and_tells_the_order(made):
    originals = {sentence for text in documents() for sentence in split_sentences(text)}
    bags = {" ".join(sorted(sentence.split())) for sentence in originals}
    split = made["word_order"].train
    assert split.second is None
    for text, label in zip(split.first, split.labels, strict=True):
        assert (text in originals) == bool(label)
        assert " ".join(sorted(text.split())) in bags
    assert abs(float(split.labels.mean()) - 0.5) < 0.01
    assert len({" ".join(sorted(text.split())) for text in split.first}) == len(split)


def test_reorder_moves_plain_lower_case_words_only():
    words = ["In", "1905,", "Anna", '"quietly"', "wrote", "a", "letter", "about", "the", "old", "house."]
    rng = np.random.default_rng(0)
    seen = 0
    for _ in range(200):
        changed = reorder(words, rng)
        if changed is not None:
            seen += 1
            assert changed != words
            assert sorted(changed) == sorted(words)
            assert [changed[i] for i in (0, 1, 2, 3, 10)] == [words[i] for i in (0, 1, 2, 3, 10)]
    assert seen > 100
    assert reorder(["A", "B", "c", "d", "e."], rng) is None


def test_same_document_labels_are_true_and_the_second_text_alone_tells_nothing(made):
    following = {}
    for text in documents():
        sentences = split_sentences(text)
        following.update(pairwise(sentences))
    split = made["same_document"].train
    assert split.second is not None
    for first, second, label in zip(split.first, split.second, split.labels, strict=True):
        assert (following.get(first) == second) == bool(label)
        assert (home(first) == home(second)) == bool(label)
    assert abs(float(split.labels.mean()) - 0.5) < 0.01
    assert len(set(split.second)) == len(split.second)


def test_word_overlap_is_what_counting_gives_and_spreads(made):
    split = made["word_overlap"].train
    assert split.second is not None
    for first, second, label in zip(split.first, split.second, split.labels, strict=True):
        a, b = ({word.strip(".").lower() for word in text.split()} for text in (first, second))
        assert label == pytest.approx(5 * len(a & b) / len(a | b), abs=1e-5)
    # The made-up sentences share their frame of seven words, so that no pair overlaps by less than a fifth.
    counts = np.histogram(split.labels, bins=4, range=(1, 5))[0]
    assert counts.min() > 0.1 * len(split)


def test_overlap_by_hand():
    assert overlap("The cat, the dog", "a dog") == pytest.approx(5 / 4)
    assert overlap("One two", "two ONE!") == 5.0
    assert overlap("", "") == 0.0


def test_same_seed_same_examples_and_another_seed_others():
    texts = documents()
    for task in MINI_TASKS:
        prints = [load_mini(task, texts, 200, 50, seed).fingerprint() for seed in (0, 0, 1)]
        assert prints[0] == prints[1] != prints[2]


def test_a_sentence_of_several_documents_is_used_once():
    repeated = "This very sentence stands in each and every document."
    parts = split_documents([f"{repeated} {text}" for text in documents(10)], np.random.default_rng(0))
    assert sum(document.count(repeated) for part in parts for document in part) == 1


def test_sentences_end_before_a_capital():
    assert split_sentences('It is 3.5 m. long. "Why?" He left! So.\nNew line') == [
        "It is 3.5 m. long.",
        '"Why?" He left!',
        "So.",
        "New line",
    ]


@pytest.mark.parametrize("task", MINI_TASKS, ids=lambda task: task.name)
@pytest.mark.parametrize("count", [0, 1, 3])
def test_too_little_text_is_an_error_with_the_mend(task, count):
    with pytest.raises(UserError, match="held-out documents give only"):
        load_mini(task, documents(count), 300, 60, 0)


def test_ask_for_few_and_get_few():
    assert len(load_mini(TASKS["word_order"], documents(), 20, 10, 0).train) == 20
