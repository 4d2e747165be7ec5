"""A model written down for where there is no fff: torch.export, AOTInductor, ONNX. Not how fast the result is.

Trees are written by provider `aten`, in torch's own operators, by the nodes on the paths alone; so whoever runs the
file needs none of our operators. Batch and length stay open. What the model had for a provider it has again afterwards.
"""

import contextlib
import importlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from fff.beside import folder_beside
from fff.kernels import Chooser
from fff.layers.int8_linear import Int8Linear
from fff.meanwhile import meanwhile

PROVIDER = "aten"
ONE_FILE = 1_800_000_000  # bytes of weights that protobuf surely takes within one file; larger ones lie beside
aten, ours = torch.ops.aten, torch.ops.fff


def program(model: nn.Module, example: Any, *, dynamic: Any = None) -> ExportedProgram:
    """The model in evaluation as torch.export has it, in torch's own operators alone, for any batch and length.

    Args:
        example: an input of the model: a tensor, a tuple of arguments, or a mapping of keyword arguments. Its values do
            not matter; sizes that are to stay open must be 2 or more in it.
        dynamic: which sizes stay open, as torch.export's `dynamic_shapes`. Unless given: of whole numbers and of truths
            all (ids and masks, batch x length), of floats all but the last (vectors, tokens x width).

    Raises:
        ValueError: the model is in training mode, or a size that is to stay open is below 2 in the example.
        RuntimeError: something in the model cannot be written down; says what.
    """
    training = next((name or type(model).__name__ for name, part in model.named_modules() if part.training), None)
    if training is not None:
        raise ValueError(f"{training} is in training mode, whose draws cannot be exported; call eval() on the model")
    packed = next((name or "it" for name, part in model.named_modules() if isinstance(part, Int8Linear)), None)
    if packed is not None:
        raise RuntimeError(
            f"{type(model).__name__} cannot be exported: {packed} is an Int8Linear, whose weights are packed for this "
            "processor; export the float model, or one optimised with linears='keep'"
        )
    arguments, keywords = _call(example)
    if dynamic is None:
        dynamic = (*map(_open_sizes, arguments), *map(_open_sizes, keywords.values()))
        if keywords:
            dynamic = dict(zip(keywords, dynamic, strict=True))
    with _by_aten(model), torch.no_grad(), _quiet(), _explained(model, "torch.export"):
        found = torch.export.export(model, arguments, keywords, dynamic_shapes=dynamic, strict=False)
        found = found.run_decompositions(_in_plain_operators())
    left = {str(node.target) for node in found.graph.nodes if str(node.target).startswith("fff.")}
    if left:
        raise RuntimeError(
            f"{type(model).__name__} cannot be exported: it calls {', '.join(sorted(left))}, an operator of this "
            "package that is not there where the file will be run; call a layer instead"
        )
    return found


def package(model: nn.Module, example: Any, path: str | Path, *, dynamic: Any = None) -> None:
    """Compile the model by AOTInductor into a package (.pt2), complete or absent; needs a C++ compiler.

    `torch._inductor.aoti_load_package(path)` loads it, in Python or C++, on machines like this one.

    Args:
        example, dynamic: as of `program`.

    Raises:
        ValueError, RuntimeError: as `program`; the path does not end in .pt2; the compiler is missing or fails.
    """
    path = _checked(path, ".pt2")
    found = program(model, example, dynamic=dynamic)
    with _complete(path) as beside, torch.no_grad(), _quiet(), _explained(model, "AOTInductor"):
        torch._inductor.aoti_compile_and_package(found, package_path=str(beside / path.name))


