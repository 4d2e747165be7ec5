"""Trees against what people would run instead on a CPU, all in turn in one run: `scripts/bench.py --opponents`.

A layer 1x11 and encoders with trees, in float32, bfloat16 and int8, beside dense ones in every form that is there
(forms.py), each held to its float32 module first; of the encoder also one of MiniLM's shape, and dense ones so narrow
that trees are worth no less (NARROW). Layers and encoders of MiniLM's shape have leaves, too. `opponent` of a row is
the fastest dense form of as many neurons, `second` the fastest dense int8. Not the providers of a layer (layer.py).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from bench.cases import WIDTH, dense
from bench.encoder import FEEDFORWARDS, Scale, encoder, microbatch, shape_of
from bench.forms import FORMS, INT8, OPTIMISED, Form, made
from bench.options import name_of
from bench.rows import SpeedRow, stamp
from bench.timing import figures, interleaved
from cramming.machine import CPU
from fff.feedforward import settings_from
from fff.layers.path import PathFFF
from fff.testing import inputs
from fff.topology import trained_neurons

ROTATING = 4
NEAREST = 64  # dense layers of the next multiple of as many neurons
OURS = tuple(form for form in FORMS if form.ours)
OF_LAYERS = tuple(form for form in OURS if form.name != OPTIMISED)  # a layer alone is no model to optimise
DENSE = tuple(form for form in FORMS if form.name != "int8 in bfloat16")
TREES = ("1x11", "16x4", "32x6", "none")
# Dense models of about equal quality, in our own forms, by results/tables/effective_width.md. Paths were worth 0.5 to 1
# dense neuron for each of theirs that is used, so 1x11 is worth 6 to 12; 16x4 was worth 83, 113 and 188 at three sizes,
# 1.0 to 2.3 of each, so that 32x6 with 224 may be worth 230 or more.
NARROW = ("dense 16", "dense 128", "dense 256")
USUAL = "dense 3072"
MINILM = {"hidden_size": 384, "heads": 12}
MINILM_DENSE = "dense 1536"
LEAVES = ("leaf 5x192+96", "dense 384")  # in the place of MiniLM's layers, of about equal quality: distill.md

ENCODER = Scale(CPU, batches=(1, 32), layers=6, vocab_size=4096)


@dataclass(frozen=True)
class Size:
    """How much is timed: the tokens of the layer, the encoder, and at least how long each case."""

    tokens: tuple[int, ...] = (1, 128, 16384)
    depth: int = 11
    encoder: Scale = ENCODER
    leaf_tokens: tuple[int, ...] = (16, 128, 2048)  # of layers of MiniLM's shape
    texts: tuple[tuple[int, int], ...] = ((1, 16), (32, 64))  # of encoders of it: sequences, length
    seconds: float = 0.7


@dataclass(frozen=True)
class Timed:
    """One thing to time, and what its row says beside the figures."""

    form: Form
    call: Callable[[int], object]
    columns: dict[str, Any]


class One(nn.Module):
    """A layer as a model of which it is the part that changes."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """(N, d_in) -> (N, d_out)."""
        return self.layer(x)


class Encoder(nn.Module):
    """Token ids (B, S) -> the last hidden state (B, S, H), and nothing else."""

    def __init__(self, feedforward: str, scale: Scale) -> None:
        super().__init__()
        self.encoder = encoder(feedforward, scale).model.eval()

    def forward(self, ids: Tensor) -> Tensor:
        """Encode."""
        return self.encoder(input_ids=ids, return_dict=False)[0]


def run_opponents(threads: int, size: Size) -> list[SpeedRow]:
    """Rows of one number of threads: the layer by tokens, then encoders by batch."""
    torch.set_num_threads(threads)
    print(f"\ntrees and what people would run instead, {threads} thread{'s' * (threads > 1)}", flush=True)
    rows = []
    for tokens in size.tokens:
        rows += told(measure_layer(size, tokens))
    for batch in size.encoder.batches:
        rows += told(measure_encoder(size, batch))
    for tokens in size.leaf_tokens:
        rows += told(measure_leaves(size, tokens))
    for sequences, length in size.texts:
        rows += told(measure_minilm(size, sequences, length))
    return rows


def measure_layer(size: Size, tokens: int) -> list[SpeedRow]:
    """Rows of a tree and the dense layer of as many neurons, at a number of tokens."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    shape, neurons = f"1x{size.depth}", -trained_neurons(1, size.depth) // NEAREST * -NEAREST
    xs = inputs("iid", tokens, WIDTH, ROTATING)
    cases: dict[str, Timed] = {}
    for name, module, forms in (
        (f"dense {neurons}", dense(neurons, torch.float32), tuple(form for form in DENSE if form.name != OPTIMISED)),
        (shape, PathFFF(WIDTH, WIDTH, size.depth), OF_LAYERS),
    ):
        cases |= timed(name, One(module).eval(), xs, forms, {"shape": shape, "width": WIDTH, "inputs": "iid"})
    return rows_of(cases, {"what": "layer", "tokens": tokens}, size.seconds, f"dense {neurons}")


