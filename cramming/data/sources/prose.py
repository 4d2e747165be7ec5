"""English prose out of one docstring: no code, tables, headings or markup. Not for finding or joining docstrings."""

import inspect
import re

FENCE = re.compile(r"^(```|~~~)")
UNDERLINE = re.compile(r"^([=\-~^*+#\"'`.:_])\1{2,}$")
HEADING = re.compile(r"^(#{1,6}\s|={2,}\s|\*\*[^*]+\*\*:?$)")
TABLE = re.compile(r"^(\||\+[-=+]{3,}|[=\-]{2,}(\s+[=\-]{2,})+$)|\s\|\s.*\s\|\s|\S {3,}\S.* {3,}\S")
DIRECTIVE = re.compile(r"^\.\.\s+(?:([\w:-]+)::\s*(.*)|.*)$")
PROSE_DIRECTIVES = {"note", "warning", "tip", "important", "caution", "hint", "attention", "admonition", "topic"}
BULLET = re.compile(r"^(?:[-*+•]|\(?(?:\d{1,2}|[a-z])[.)])\s+(?=\S)")
FIELD = re.compile(
    r"^:(param|parameter|arg|return|returns|raise|raises|ivar|cvar|var|keyword)\b[^:]*:\s*|^[:@]\w[^:]*:.*$"
)
NUMPY_ENTRY = re.compile(r"^[`*]{0,2}[\w.,`* ()\[\]-]{1,60} :(\s|$)")
GOOGLE_ENTRY = re.compile(
    r"^[`*\"']{0,2}[A-Za-z_][\w.*`\"'/-]*\s?(\([^()]*(?:\([^()]*\)[^()]*)*\))?\s?[`*]{0,2}:(\s+|$)"
)
SECTION = re.compile(r"^[A-Z][\w ]{1,40}:$")

SUBSTITUTIONS = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"!\[[^\]]*\]\([^)]*\)", ""),
        (r"\[([^\]\[]+)\]\([^)\s]*\)", r"\1"),
        (r"`([^`<]+?)\s*<[^`>]*>`_{0,2}", r"\1"),
        (r"\\[A-Z]\{([^{}]*)\}|[CBILMU]\{([^{}]*)\}", r"\1\2"),
        (r"(?::[a-zA-Z][\w+-]*)+:`[~!]?([^`]+)`", r"`\1`"),
        (r"`[~!]?[\w.]+\.(\w+)(\(\))?`", r"\1"),
        (r"\s*\[#?[\w*,\s-]{1,12}\]_", ""),
        (r"``?([^`]+)``?_{0,2}", r"\1"),
        (r"(?<![\w*])\*{1,3}(\S(?:[^*]*\S)?)\*{1,3}(?![\w*])", r"\1"),
        (r"(?<!\w)_([A-Za-z][A-Za-z ]*)_(?!\w)", r"\1"),
        (r"(?<=\w)\(\)", ""),
        (r"\(?<?https?://[^\s)>]+[)>]?", ""),
        (r"(?<=\w)_(?=[\s.,;]|$)", ""),
        (r"\(\s*\)", ""),
    )
)
MARKUP = re.compile(r"[\[`{*_\\(]|http")  # no substitution changes a block that has none of it
SPACES = tuple((re.compile(pattern), to) for pattern, to in ((r"\s+([.,;:!?])(?=\s|$)", r"\1"), (r"\s+", " ")))
SENTENCE_END = re.compile(
    r"(?<=[.!?])(?<!\be\.g\.)(?<!\bi\.e\.)(?<!\betc\.)(?<!\bcf\.)(?<!\bvs\.)[\"')]*\s+(?=[\"'(]?[A-Z0-9])"
)
WORD = re.compile(r"^[(\"']*(?:[A-Za-z]+(?:['/-][A-Za-z]+)*|\d[\d,]*(?:\.\d+)?%?|--?|e\.g|i\.e)[.,;:!?)\"']*$")
CODE = re.compile(r"[=<>{}|\\$@^~*#`\[\]&]|::|->|%[a-z]|\w\(|[\"'],|__|\.\.(?!\.)|\bself\b")
FIRST = re.compile(r"^[\"'(]?[A-Z]")
CASED = re.compile(r"[a-z][A-Z]|_|\w\.\w|[A-Z]{5}")
# The commonest function words: text of other languages, word lists and code have few of them.
FUNCTION_WORD_LIST = (
    "the a an of to in is are be been was were for and or that this these those it its if with as by on "
    "from at not which when who whose has have had can could will would should may might must do does "
    "into than then all any each every only but you your we our they their he she his her there here no "
    "nor other same so such how what where while because between both more most some one over under after "
    "before also about out up i"
)
FUNCTION_WORDS = frozenset(FUNCTION_WORD_LIST.split())
MIN_WORDS, MAX_WORDS = 5, 90  # in a sentence


