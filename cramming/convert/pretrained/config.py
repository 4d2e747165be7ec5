"""Configuration group `distill` and the root of `make distill`. Not how it is read (cramming.config)."""

from dataclasses import dataclass, field
from typing import Any

from cramming.checks import numbers, one_of, paths
from cramming.convert.pretrained.target import Target, read_target
from cramming.errors import UserError
from cramming.runs import Keys, essence, listed

RESTS = ("int8", "float32")
STARTS = ("leaves", "scratch")
COMPUTED = ("auto", "float32", "bfloat16")
CONTROLS = ("none", "narrow:48", "narrow:96", "narrow:192", "narrow:384")
MAX_SEED = 2**32 - 1
# What names a run (see cramming.runs): nothing that only says which others run beside it, or what is measured.
KEYS = Keys(
    fixed=listed({"": "model to tokens seq_len start fit_tokens ridge block_tokens block_lr whole_tokens whole_lr"}),
    cosmetic=listed({"": "controls seed times out record_gb glue_dir neighbours text held_out text_field word_weight"}),
    paths=listed({"": "model tokenizer"}),
)


def naming(config: "DistillConfig", *, causal: bool) -> dict[str, Any]:
    """What names a run. `word_weight` does of decoders alone, at its default too: the first were trained without it."""
    return essence(config, KEYS) | ({"word_weight": config.word_weight} if causal else {})


@dataclass(frozen=True)
class DistillConfig:
    """What is converted, into what, from how much text. UserError names the key of a value that cannot be used."""

    model: str = ""  # a model's folder, a .gguf file, or an id of the Hugging Face hub
    to: str = "leaf:5x192+96"  # path:TxD[+S], leaf:DxW[+S], narrow:K, none
    text: list[str] = field(default_factory=list)  # globs of .txt, .jsonl (both also .xz, .gz, .zst) and .parquet
    held_out: list[str] = field(default_factory=list)  # globs of held-out text; empty: documents by their hash
    text_field: str = "text"  # of .jsonl and .parquet
    tokenizer: str | None = None  # folder or hub id; null takes the model's own
    controls: list[str] = field(default_factory=lambda: list(CONTROLS))  # converted and judged in the same way
    rest: str = "int8"  # of the linears that stay, in what is timed: int8, float32
    seed: int = 0  # of which text is taken, orders of batches and what begins at random
    tokens: int = 1_000_000  # of the teacher, recorded
    seq_len: int = 128  # longest piece of text in tokens
    record_gb: float = 12.0  # 10^9 bytes that the recording may take on the disk
    keep_gates: bool = False  # whether it is an error to replace a gated block by a kind without a gate
    start: str = "leaves"  # leaves: closed form, from the dense neurons; scratch: at random
    fit_tokens: int = 250_000  # of the closed form
    ridge: float = 1e-3  # its penalty, against the mean square of a neuron's activation
    block_tokens: int = 1_000_000  # read by Adam for each block alone; 0 for none
    block_lr: float = 1e-3
    block_batch: int = 2048  # tokens of an update
    whole_tokens: int = 1_000_000  # read by Adam for all blocks together, end to end; 0 for none
    whole_lr: float = 3e-4
    whole_batch: int = 32  # pieces of text of an update
    cosine_weight: float = 1.0  # of the embedding's 1 - cosine, beside the error of the hidden states; encoders'
    word_weight: float = 1.0  # of the next word's divergence (nats) from the teacher's, likewise; decoders'; 0 for none
    compute: str = "auto"  # of training: bfloat16 where the processor multiplies matrices of it (AMX), else float32
    checkpoint_steps: int = 200  # updates between checkpoints of training end to end
    glue_dir: str | None = None  # folder with STS-B/dev.tsv; null leaves it out
    neighbours: int = 2000  # held-out pieces of text among which nearest neighbours are compared
    times: bool = True  # whether speed is measured; a busy machine measures itself
    out: str | None = None  # folder for the converted model; null: within output_dir

    def __post_init__(self) -> None:
        if not self.model:
            raise UserError("distill.model is missing: a model's folder, a .gguf file, or a hub id, e.g. MODEL=ID.")
        one_of("distill.rest", self.rest, RESTS)
        one_of("distill.start", self.start, STARTS)
        one_of("distill.compute", self.compute, COMPUTED)
        numbers("distill", self, ("seed",), least=0, most=MAX_SEED)
        numbers("distill", self, ("tokens", "fit_tokens", "block_batch", "whole_batch", "checkpoint_steps"), least=1)
        numbers("distill", self, ("block_tokens", "whole_tokens", "cosine_weight", "word_weight"), least=0)
        numbers("distill", self, ("seq_len",), least=8, most=8192)
        numbers("distill", self, ("neighbours",), least=12, most=20_000)
        numbers("distill", self, ("record_gb", "block_lr", "whole_lr", "ridge"), above=0)
        paths("distill", self, ("glue_dir", "out"))
        _ = self.targets

    @property
    def targets(self) -> list[Target]:
        """What the model becomes, and the controls, each once."""
        given = [(self.to, "distill.to"), *((each, "distill.controls") for each in self.controls)]
        return list({found.text: found for found in (read_target(*each) for each in given)}.values())


@dataclass(frozen=True)
class DistillRoot:
    """`make distill`: dense to tree."""

    output_dir: str = "outputs"
    results_dir: str = "results"
    distill: DistillConfig = field(default_factory=lambda: DistillConfig(model="?"))

    def __post_init__(self) -> None:
        paths("", self, ("output_dir", "results_dir"))