def measure_encoder(size: Size, sequences: int) -> list[SpeedRow]:
    """Rows of encoders at a batch: dense, with trees, without feedforward, and of MiniLM's shape."""
    torch._dynamo.reset()
    cases: dict[str, Timed] = {}
    plans = [(USUAL, size.encoder, DENSE), *((name, size.encoder, OURS) for name in (*TREES, *NARROW))]
    small = replace(size.encoder, **{key: min(value, getattr(size.encoder, key)) for key, value in MINILM.items()})
    plans.append((MINILM_DENSE, small, DENSE))
    for name, scale, forms in plans:
        ids = microbatch(scale, sequences).input_ids
        title = name if scale is size.encoder else f"{name} of {scale.hidden_size}"
        columns = {"shape": shape_of(name), **scale.title}
        cases |= timed(title, Encoder(name, scale).eval(), [ids], forms, columns)
    tokens = sequences * size.encoder.length
    return rows_of(cases, {"what": "encoder", "tokens": tokens, "sequences": sequences}, size.seconds, USUAL)


def measure_leaves(size: Size, tokens: int) -> list[SpeedRow]:
    """Rows of leaves, and of dense layers, of MiniLM's width, at a number of tokens."""
    torch._dynamo.reset()
    width = MINILM["hidden_size"]
    xs = inputs("iid", tokens, width, ROTATING)
    cases: dict[str, Timed] = {}
    dense_forms = tuple(form for form in DENSE if form.name != OPTIMISED)
    for name, forms in ((MINILM_DENSE, dense_forms), *((name, OF_LAYERS) for name in LEAVES)):
        torch.manual_seed(0)
        layer = settings_from(FEEDFORWARDS[name]).build(width, width)
        assert layer is not None
        columns = {"shape": shape_of(name), "width": width, "inputs": "iid"}
        cases |= timed(name, One(layer).eval(), xs, forms, columns)
    return rows_of(cases, {"what": "layer", "tokens": tokens}, size.seconds, MINILM_DENSE)


def measure_minilm(size: Size, sequences: int, length: int) -> list[SpeedRow]:
    """Rows of encoders of MiniLM's shape with dense layers, leaves and none."""
    torch._dynamo.reset()
    cases: dict[str, Timed] = {}
    scale = replace(size.encoder, length=length, hidden_size=MINILM["hidden_size"], heads=MINILM["heads"])
    for name, forms in ((MINILM_DENSE, DENSE), *((name, OURS) for name in (*LEAVES, "none"))):
        ids = microbatch(scale, sequences).input_ids
        cases |= timed(name, Encoder(name, scale).eval(), [ids], forms, {"shape": shape_of(name), **scale.title})
    same = {"what": "encoder", "tokens": sequences * length, "sequences": sequences}
    return rows_of(cases, same, size.seconds, MINILM_DENSE)


def timed(
    name: str, module: nn.Module, xs: list[Tensor], forms: tuple[Form, ...], columns: dict[str, Any]
) -> dict[str, Timed]:
    """A module's forms as cases by the rows' names."""

    def case(form: Form, call: Any) -> Callable[[int], object]:
        given = [form.given(x) for x in xs]
        return lambda turn: call(given[turn % len(given)])

    return {
        f"{name} {form.name}": Timed(
            form,
            case(form, call),
            {**columns, "relative_error": error, "dtype": dtype_of(form), "library": form.library},
        )
        for form, call, error in made(module, xs, forms, name, trees=not name.startswith("dense "))
    }


def dtype_of(form: Form) -> str:
    """The type that a row is said to be of."""
    return form.kind if form.kind in (INT8, OPTIMISED) else name_of(form.dtype)


def rows_of(cases: Mapping[str, Timed], same: dict[str, Any], seconds: float, usual: str) -> list[SpeedRow]:
    """All cases timed in turn, each beside the fastest form, and the fastest int8, of the usual dense one."""
    with torch.inference_mode():
        samples = interleaved({name: each.call for name, each in cases.items()}, CPU, seconds)
    found = {name: figures(each) for name, each in samples.items()}
    rivals = [name for name in cases if name.startswith(f"{usual} ") and " of " not in name]
    best = min(rivals, key=lambda name: found[name]["median"])
    cold = min(found[name]["cold"] for name in rivals)
    int8 = [name for name in rivals if cases[name].form.kind == INT8]
    second = min(int8, key=lambda name: found[name]["median"]) if int8 else None
    same = {**same, "mode": "inference", **stamp(CPU, torch.get_num_threads())}
    rows = []
    for name, row in found.items():
        against: dict[str, Any] = {"opponent": best, "ratio": found[best]["median"] / row["median"]}
        against |= {"ratio_cold": cold / row["cold"], "opponent_library": cases[best].form.library}
        if second is not None:
            against |= {"second": second, "ratio_second": found[second]["median"] / row["median"]}
        if same["what"] == "encoder":
            against["tokens_per_s"] = same["tokens"] / row["median"]
        rows.append(SpeedRow(name=name, **same, **cases[name].columns, **row, **against))
    return rows


def told(rows: list[SpeedRow]) -> list[SpeedRow]:
    """The rows, printed."""
    for row in rows:
        size = f"{row.sequences} x {row.tokens // row.sequences}" if row.sequences else f"{row.tokens:,} tokens"
        second = f" {row.ratio_second:8.2f}x {row.second}" if row.second else ""
        took = f"{row.median * 1e3:10.3f} ms {row.ratio:8.2f}x {row.opponent}{second}"
        print(f"  {row.what:<8} {size:<14} {row.name:<32} {took}", flush=True)
    return rows