def paragraphs(docstring: str) -> list[str]:
    """The docstring's paragraphs of English sentences, each on one line; empty when it has none."""
    found = []
    for block in blocks(inspect.cleandoc(docstring).splitlines()):
        if block.count(" ") < MIN_WORDS - 1:
            continue
        sentences = [sentence for sentence in SENTENCE_END.split(plain(block)) if is_prose(sentence)]
        if sentences:
            found.append(" ".join(sentences))
    return found


def blocks(lines: list[str]) -> list[str]:
    """Text blocks of a cleaned docstring: code, doctests, tables, headings and field names left out."""
    reader = BlockReader()
    for line in lines:
        reader.read(line)
    reader.flush()
    return reader.done


class BlockReader:
    """Reads lines in turn and collects text blocks in `done`."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.current: list[str] = []
        self.indent = 0
        # Lines deeper than this indentation belong to a literal block or directive; None outside of one.
        self.skip_deeper: int | None = None
        self.fenced = False
        self.doctest = False

    def read(self, line: str) -> None:
        """Take one line."""
        text = line.strip()
        indent = len(line) - len(line.lstrip())
        if FENCE.match(text):
            self.fenced = not self.fenced
            self.flush()
        elif self.fenced:
            return
        elif not text:
            self.doctest = False
            self.flush()
        elif self.doctest or text.startswith((">>>", "In [", "$ ", "% ")):
            self.doctest = True
            self.flush()
        elif self.skip_deeper is not None and indent > self.skip_deeper:
            return
        else:
            self.skip_deeper = None
            self.read_text(text, indent)

    def read_text(self, text: str, indent: int) -> None:
        """Take a line that is no code: start, continue or drop a block."""
        directive = DIRECTIVE.match(text)
        if UNDERLINE.match(text):
            if len(self.current) == 1:
                self.current = []
            self.flush()
        elif directive:
            self.flush()
            if directive[1] in PROSE_DIRECTIVES:
                self.start(directive[2], indent)
            else:
                self.skip_deeper = indent
        elif TABLE.search(text) or HEADING.match(text) or SECTION.match(text) or NUMPY_ENTRY.match(text):
            self.flush()
        else:
            self.read_prose(text, indent)

    def read_prose(self, text: str, indent: int) -> None:
        """Take a line of text, perhaps behind a bullet or a field's name."""
        if field := FIELD.match(text):
            self.start(text[field.end() :] if field[1] else "", indent)
        elif bullet := BULLET.match(text):
            text = text[bullet.end() :]
            entry = GOOGLE_ENTRY.match(text)
            self.start(text[entry.end() :] if entry else text, indent)
        elif not self.current or indent < self.indent:
            entry = GOOGLE_ENTRY.match(text)
            self.start(text[entry.end() :] if entry else text, indent)
        elif len(self.current) == 1 and indent > self.indent and not re.search(r"[a-z,][ ]\S+$", self.current[0]):
            # A single short line above deeper text is the name of a parameter.
            self.current = []
            self.start(text, indent)
        elif indent == self.indent and (entry := GOOGLE_ENTRY.match(text)) and self.can_end(entry):
            self.start(text[entry.end() :], indent)
        else:
            self.current.append(text)

    def can_end(self, entry: re.Match[str]) -> bool:
        """Whether what looks like a field's name is one: it has a type or an underscore, or a sentence ended before."""
        return bool(entry[1]) or "_" in entry[0] or self.current[-1].endswith(".")

    def start(self, text: str, indent: int) -> None:
        """End the current block and begin one."""
        self.flush()
        self.indent = indent
        if text:
            self.current = [text]

    def flush(self) -> None:
        """End the current block; a block that ends in `::` announces a literal one."""
        if self.current:
            block = " ".join(self.current)
            if block.endswith("::"):
                self.skip_deeper = self.indent
            self.done.append(block)
        self.current = []


def plain(block: str) -> str:
    """The block without inline markup (reStructuredText, Markdown, epytext) and addresses."""
    block = block.replace("“", '"').replace("”", '"').replace("’", "'").replace("‘", "'")
    for pattern, replacement in (*SUBSTITUTIONS, *SPACES) if MARKUP.search(block) else SPACES:
        block = pattern.sub(replacement, block)
    return block.strip()


def is_prose(sentence: str) -> bool:
    """Whether it reads as one whole English sentence: capital, full stop, words, few names of code."""
    words = sentence.split()
    if not MIN_WORDS <= len(words) <= MAX_WORDS or sentence[-1] not in ".!?":
        return False
    if not FIRST.match(sentence) or CODE.search(sentence):
        return False
    if sentence.count('"') % 2 or sentence.count("(") != sentence.count(")"):
        return False
    wordlike = sum(1 for word in words if WORD.match(word))
    function_words = sum(1 for word in words if word.lower().strip(".,;:!?()\"'") in FUNCTION_WORDS)
    numbers = sum(1 for word in words if word[0].isdigit())
    if wordlike < 0.85 * len(words) or function_words < 0.25 * len(words) or numbers > 0.2 * len(words):
        return False
    return len(CASED.findall(sentence)) <= max(1, len(words) // 8)
