"""Docstrings of Python code, found without parsing it: many times faster, and the same whatever Python reads it.

Not what is prose in them (prose.py).
"""

import ast
import re
import warnings
from collections.abc import Iterator

MIN_CHARACTERS = 40
PIECE = re.compile(
    r"""
    \#[^\n]*
    | \"{3} [^"\\]* (?: (?: \\. | "(?!"") ) [^"\\]* )* \"{3}
    | '{3}  [^'\\]* (?: (?: \\. | '(?!'') ) [^'\\]* )* '{3}
    | " (?: [^"\\\n] | \\. )* "
    | ' (?: [^'\\\n] | \\. )* '
    """,
    re.DOTALL | re.VERBOSE,
)
LOOK_BACK = 400  # characters of white space between a header and its docstring, at most


def docstrings(code: str) -> Iterator[str]:
    """The longer triple-quoted strings that begin a module or follow a colon at a line's end, in order."""
    before = end = 0  # where the code before the piece ends, comments aside; where the last piece ends
    for piece in PIECE.finditer(code):
        text, raw = piece[0], code[piece.start() - 1 : piece.start()] in ("r", "R")
        start = piece.start() - raw
        if code[end:start].strip():
            before = start
        alone = not code[code.rfind("\n", 0, start) + 1 : start].strip()
        header = not before or code[max(0, before - LOOK_BACK) : before].rstrip().endswith(":")
        if alone and header and len(text) >= MIN_CHARACTERS + 6 and text.startswith(('"""', "'''")):
            found = content(text, raw=raw)
            if found is not None:
                yield found
        end = piece.end()
        if text[0] != "#":
            before = end


def content(literal: str, *, raw: bool) -> str | None:
    """What a triple-quoted string stands for; None where its escapes are none."""
    if raw or "\\" not in literal:
        return literal[3:-3]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = str(ast.literal_eval(literal))
        value.encode()  # an escape may stand for half of a letter
    except (SyntaxError, ValueError):
        return None
    return value
