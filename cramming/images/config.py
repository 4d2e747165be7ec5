"""Configuration group `images`: Table 1 of arXiv 2308.14711 as an experiment, its data and rows. Not the training."""

from dataclasses import dataclass, field
from typing import Any

from cramming.checks import number, numbers, one_of, paths
from cramming.errors import UserError
from cramming.runs import Keys, essence, listed
from fff.activations import ACTIVATIONS
from fff.hardening import LOSSES

SOURCES = ("digits", "hub")
# Variant of a LeafFFF row -> auxiliary losses in its training, and whether it has a master leaf. The entropies are
# averaged over nodes, as in the code of arXiv 2405.16836; "summed" adds them up, as the formula of 2308.14711 reads.
VARIANTS: dict[str, tuple[tuple[str, ...], bool]] = {
    "hardened": (("entropy",), False),
    "summed": (("entropy",), False),
    "plain": ((), False),
    "balanced": (LOSSES, False),
    "master": (("entropy",), True),
}
DENSE = "dense"
MAX_SEED = 2**32 - 1
MAX_WIDTH = 2**20  # hidden neurons; beyond it a layer of images fills a machine
MAX_NAME = 60
# Which rows are run, not what a row is.
CHOICE = ("widths", "leaf_widths", "variants", "seeds", "controls")
# What the first results were named by (see cramming.runs); never add to it.
FIXED = listed(
    {
        "": "name source id config revision image_column label_column test_share valid_share split_seed epochs batch "
        "lr activation entropy_weight balance_weight master_width"
    }
)
KEYS = Keys(FIXED, cosmetic=frozenset(CHOICE), paths=frozenset({"id"}))


@dataclass(frozen=True)
class Row:
    """One network: a dense layer of `width` neurons, or a LeafFFF of width / leaf_width leaves."""

    width: int
    leaf_width: int
    variant: str

    @property
    def depth(self) -> int:
        """Decisions before a leaf; 0 for a dense layer."""
        return (self.width // self.leaf_width).bit_length() - 1

    @property
    def tag(self) -> str:
        """Short name: "dense16" or "w16-l8-hardened"."""
        return f"dense{self.width}" if self.variant == DENSE else f"w{self.width}-l{self.leaf_width}-{self.variant}"


@dataclass(frozen=True)
class ImagesConfig:
    """Data, rows and training. SGD, batch, lr and h are the paper's (arXiv 2308.14711, Table 1), the rest is ours.

    Raises UserError naming the key for a value that cannot be used.
    """

    name: str = "digits"  # of the data set, in records and tables
    source: str = "digits"  # digits: scikit-learn's own 1,797 images, no network | hub: a data set with train and test
    id: str | None = None  # source=hub: data set
    config: str | None = None  # source=hub: its configuration, null for the only one
    revision: str | None = None  # source=hub: commit
    image_column: str = "image"  # source=hub
    label_column: str = "label"  # source=hub
    test_share: float = 0.2  # source=digits: share of the images held out for the test, stratified by class
    valid_share: float = 0.1  # share of the training images held out to choose the epoch, stratified by class
    split_seed: int = 0  # of both splits
    widths: list[int] = field(default_factory=lambda: [16, 32, 64, 128])  # hidden neurons in training
    leaf_widths: list[int] = field(default_factory=lambda: [8, 4, 2, 1])  # hidden neurons of a leaf
    variants: list[str] = field(default_factory=lambda: list(VARIANTS))
    controls: bool = True  # dense layers of each leaf's width too: what inference costs, without decisions
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])  # initialisation and order of batches
    epochs: int = 200
    batch: int = 256  # images per update
    lr: float = 0.2  # plain SGD, constant
    activation: str = "relu"  # of the hidden neurons
    entropy_weight: float = 3.0  # h, of the nodes' entropies (nats)
    balance_weight: float = 1.0  # variant balanced, see fff.hardening.balance_loss
    master_width: int = 8  # variant master: hidden neurons of the master leaf

    def __post_init__(self) -> None:
        one_of("images.source", self.source, SOURCES)
        one_of("images.activation", self.activation, ACTIVATIONS)
        if self.source == "hub" and not self.id:
            raise UserError("images.id is missing: source=hub needs a data set, e.g. images=mnist.")
        paths("images", self, ("id",))
        if not self.name or len(self.name) > MAX_NAME or not self.name.replace("_", "").isalnum():
            raise UserError(
                f"images.name is {self.name[:60]!r}; use at most {MAX_NAME} letters, digits and _: it names files."
            )
        numbers("images", self, ("test_share", "valid_share"), above=0, most=0.5)
        numbers("images", self, ("epochs", "batch"), least=1)
        numbers("images", self, ("master_width",), least=1, most=MAX_WIDTH)
        numbers("images", self, ("split_seed",), least=0, most=MAX_SEED)
        numbers("images", self, ("lr",), above=0)
        numbers("images", self, ("entropy_weight", "balance_weight"), least=0)
        self._check_rows()

    def _check_rows(self) -> None:
        for key in CHOICE[:-1]:
            values = getattr(self, key)
            if len(set(values)) != len(values):
                raise UserError(f"images.{key} names something twice: {list(values)}.")
        for variant in self.variants:
            if variant not in VARIANTS:
                raise UserError(f"images.variants names {variant!r}; use some of {', '.join(VARIANTS)}.")
        if not self.seeds:
            raise UserError("images.seeds is []; give at least one seed.")
        for seed in self.seeds:
            number("images.seeds", seed, least=0, most=MAX_SEED)
        for key in ("widths", "leaf_widths"):
            for width in getattr(self, key):
                number(f"images.{key}", width, least=1, most=MAX_WIDTH)
        for width in self.widths:
            for leaf in self.leaf_widths:
                leaves, rest = divmod(width, leaf)
                if rest or leaves < 2 or leaves & (leaves - 1):
                    raise UserError(
                        f"images.widths has {width}, which is no {leaf} (images.leaf_widths) times 2, 4, 8, ...; "
                        "a tree has a power of two of leaves."
                    )

    def rows(self) -> list[Row]:
        """The rows to run: dense ones, controls, then every variant at every width and leaf width."""
        dense = list(dict.fromkeys([*self.widths, *(sorted(self.leaf_widths) if self.controls else [])]))
        trees = [
            Row(width, leaf, variant) for leaf in self.leaf_widths for variant in self.variants for width in self.widths
        ]
        return [*(Row(width, width, DENSE) for width in dense), *trees]

    def settings(self) -> dict[str, Any]:
        """What a row's result depends on besides the row and the seed: rows of equal settings are comparable."""
        return essence(self, KEYS)