def onnx(model: nn.Module, example: Any, path: str | Path, *, dynamic: Any = None) -> None:
    """Write the model as ONNX, complete or absent; weights above 1.8 GB lie beside it, in `<name>.data`.

    Needs the packages onnx and onnxscript (`pip install 'fff-cramming[onnx]'`).

    Args:
        example, dynamic: as of `program`.

    Raises:
        ImportError: a package is missing.
        ValueError, RuntimeError: as `program`; the path does not end in .onnx; ONNX has no operator for something.
    """
    path = _checked(path, ".onnx")
    for name in ("onnx", "onnxscript"):
        try:
            importlib.import_module(name)  # by name: this package needs torch alone
        except ImportError as error:
            raise ImportError(
                f"{name} writes ONNX, and is missing ({error}); `pip install 'fff-cramming[onnx]'` installs it"
            ) from None
    found = program(model, example, dynamic=dynamic)
    size = sum(tensor.nbytes for tensor in found.state_dict.values())
    with _complete(path) as beside, torch.no_grad(), _quiet(), _explained(model, "ONNX"):
        made = torch.onnx.export(found, dynamo=True, verbose=False)
        assert made is not None
        made.save(beside / path.name, external_data=size > ONE_FILE)


def _call(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example, Mapping):
        return (), dict(example)
    return (example if isinstance(example, tuple) else (example,)), {}


def _open_sizes(value: Any) -> dict[int, Any] | None:
    """Which dimensions of one argument stay open."""
    if not isinstance(value, Tensor):
        return None
    count = value.dim() - 1 if value.is_floating_point() else value.dim()
    small = next((place for place in range(count) if value.shape[place] < 2), None)
    if small is not None:
        raise ValueError(
            f"the example has a tensor {tuple(value.shape)}, whose dimension {small} is to stay open; give it a size "
            "of 2 or more, for torch.export takes 0 and 1 as they are"
        )
    return dict.fromkeys(range(count), Dim.DYNAMIC)


def _by_aten(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Inside, provider `aten` computes every layer that has one; afterwards all is as before."""
    layers = [part for part in model.modules() if isinstance(getattr(part, "_chooser", None), Chooser)]
    return meanwhile(layers, "provider", PROVIDER)


def _in_plain_operators() -> dict[Any, Any]:
    """Operator -> the same by operators that every exporter has; of ours, those that layers without providers call."""
    importlib.import_module("fff.kernels.rows")  # registers them
    return {
        ours.row_dots.default: lambda x, w, rows: (w[rows] * x[:, None]).sum(-1),
        ours.weighted_rows.default: lambda weights, w, rows: (weights[..., None] * w[rows]).sum(1),
        aten.sort.stable: lambda x, *, stable, dim=-1, descending=False: aten.sort.default(x, dim, descending),
        aten.__rshift__.Tensor: aten.bitwise_right_shift.Tensor,
        aten.searchsorted.Tensor: _searchsorted,
    }


def _searchsorted(ordered: Tensor, values: Tensor, *, out_int32: bool = False, right: bool = False, **_: Any) -> Tensor:
    """Of one sorted row (S,), for values (V,): how many of it lie before each; by all comparisons."""
    before = ordered <= values[:, None] if right else ordered < values[:, None]
    return before.sum(-1, dtype=torch.int32 if out_int32 else torch.int64)


@contextlib.contextmanager
def _explained(model: nn.Module, by: str) -> Iterator[None]:
    """Turn what a library raises, pages long, into one line with the reason."""
    try:
        yield
    except (OSError, MemoryError):  # a full disk is no fault of the model
        raise
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
        reason = f"{type(cause).__name__}: {lines[0][:300] if lines else ''}".rstrip(": ")
        raise RuntimeError(f"{type(model).__name__} cannot be exported by {by}: {reason}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' warnings of their own insides."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _checked(path: str | Path, ending: str) -> Path:
    path = Path(path)
    if path.suffix != ending:
        raise ValueError(f"{path} does not end in {ending}; name the file so, its readers go by that")
    return path


@contextlib.contextmanager
def _complete(path: Path) -> Iterator[Path]:
    """A folder beside `path` for what is written; at the end its files go there, the one of that name last."""
    with folder_beside(path) as beside:
        yield beside
        for file in sorted(beside.iterdir(), key=lambda file: file.name == path.name):
            file.replace(path.parent / file.name)
