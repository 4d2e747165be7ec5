"""Configuration of the data room (group `data`): sources, tokenizer, packing. Not the loader's order or batch."""

from dataclasses import dataclass, field

from cramming.checks import number, numbers, one_of, paths
from cramming.errors import UserError
from cramming.files import checked_name

SOURCES = ("docs", "text", "hub", "readymade")
ORDERS = ("random", "length")
NORMALISERS = ("paper", "ascii", "unicode")
LEAST_VOCABULARY, MOST_VOCABULARY = 64, 1_000_000


@dataclass(frozen=True)
class HubDataset:
    """One data set of the Hugging Face hub, or a local folder that `datasets` can read."""

    id: str = ""
    config: str | None = None
    split: str = "train"
    # Name of the column with text (source hub) or with token ids (source readymade).
    column: str = "text"
    # Commit of the data set; None takes the newest of the day of preparation.
    revision: str | None = None
    # Successive rows that make one document: for sets whose rows are single sentences.
    join_rows: int = 1

    def __post_init__(self) -> None:
        paths("data.hub", self, ("id",))


@dataclass(frozen=True)
class DataConfig:
    """What text becomes tokens, and how. `examples` and what stands below do not enter the prepared folder's name."""

    # First part of the prepared folder's name.
    name: str = "docs"
    # docs: docstrings of the lock file's packages; text: local files; hub: streamed; readymade: streamed token ids.
    source: str = "docs"
    # Globs, here or at an address (s3://), of .txt, .jsonl and .parquet, each also .xz, .gz and .zst; an empty line
    # ends a document in .txt.
    files: list[str] = field(default_factory=list)
    # Globs of held-out files; empty: documents are held out by their hash (valid_share).
    valid_files: list[str] = field(default_factory=list)
    # Field of .jsonl and column of .parquet files.
    text_field: str = "text"
    hub: list[HubDataset] = field(default_factory=list)
    # Raw text used, in 10^6 UTF-8 bytes (readymade: of packed tokens); None uses all.
    max_megabytes: float | None = None
    # Share of the documents held out, by hash, in [0, 1); without effect where valid_files are given.
    valid_share: float = 0.005
    # Held-out text kept, in 10^6 UTF-8 bytes; held-out documents beyond it are used for nothing.
    valid_max_megabytes: float = 8.0
    # Folder of an existing tokenizer, which brings its own normaliser; None trains one.
    tokenizer: str | None = None
    # Which letters stay: paper (the recipe's: those of ASCII), ascii (the same, after dashes, quotes and spaces of
    # Unicode took their ASCII forms), unicode (those of every script). See normaliser.py.
    normaliser: str = "paper"
    # Number of token ids.
    vocab_size: int = 32768
    # Text that the tokenizer is trained on, in 10^6 UTF-8 bytes.
    tokenizer_megabytes: float = 40.0
    # Documents are kept when tokens < this * characters; None keeps all.
    max_tokens_per_char: float | None = None
    # Tokens in a packed sequence.
    seq_len: int = 128
    # random: order of the documents (the loader shuffles by seed); length: by letters ascending, to be read in order.
    order: str = "random"
    # Sentences with <mask> that suit the corpus, for the print-out after pretraining.
    examples: list[str] = field(default_factory=list)
    # Processes; 0 uses every core.
    workers: int = 0
    # Whether every start reads all of the prepared data and compares the hashes; false compares sizes alone.
    verify: bool = True
    # Folder or address (s3://bucket/prepared) of prepared data: fetched from there, and put there when made here.
    remote: str | None = None

    def __post_init__(self) -> None:
        """Refuse what can be seen to be wrong without reading a file (UserError)."""
        one_of("data.source", self.source, SOURCES)
        one_of("data.order", self.order, ORDERS)
        one_of("data.normaliser", self.normaliser, NORMALISERS)
        checked_name(self.name, "data.name")
        paths("data", self, ("remote",))
        self._check_numbers()
        if self.source == "hub" and not self.hub:
            raise UserError("data.hub is empty; data.source=hub needs at least one data set with its id.")
        if self.source == "readymade" and len(self.hub) != 1:
            raise UserError(f"data.hub has {len(self.hub)} entries; data.source=readymade needs exactly one.")
        for dataset in self.hub:
            if not dataset.id or dataset.join_rows < 1:
                raise UserError(f"data.hub has an entry without id, or with join_rows below 1: {dataset}.")
        if self.source != "text" and (self.files or self.valid_files):
            raise UserError(f"data.files and data.valid_files need data.source=text; it is {self.source!r}.")

    def _check_numbers(self) -> None:
        numbers("data", self, ("tokenizer_megabytes", "valid_max_megabytes", "max_megabytes"), above=0)
        number("data.max_tokens_per_char", self.max_tokens_per_char, above=0)
        number("data.seq_len", self.seq_len, least=1, most=1_000_000)
        number(
            "data.vocab_size",
            self.vocab_size,
            least=LEAST_VOCABULARY,
            most=MOST_VOCABULARY,
            hint="the special tokens and letters alone need 64",
        )
        number("data.valid_share", self.valid_share, least=0, below=1)
        if not self.valid_share and not self.valid_files:
            raise UserError("data.valid_share is 0 and data.valid_files is empty; validation needs one of them.")
        number("data.workers", self.workers, least=0, most=1024, hint="0 uses every core")
