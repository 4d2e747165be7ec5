"""Which candidates are feedforward blocks, proved by calling them. Not which could be by shape (blocks).

Shapes alone take attention for a block, and names are a list of architectures that is never complete. So the module
around a candidate's linears is called alone, on noise, and what its linears were given and gave is recorded: it is a
block where the linear out was given act(what the linear in gave), or act(a) * b, for an activation that the module has
or that this library knows. That needs no input of the model's, no tokenizer, and no more of the model than one layer.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import permutations
from typing import Any

import torch
from torch import Tensor, nn

from fff.activations import ACTIVATIONS
from fff.layers.base import Feedforward
from fff.surgery.blocks import Block, Candidate, Found, Left, candidates, widths
from fff.surgery.calls import Arguments, Call, NoBlockError, called, evaluation, given_by, noise

Function = Callable[[Tensor], Tensor]

KNOWN = {name: each.forward for name, each in ACTIVATIONS.items() if name != "identity"}
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-5}  # relative; of half types 2e-2
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


def find_feedforward(model: nn.Module, sample: Any = None) -> Found:
    """The feedforward blocks of a model, found by structure and proved by a call of the module around each.

    The model is called in evaluation mode without gradients, and left as it was, random state included.

    Args:
        sample: the model's input (a mapping for keywords, a tuple for positions, else the one input), for modules that
            cannot be called alone on (2, 3, width); the model is then called once to see what they are given.
    """
    blocks: dict[Candidate, Block] = {}
    left: dict[Candidate, Left] = {}
    found = list(candidates(model))
    with evaluation(model):
        given = {} if sample is None else given_by(model, {each.path for each in found}, sample)
        for candidate in found:
            try:
                block = _block(model, candidate, given.get(candidate.path))
                if any(set(candidate.linears) & set(other.linears) for other in blocks):
                    raise NoBlockError("a chain of more than two linears, of which another block has one already")
                blocks[candidate] = block
            except NoBlockError as reason:
                left[candidate] = Left(candidate.path, str(reason))
    taken = {name for each in blocks for name in each.linears}
    telling = (each for candidate, each in left.items() if candidate.likely and not taken & set(candidate.linears))
    return Found(tuple(blocks.values()), (*telling, *_experts(model)))


def _experts(model: nn.Module) -> Iterator[Left]:
    """Modules of others whose weights are those of several blocks side by side."""
    for path, module in model.named_modules():
        weights = {name: len(each) for name, each in module.named_parameters(recurse=False) if each.dim() == 3}
        alike = len(weights) > 1 and len(set(weights.values())) == 1 and min(weights.values()) > 1
        if alike and not isinstance(module, Feedforward):
            yield Left(
                path,
                f"its weights ({', '.join(weights)}) are those of several experts in one three-dimensional tensor each "
                "and no linears; a router chooses among them, which one layer does not replace",
            )


def _block(model: nn.Module, candidate: Candidate, given: Arguments | None) -> Block:
    """The block that a candidate is. NoBlockError says why it is none."""
    host, out = model.get_submodule(candidate.path), model.get_submodule(candidate.out)
    ins = [model.get_submodule(name) for name in candidate.ins]
    dropouts: dict[str, nn.Module] = {name: each for name, each in host.named_modules() if isinstance(each, DROPOUTS)}
    reason = NoBlockError("it cannot be called")
    for arguments in [*noise(host, ins[0]), *([] if given is None else [given])]:
        try:
            call = called(host, [*ins, out, *dropouts.values()], arguments)
        except Exception as error:  # of foreign code called in a way that it may not know
            told = (str(error).splitlines() or [""])[0]
            reason = NoBlockError(
                f"it cannot be called alone ({type(error).__name__}: {told}); give `sample`, an input of the model"
            )
            continue
        try:
            return _proved(model, candidate, host, arguments, call, dropouts)
        except NoBlockError as error:
            reason = error
    raise reason


def _proved(
    model: nn.Module,
    candidate: Candidate,
    host: nn.Module,
    arguments: Arguments,
    call: Call,
    dropouts: dict[str, nn.Module],
) -> Block:
    ins, out = [model.get_submodule(name) for name in candidate.ins], model.get_submodule(candidate.out)
    hidden, y = call.first(out)
    scores = [call.first(each)[1] for each in ins]
    gated = len(scores) == 2 or scores[0].shape[-1] != hidden.shape[-1]
    whole = _is_all(host, arguments, call.first(ins[0])[0], y, call.output)
    attributes = dict(_attributes(model, candidate))
    activation = _activation(scores, hidden, [*attributes.values(), *KNOWN.values()])
    if not whole and gated:
        raise NoBlockError("a gated block within a module that computes more than it, which is not offered")
    place = "" if whole else _place(model, host, arguments, ins[0], out, activation, attributes)
    inner, outer = _sides(call, dropouts, ins[0], out)
    if not candidate.path and whole:
        raise NoBlockError("the model itself is the block, and cannot be replaced in place; put it into a module")
    d_in, d_out, dot = widths(ins[0]), widths(out), f"{candidate.path}." if candidate.path else ""
    assert d_in is not None
    assert d_out is not None
    return Block(
        candidate.path, whole, candidate.ins, candidate.out, gated, place,
        tuple(dot + name for name in inner), tuple(dot + name for name in outer) if whole else (),
        d_in[0], d_out[0], d_out[1], getattr(out, "bias", None) is not None,
    )  # fmt: skip


def _close(a: Any, b: Tensor) -> bool:
    if not isinstance(a, Tensor) or a.shape != b.shape or a.dtype != b.dtype:
        return False
    tolerance = TOLERANCE.get(b.dtype, 2e-2)
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance)


def _is_all(host: nn.Module, arguments: Arguments, x: Tensor, y: Tensor, output: Any) -> bool:
    """Whether a module takes what its linear in takes and gives what its linear out gives, in training too."""
    args = (*arguments[0], *arguments[1].values())
    if len(args) != 1 or not isinstance(output, Tensor) or output.shape != y.shape:
        return False
    if args[0].shape[-1] != x.shape[-1] or not torch.equal(args[0].reshape(x.shape), x) or not torch.equal(output, y):
        return False
    host.training = True  # alone, not its children: what it then does else is written in its own forward
    try:
        again = host(*arguments[0], **arguments[1])
    finally:
        host.training = False
    if not torch.equal(again, output):
        raise NoBlockError("a dropout is written in its forward, and would be lost with it; make it an nn.Dropout")
    return True


def _attributes(model: nn.Module, candidate: Candidate) -> Iterator[tuple[str, Function]]:
    """What could be the activation by where it stands: modules without linears, and functions, by path."""
    owners = dict.fromkeys([candidate.path, *(name.rpartition(".")[0] for name in candidate.linears)])
    for path in owners:
        owner, dot = model.get_submodule(path), f"{path}." if path else ""
        for name, child in owner.named_children():
            if not any(widths(each) for each in child.modules()):
                yield dot + name, child
        for name, value in vars(owner).items():
            if callable(value) and not name.startswith("_"):
                yield dot + name, value


def _activation(scores: list[Tensor], hidden: Tensor, functions: list[Function]) -> Function:
    """The function by which the neurons' activations come of the scores."""
    if hidden.shape == scores[0].shape and len(scores) == 1:
        if _close(scores[0], hidden):
            raise NoBlockError("nothing stands between its linears, so they are no neurons")
        sides = [(scores[0], None)]
    else:
        sides = list(permutations(scores if len(scores) == 2 else scores[0].chunk(2, -1)))  # type: ignore[arg-type]
    for function in functions:
        for a, b in sides:
            try:
                active = function(a)
            except Exception:  # an attribute that is something else, such as a norm of another width
                continue
            if isinstance(active, Tensor) and _close(active if b is None else active * b, hidden):
                return function
    raise NoBlockError("what its linear out is given is no known activation of what its linear in gives")


