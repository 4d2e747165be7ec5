import base64
import hashlib
import textwrap
from pathlib import Path

import numpy as np
import pytest

from cramming.config import CONFIGS
from cramming.data import prepare as prepare_module
from cramming.data.config import DataConfig
from cramming.data.prepare import prepare
from cramming.data.sources.docs import STANDARD_SHA256, DocsSource
from cramming.data.sources.docstrings import docstrings
from cramming.data.sources.packages import PACKAGES, Installed, locked_packages, locked_versions
from cramming.data.sources.prose import is_prose, paragraphs
from cramming.data.sources.source import documents
from cramming.errors import UserError
from tests.helpers.composed import composed
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


def install(site: Path, package: str, version: str = "1.0") -> None:
    """Write the files that mark the package's folder as installed."""
    info = site / f"{package}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    lines = []
    for path in (site / package).rglob("*.py"):
        hashed = base64.urlsafe_b64encode(hashlib.sha256(path.read_bytes()).digest()).decode().rstrip("=")
        lines.append(f"{path.relative_to(site).as_posix()},sha256={hashed},{path.stat().st_size}\n")
    (info / "RECORD").write_text("".join(lines))


def found(site: Path, names: str = "one two") -> Installed:
    lock = site / "requirements.lock"
    lock.write_text("# exact versions\none==1.0\ntwo==1.0; sys_platform == 'linux'\nthree==1.0\n")
    return locked_packages(names.split(), lock, [str(site)])


@pytest.fixture
def site(tmp_path) -> Path:
    root = tmp_path / "site"
    (root / "one" / "tests").mkdir(parents=True)
    (root / "two").mkdir()
    (root / "one" / "a.py").write_text(module(prose("garden").replace("house", "House"), prose("harbour")))
    (root / "one" / "b.py").write_bytes(
        module(prose("garden").replace("house", "Barn"), prose("forest")).replace("\n", "\r\n").encode()
    )
    (root / "one" / "latin.py").write_bytes(f'"""{prose("latin")} \xe9"""'.encode("latin-1"))
    (root / "one" / "newer.py").write_text(f'"""{prose("newer")}"""\ndef of a newer Python (\n')
    (root / "one" / "tests" / "c.py").write_text(module(prose("test")))
    (root / "one" / "version.py").write_text(module(prose("version")))
    (root / "two" / "short.py").write_text(module("A short text that waits for the next one in the package."))
    (root / "two" / "z.py").write_text(module(prose("mountain")))
    install(root, "one", "1.0+cpu")
    install(root, "two")
    return root


def test_documents_are_modules_in_order_without_repetitions(site):
    source = DocsSource(1, found(site))
    source.check()
    texts = list(documents(source, None))
    assert texts == [
        prose("garden").replace("house", "House") + "\n" + prose("harbour"),
        prose("forest"),
        prose("newer"),
        f"A short text that waits for the next one in the package.\n{prose('mountain')}",
    ]
    assert source.total() == sum(map(len, texts))


CODE = """#!/usr/bin/env python
# A comment that stands before the module's docstring, "quoted".
'''The module's own text, which is long enough to be read as one.'''
x = \"\"\"Assigned text: it is no docstring, however long it goes on.

def no():
    '''This is inside of a string and therefore no docstring at all.'''
\"\"\"
class A(dict):  # type: ignore

    r\"\"\"A raw text with \\alpha and an "end" that is long enough to count.\"\"\"
    y = "not \\" an end"  # "
    async def f(self, a={
        "key": 1}) -> None:
        # why
        \"\"\"A text with\\tan escape and \\"\\"\\" quotes in it, over forty letters.\"\"\"
        \"\"\"A second string below the first is no docstring of anything.\"\"\"
    def g(self): return \"\"\"Text that is returned, and is no docstring of anything.\"\"\"
    def short(self):
        \"\"\"Too short.\"\"\"
"""


def test_docstrings_are_found_as_python_finds_them():
    assert list(docstrings(CODE)) == [
        "The module's own text, which is long enough to be read as one.",
        'A raw text with \\alpha and an "end" that is long enough to count.',
        'A text with\tan escape and """ quotes in it, over forty letters.',
    ]
    compile(CODE, "code", "exec")


def test_several_processes_give_the_same(site, monkeypatch):
    monkeypatch.setattr("cramming.data.sources.docs.FILES_PER_TASK", 1)
    one, two = DocsSource(1, found(site)), DocsSource(2, found(site))
    one.check()
    two.check()
    assert one.provenance()["documents_sha256"] == two.provenance()["documents_sha256"]


