import textwrap

import numpy as np
import pytest

from cramming.data import prepare as prepare_module
from cramming.data.config import DataConfig
from cramming.data.prepare import prepare
from cramming.data.sources.docs import DocsSource, default_roots, python_files
from cramming.data.sources.prose import is_prose, paragraphs
from cramming.errors import UserError
from tests.helpers.data import text_config

NUMPY_STYLE = """
    Return the sorted elements of an array that are common to both inputs.

    The function is slow, see :func:`numpy.unique` and `the manual <https://x.org/a>`_ for a *faster* way [1]_.

    Parameters
    ----------
    first : array_like, optional
        The array whose elements are compared with those of the second one.
    axis : int

    Returns
    -------
    out : ndarray
        A new array with the common elements.

    .. note:: The result is always a copy of the data in the first array.

    .. math:: a = b + c

        This line belongs to the formula and is not to be read.

    Examples
    --------
    >>> intersect([1], [2])
    This is the output of the example in the text.

    Text after the example is read again as it is prose::

        This is code that looks like a sentence in the text.

    === =====
    one The table is not to be read as it is.
    === =====

    | This is a row | of a table | that is not to be read. |
"""
GOOGLE_STYLE = """Opens the file and reads the first line of it.

    Args:
        path (`str` or `Path`, *optional*): The path of the file that is to be read.
        mode: One of the modes that are known to the system.
        size (int):
            The number of bytes that are read at once.

    ```python
    This is a line of code in a fence.
    ```

    - The file is closed at the end of the block.
    1. The first line is returned to the caller.

    :param x: The value that is given to the function.
    :type x: The type is not to be read here.
    :returns: A value that is not the same as before.
"""


def test_numpy_style_gives_only_prose():
    assert paragraphs(NUMPY_STYLE) == [
        "Return the sorted elements of an array that are common to both inputs.",
        "The function is slow, see unique and the manual for a faster way.",
        "The array whose elements are compared with those of the second one.",
        "A new array with the common elements.",
        "The result is always a copy of the data in the first array.",
    ]


def test_google_and_sphinx_style_give_only_prose():
    assert paragraphs(GOOGLE_STYLE) == [
        "Opens the file and reads the first line of it.",
        "The path of the file that is to be read.",
        "One of the modes that are known to the system.",
        "The number of bytes that are read at once.",
        "The file is closed at the end of the block.",
        "The first line is returned to the caller.",
        "The value that is given to the function.",
        "A value that is not the same as before.",
    ]


@pytest.mark.parametrize(
    "sentence",
    [
        "The result is x = y + 1 in the end.",
        "the sentence starts in lower case here.",
        "It has no full stop at the end",
        "Too short here.",
        "Das ist ein Satz in einer anderen Sprache.",
        "Use foo_bar, baz_qux, get_it or set_it, in_it, of_it.",
        "Call open(path) to get a handle of the file.",
    ],
)
def test_what_is_no_english_sentence_is_left_out(sentence):
    assert not is_prose(sentence)


def module(*docstrings: str) -> str:
    first, *others = docstrings
    functions = (f'def f{index}():\n    """{text}"""\n' for index, text in enumerate(others))
    return f'"""{first}"""\nraise SystemExit("imported")\n' + "\n".join(functions)


def prose(topic: str, count: int = 12) -> str:
    return " ".join(
        f"The {topic} of {chr(97 + index) * 3} is found in the house by the river." for index in range(count)
    )


@pytest.fixture
def roots(tmp_path):
    root = tmp_path / "site"
    (root / "one" / "tests").mkdir(parents=True)
    (root / "two").mkdir()
    (root / "one" / "a.py").write_text(module(prose("garden").replace("house", "House"), prose("harbour")))
    (root / "one" / "b.py").write_text(module(prose("garden").replace("house", "Barn"), prose("forest")))
    (root / "one" / "broken.py").write_text(f'"""{prose("broken")}"""\ndef (\n')
    (root / "one" / "latin.py").write_bytes(f'"""{prose("latin")} \xe9"""'.encode("latin-1"))
    (root / "one" / "tests" / "c.py").write_text(module(prose("test")))
    (root / "two" / "short.py").write_text(module("A short text that waits for the next one in the package."))
    (root / "two" / "z.py").write_text(module(prose("mountain")))
    return [("site", root)]


def test_documents_are_modules_in_order_without_repetitions(roots):
    source = DocsSource(1, roots)
    source.check()
    documents = list(source.documents(None))
    assert documents == [
        prose("garden").replace("house", "House") + "\n" + prose("harbour"),
        prose("forest"),
        f"A short text that waits for the next one in the package.\n{prose('mountain')}",
    ]
    assert source.total() == sum(map(len, documents))


def test_several_processes_give_the_same(roots, monkeypatch):
    monkeypatch.setattr("cramming.data.sources.docs.FILES_PER_TASK", 1)
    one, two = DocsSource(1, roots), DocsSource(2, roots)
    one.check()
    two.check()
    assert one.provenance()["documents_sha256"] == two.provenance()["documents_sha256"]


def test_no_docstrings_is_a_clear_error(tmp_path):
    with pytest.raises(UserError, match=r"data\.source=docs found no docstrings under"):
        DocsSource(1, [("empty", tmp_path)]).check()


def test_prepared_docs(roots, tmp_path, monkeypatch):
    root = roots[0][1]
    for index in range(40):
        topic = "".join(chr(97 + int(digit)) for digit in f"{index:02d}")
        name = f"m{index:02d}.py"
        (root / "two" / name).write_text(module(*(textwrap.fill(prose(topic + kind), 60) for kind in ("one", "two"))))
    monkeypatch.setattr(prepare_module, "DocsSource", lambda workers: DocsSource(workers, roots))
    config = DataConfig(vocab_size=120, seq_len=16, valid_share=0.2, workers=1)
    data = prepare(config, tmp_path)
    counts = data.manifest["counts"]
    assert counts["documents"] + counts["documents_held_out"] == 43
    assert counts["documents_held_out"] == len(data.held_out_documents()) > 2
    assert "python" in data.manifest["source"]["environment"]
    assert np.array_equal(
        data.unigram_counts(), np.bincount(data.train.take(range(len(data.train))).ravel(), minlength=120)
    )


def test_this_environment_has_enough_files_and_a_stable_identity():
    files = python_files(default_roots())
    names = [name for name, _ in files]
    assert any(name.startswith("packages/torch/") for name in names)
    assert any(name == "stdlib/argparse.py" for name in names)
    assert not any("/tests/" in name or "/site-packages/" in name for name in names)
    assert DocsSource(1).identity() == DocsSource(1).identity()
    assert any(name.startswith("torch==") for name in DocsSource(1).identity()["packages"])


def test_text_config_has_no_docs_key(tmp_path):
    with pytest.raises(UserError, match=r"data\.source=text"):
        text_config(["a.txt"], source="docs")
