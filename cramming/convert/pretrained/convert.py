"""The two ways in: `convert` from Python, and `distill` for the command, which also writes records. Not the work (job).

found = convert(model, documents, to="leaf:5x192+96", tokenizer=tokenizer)
found.model, found.metrics["leaf:5x192+96"]["neighbours"]
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from cramming.convert.pretrained.compute import device_of
from cramming.convert.pretrained.config import DistillConfig, DistillRoot, naming
from cramming.convert.pretrained.faster import in_use
from cramming.convert.pretrained.folder import write_folder
from cramming.convert.pretrained.job import DENSE, Job, Made, Texts, alone
from cramming.convert.pretrained.judge import Judged
from cramming.convert.pretrained.target import Target, read_target
from cramming.convert.pretrained.teacher import load_teacher, teacher_of
from cramming.convert.pretrained.text import documents, split_texts
from cramming.errors import UserError
from cramming.files import check_writable, refuse_existing, short_hash
from cramming.locks import locked
from cramming.record import Record
from cramming.runs import RecordedRun


@dataclass(frozen=True)
class Converted:
    """What came of a conversion.

    Attributes:
        model: the converted model, float32, in evaluation mode; `fff.surgery.save(model, folder)` keeps it.
        in_use: the same as it is timed: what stayed dense in int8.
        metrics: by `to`, by each control and by "dense": see `cramming.convert.pretrained.judge`.
    """

    model: Any
    in_use: Any
    metrics: Mapping[str, Judged]


def convert(
    model: nn.Module | str | Path,
    text: Sequence[str],
    *,
    to: str = "leaf:5x192+96",
    tokenizer: Any = None,
    rest: str = "int8",
    held_out: Sequence[str] = (),
    folder: str | Path | None = None,
    **settings: Any,
) -> Converted:
    """Convert a dense model by distillation, and its controls, and judge all of them.

    Args:
        model: a transformers model, which stays as it is, or what `distill.model` takes.
        text: documents.
        to: path:TxD[+S], leaf:DxW[+S], narrow:K or none.
        tokenizer: the model's; None where `model` names a folder or an id.
        rest: int8 or float32, of the linears that stay in what is timed.
        held_out: documents to judge by; of none, some of `text` are held out by their hash.
        folder: of the work, which a second call goes on with; None takes one that is removed at the end.
        settings: further keys of `DistillConfig`.

    Raises:
        UserError: see `cramming.convert.pretrained.job.Job`.
    """
    named = str(model) if isinstance(model, str | Path) else None
    config = DistillConfig(model=named or "model", to=to, rest=rest, **settings)
    if named is None and tokenizer is None:
        raise UserError("tokenizer is missing: give the model's own.")
    teacher = load_teacher(named) if named is not None else None
    if teacher is None or tokenizer is not None:
        teacher = teacher_of(model if teacher is None else teacher.model, tokenizer, named or "model")  # type: ignore[arg-type]
    train, kept = (list(text), list(held_out)) if held_out else split_texts(text)
    with tempfile.TemporaryDirectory() as temporary:
        job = Job(teacher, Texts(train, kept), config, Path(folder or temporary))
        made = job.make()
        metrics = job.judge(made)
    found = next(each.model for each in made if each.target == read_target(to))
    return Converted(found.to(device_of(teacher.model)), in_use(found, rest), metrics)


def distill(root: DistillRoot) -> list[Record]:
    """Convert, judge and record what the configuration names; the records of the dense model, of it and its controls.

    What is finished is not made again; where only times are missing, because a busy machine left them out, they alone
    are measured.

    Raises:
        UserError: see `cramming.convert.pretrained.job.Job`.
    """
    config = root.distill
    if config.out is not None:
        refuse_existing(Path(config.out))
    texts = Texts(*documents(config.text, config.held_out, config.text_field))
    teacher = load_teacher(config.model, config.tokenizer)
    home = Path(root.output_dir) / "distill" / f"{teacher.name}-{identity(config, teacher.causal)}"
    check_writable(home, "output_dir")
    check_writable(Path(root.results_dir) / "runs", "results_dir")
    with locked(home / ".lock", wait=False, busy=f"{home} is in use by another conversion; wait for it to end."):
        job = Job(teacher, texts, config, home)
        recorded = {target.text: run_of(root, job, target) for target in dense_and(config.targets)}
        found = {name: run.finished() for name, run in recorded.items()}
        whole = [record for record in found.values() if record is not None and is_whole(record, config)]
        if len(whole) == len(recorded):
            return whole
        made = job.make()
        metrics = job.judge(made)
        records = [recorded[name].save("finished", samples(job), metrics[name]) for name in recorded]
        keep(root, job, made, metrics, home)
    return records


def identity(config: DistillConfig, causal: bool) -> str:
    """What names a job's folder: all that its targets share, and the seed."""
    shared = naming(alone(config, Target("none", "none", {})), causal=causal)
    return short_hash({"seed": config.seed, "text": sorted(config.text), **shared}, 6)


def dense_and(targets: Sequence[Target]) -> list[Target]:
    """The dense model's own row before those of the targets."""
    return [Target(DENSE, DENSE, {}), *targets]


def run_of(root: DistillRoot, job: Job, target: Target) -> RecordedRun:
    """One row of the table as records tell it."""
    config, teacher = root.distill, job.teacher
    settings = naming(config, causal=teacher.causal) | {"to": target.text}
    name = f"distill-{teacher.name}-{target.tag}-s{config.seed}-{short_hash(settings, 6)}"
    block = job.denses[0].block
    return RecordedRun(
        Path(root.results_dir),
        kind="distill",
        name=name,
        seed=config.seed,
        config={"distill": settings | {"rest": config.rest}},
        content={"data_fingerprint": job.fingerprint, "teacher": teacher.fingerprint},
        facts={
            "row": {
                "model": teacher.name,
                "to": target.text,
                "blocks": len(job.denses),
                "neurons": block.neurons,
                "neurons_used": used_neurons(target, block.neurons),
                "causal": teacher.causal,
            }
        },
    )


def used_neurons(target: Target, dense: int) -> int:
    """Neurons that a token uses in a block."""
    if target.kind == DENSE:
        return dense
    return target.neurons if target.in_place else target.settings("gelu", gated=False).neurons_used


def is_whole(record: Record, config: DistillConfig) -> bool:
    """Whether a finished record has all that is asked for now."""
    return not config.times or "batch_s" in record["metrics"]


def samples(job: Job) -> dict[str, int]:
    """Counts of a record."""
    pairs = 0 if job.exam.pairs is None else len(job.exam.pairs)
    return {"train_tokens": job.recording.tokens, "held_out": len(job.exam.held_out), "pairs": pairs}


def keep(root: DistillRoot, job: Job, made: Sequence[Made], metrics: Mapping[str, Judged], home: Path) -> None:
    """Write the folder of the model that was asked for."""
    wanted = read_target(root.distill.to)
    found = next(each for each in made if each.target.text == wanted.text)
    out = Path(root.distill.out) if root.distill.out is not None else job.home(wanted) / "model"
    write_folder(found, job.teacher, metrics, out, replace=root.distill.out is None)