def _place(
    model: nn.Module,
    host: nn.Module,
    arguments: Arguments,
    first: nn.Module,
    out: nn.Module,
    activation: Function,
    attributes: Mapping[str, Function],
) -> str:
    """Path of the attribute by which a module's forward calls the activation: setting it must change the call."""
    for path in (path for path, value in attributes.items() if value is activation):
        owner, name = owner_of(model, path)
        before = getattr(owner, name)
        setattr(owner, name, without(before))
        try:
            call = called(host, [first, out], arguments)
        finally:
            setattr(owner, name, before)
        if torch.equal(call.first(out)[0], call.first(first)[1]):
            return path
    raise NoBlockError("its activation is written in its forward, among more; make it an attribute of the module")


def owner_of(model: nn.Module, path: str) -> tuple[nn.Module, str]:
    """The module that has the attribute of a path, and the attribute's name."""
    owner, _, name = path.rpartition(".")
    return model.get_submodule(owner), name


def unchanged(x: Tensor) -> Tensor:
    """x, where an activation was a function."""
    return x


def without(activation: Any) -> Any:
    """What to put in an activation's place."""
    return nn.Identity() if isinstance(activation, nn.Module) else unchanged


def _sides(
    call: Call, dropouts: Mapping[str, nn.Module], first: nn.Module, out: nn.Module
) -> tuple[list[str], list[str]]:
    """Names of the dropouts that were called between the linears alone, and of those called after them alone."""
    where: dict[nn.Module, set[str]] = {}
    side = "before"
    for module, _, _ in call.events:
        if module is first:
            side = "inner"
        elif module is out:
            side = "outer"
        elif isinstance(module, DROPOUTS):
            where.setdefault(module, set()).add(side)
    sides = {name: where.get(each) for name, each in dropouts.items()}
    return [name for name, at in sides.items() if at == {"inner"}], [
        name for name, at in sides.items() if at == {"outer"}
    ]