def test_one_more_package_changes_nothing(site):
    before = DocsSource(1, found(site))
    (site / "three").mkdir()
    (site / "three" / "a.py").write_text(module(prose("island")))
    install(site, "three")
    after = DocsSource(1, found(site))
    assert after.identity() == before.identity()
    assert DocsSource(1, found(site, "one two three")).identity() != before.identity()


def test_other_versions_are_left_out_and_told(site, capsys):
    (site / "two-1.0.dist-info").rename(site / "two-1.1.dist-info")
    (site / "two-1.1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: two\nVersion: 1.1\n")
    source = DocsSource(1, found(site, "one two three"))
    source.check()
    assert source.identity()["packages"] == {"one": "1.0"}
    told = capsys.readouterr().err.splitlines()[-1]
    assert "not the standard corpus: without two (1.1 instead of 1.0), three (missing instead of 1.0)" in told


def test_a_file_that_was_changed_after_its_installation_is_named(site):
    (site / "two" / "z.py").write_text(module(prose("valley")))
    with pytest.raises(UserError, match=r"two/z\.py was changed after it was installed.*install two again"):
        DocsSource(1, found(site)).check()


def test_no_docstrings_is_a_clear_error(site):
    with pytest.raises(UserError, match=r"data\.source=docs found no docstrings \(left out: three \(missing"):
        DocsSource(1, found(site, "three")).check()


def test_no_lock_file_is_a_clear_error(tmp_path):
    with pytest.raises(UserError, match=r"data\.source=docs needs .*requirements\.lock, which is missing"):
        locked_versions(tmp_path / "requirements.lock")


@pytest.fixture
def larger(site, monkeypatch) -> Path:
    for index in range(40):
        topic = "".join(chr(97 + int(digit)) for digit in f"{index:02d}")
        name = f"m{index:02d}.py"
        (site / "two" / name).write_text(module(*(textwrap.fill(prose(topic + kind), 60) for kind in ("one", "two"))))
    (site / "two-1.0.dist-info" / "METADATA").unlink()
    (site / "two-1.0.dist-info" / "RECORD").unlink()
    (site / "two-1.0.dist-info").rmdir()
    install(site, "two")
    monkeypatch.setattr(prepare_module, "DocsSource", lambda workers: DocsSource(workers, found(site)))
    return site


def test_prepared_docs(larger, tmp_path):
    config = DataConfig(vocab_size=120, seq_len=16, valid_share=0.2, workers=1)
    data = prepare(config, tmp_path)
    counts = data.manifest["counts"]
    assert counts["documents"] + counts["documents_held_out"] == 44
    assert counts["documents_held_out"] == len(data.held_out_documents()) > 2
    assert data.manifest["source"]["environment"]["packages"] == {"one": "1.0", "two": "1.0"}
    assert np.array_equal(
        data.unigram_counts(), np.bincount(data.train.take(range(len(data.train))).ravel(), minlength=120)
    )


def test_a_sample_has_its_share_of_held_out_documents(larger, tmp_path):
    data = prepare(DataConfig(vocab_size=120, seq_len=16, valid_share=0.2, workers=1, max_megabytes=0.025), tmp_path)
    counts = data.manifest["counts"]
    assert 10 < counts["documents"] + counts["documents_held_out"] < 30
    assert counts["documents_held_out"] > 0


def test_this_environment_has_every_package_that_the_lock_file_names():
    source = DocsSource(1)
    assert source.installed.left_out == []
    assert list(source.identity()["packages"]) == PACKAGES
    names = [file.name for file in source.installed.files]
    assert "torch/nn/functional.py" in names
    assert not any("/tests/" in name for name in names)
    assert DocsSource(1).identity() == source.identity()


def test_the_default_data_are_the_same_everywhere(tmp_path, capsys):
    """A renewed lock file brings other text: put the new hashes into STANDARD_SHA256 and configs/data/docs.yaml."""
    config = composed("pretrain", "experiment=quickstart").data
    data = prepare(config, tmp_path)
    assert data.manifest["source"]["documents_sha256"] == STANDARD_SHA256
    assert data.fingerprint in (CONFIGS / "data" / "docs.yaml").read_text()
    assert "not the standard corpus" not in capsys.readouterr().err
    assert data.manifest["counts"]["train_tokens"] > 1_700_000


def test_text_config_has_no_docs_key(tmp_path):
    with pytest.raises(UserError, match=r"data\.source=text"):
        text_config(["a.txt"], source="docs")
