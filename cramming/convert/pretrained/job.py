"""A conversion from beginning to end: checked, recorded, every target made and judged. Resumable; no command.

A job's folder holds the recording and, by target, what is finished: blocks, the checkpoint of training end to end, the
model. Whatever is there is taken, so that the same command goes on where it was stopped.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cramming.convert.pretrained.compute import device_of
from cramming.convert.pretrained.config import DistillConfig
from cramming.convert.pretrained.dense import Dense, prove
from cramming.convert.pretrained.faster import in_use
from cramming.convert.pretrained.judge import Exam, Judged, judge, sts_pairs, times
from cramming.convert.pretrained.recording import Recording, bytes_needed, recorded, refuse_large
from cramming.convert.pretrained.starts import Sample, begin, sample_of
from cramming.convert.pretrained.student import Piece, refuse, student_of
from cramming.convert.pretrained.target import Target
from cramming.convert.pretrained.teacher import Teacher, check_length
from cramming.convert.pretrained.text import padded, pieces, refuse_short, refuse_unread, tokenised
from cramming.convert.pretrained.training import Behind, block_error, runs, train_block
from cramming.convert.pretrained.whole import Whole
from cramming.convert.pretrained.words import refuse_other_head
from cramming.errors import UserError
from cramming.files import short_hash
from cramming.machine import this_device

PROVED_ON = 8  # pieces of text that blocks are replayed on
DENSE = "dense"


@dataclass(frozen=True)
class Texts:
    """Documents to learn from, and those held out."""

    train: Sequence[str]
    held_out: Sequence[str]


@dataclass(frozen=True)
class Made:
    """A converted model with what is known of it. error: after the start, the blocks' training, and the whole's."""

    target: Target
    model: Any
    minutes: float
    errors: dict[str, float]


class Job:
    """One model, its text and its targets. Everything that a user can mend is refused here, before long work.

    Raises:
        UserError: see the checks of the other files of this room.
    """

    def __init__(self, teacher: Teacher, texts: Texts, config: DistillConfig, folder: Path) -> None:
        self.teacher, self.config = teacher.on(this_device()), config
        check_length(teacher, config.seq_len)
        refuse_unread(teacher.tokenizer, pieces(texts.train, config.seed, whole=teacher.causal))
        self.sequences = tokenised(
            teacher.tokenizer,
            pieces(texts.train, config.seed, whole=teacher.causal),
            config.seq_len,
            config.tokens,
        )
        refuse_short(self.sequences, config.tokens, "distill.tokens")
        wanted = config.neighbours // 10 if teacher.causal else config.neighbours
        held_out = pieces(texts.held_out, 0, whole=teacher.causal)
        ids = [
            tokenised(teacher.tokenizer, [text], config.seq_len, 1)
            for _, text in zip(range(wanted), held_out, strict=False)
        ]
        if len(ids) < wanted:
            raise UserError(
                f"The held-out text is too short: distill.neighbours asks for {wanted} pieces, and it has {len(ids)}."
            )
        self.exam = Exam([row for rows in ids for row in rows], sts_pairs(teacher, config.glue_dir))
        sample = padded(self.sequences[:PROVED_ON], teacher.pad).to(device_of(self.teacher.model)).inputs
        self.denses: list[Dense] = prove(self.teacher.model, sample)
        for target in config.targets:
            refuse(self.denses, target, keep_gates=config.keep_gates)
        if self.words:
            refuse_other_head(self.teacher.model, sample)
        tokens = sum(map(len, self.sequences))
        hidden = self.teacher.model.get_output_embeddings().weight.shape[1] if self.words else 0
        refuse_large(bytes_needed(self.denses, tokens, hidden), tokens, config.record_gb)
        self.fingerprint = short_hash([self.sequences, self.exam.held_out], 16)
        self.folder = folder

    @property
    def words(self) -> bool:
        """Whether next words are compared."""
        return self.teacher.causal and self.config.whole_tokens > 0 and self.config.word_weight > 0

    @cached_property
    def recording(self) -> Recording:
        """Opened, or made now."""
        config = self.config
        made_of = {
            "teacher": self.teacher.fingerprint,
            "text": short_hash(self.sequences, 16),
            "batch": config.whole_batch,
            "blocks": [dense.block.path for dense in self.denses],
        } | ({"words": True} if self.words else {})
        folder = self.folder / f"recording-{short_hash(made_of)}"
        return recorded(
            folder, self.teacher, self.denses, self.sequences, made_of=made_of, batch=config.whole_batch,
            compute=config.compute, words=self.words,
        )  # fmt: skip

    def make(self) -> list[Made]:
        """Every target, from where it was left."""
        started = {
            target.text: student_of(self.teacher.model, self.denses, target, self.config.seed)
            for target in self.config.targets
        }
        facts: dict[str, list[dict[str, float]]] = {text: [] for text in started}
        for number, dense in enumerate(self.denses):
            sample: Sample | None = None
            for target in self.config.targets:
                piece, path = started[target.text][1][number], self.home(target) / f"block{number:03d}.pt"
                if not path.exists():
                    sample = sample or self._sample(number, dense)
                    self._block(piece, dense, number, sample, path)
                found = torch.load(path, map_location="cpu", weights_only=True)
                piece.load_state_dict(found["state"])
                facts[target.text].append({key: found[key] for key in ("begun", "trained", "seconds")})
        return [self._whole(target, started[target.text][0], facts[target.text]) for target in self.config.targets]

    def home(self, target: Target) -> Path:
        """A target's folder."""
        path = self.folder / target.tag
        path.mkdir(parents=True, exist_ok=True)
        return path

    def _sample(self, number: int, dense: Dense) -> Sample:
        recording, config = self.recording, self.config
        rows = next(runs(recording.fitted, min(config.fit_tokens, recording.fitted), config.seed + number))
        rows = rows.sort().values
        return sample_of(dense, *recording.taken(number, dense, rows))

    def _block(self, piece: Piece, dense: Dense, number: int, sample: Sample, path: Path) -> None:
        began = time.perf_counter()
        behind, config = Behind(self.teacher.model, dense), self.config
        if config.start == "leaves" or piece.target.kind == "none":
            begin(piece, dense, sample, config.ridge, config.seed)
        begun = block_error(piece, dense, behind, self.recording, number)
        train_block(piece, dense, behind, self.recording, number, config)
        trained = block_error(piece, dense, behind, self.recording, number)
        seconds = time.perf_counter() - began
        save(path, {"state": piece.state_dict(), "begun": begun, "trained": trained, "seconds": seconds})
        print(
            f"{piece.target.text} {dense.block.path}: error {begun:.4f} -> {trained:.4f}, {seconds:.0f} s", flush=True
        )

    def _whole(self, target: Target, student: Any, blocks: list[dict[str, float]]) -> Made:
        done = self.home(target) / "whole.pt"
        whole = Whole(
            student, self.teacher.model, self.denses, self.recording, self.config,
            done.with_name("checkpoint.pt"), self.teacher.causal, self.words,
        )  # fmt: skip
        if not done.exists():
            error = whole.run()
            save(done, {"state": student.state_dict(), "error": error, "seconds": whole.seconds})
        found = torch.load(done, map_location="cpu", weights_only=True)
        student.load_state_dict(found["state"])
        whole.checkpoint.unlink(missing_ok=True)
        errors = {key: sum(each[key] for each in blocks) / len(blocks) for key in ("begun", "trained")}
        seconds = self.recording.seconds + sum(each["seconds"] for each in blocks) + found["seconds"]
        model = student.eval().requires_grad_(False)
        return Made(target, model, seconds / 60, errors | {"whole": found["error"]})

    def judge(self, made: Sequence[Made]) -> dict[str, Judged]:
        """Metrics by target's text, and of the dense model by `dense`; with "_in_use" those of what is timed."""
        exam, teacher, rest = self.exam, self.teacher, self.config.rest
        whole, rows = judge(teacher.model, teacher, exam, None)
        models: dict[str, Any] = {DENSE: teacher.model} | {each.target.text: each.model for each in made}
        used = {name: in_use(model, rest) for name, model in models.items()}
        metrics: dict[str, Judged] = {}
        for name, model in models.items():
            own = whole if name == DENSE else judge(model, teacher, exam, rows)[0]
            metrics[name] = own | {f"{key}_in_use": value for key, value in self._used(used[name], rows).items()}
        for each in made:
            metrics[each.target.text] |= {f"error_{key}": value for key, value in each.errors.items()}
            metrics[each.target.text]["minutes"] = each.minutes
        if self.config.times:
            self._add_times(metrics, {**used, "float32": in_use(teacher.model, "float32")})
        return metrics

    def _used(self, model: Any, rows: Tensor | None) -> Judged:
        return judge(model, self.teacher, self.exam, rows)[0]

    def _add_times(self, metrics: dict[str, Judged], models: dict[str, Any]) -> None:
        seconds = times(models, self.exam.held_out, self.teacher.pad)
        for name, own in metrics.items():
            for shape in ("batch", "single"):
                mine = seconds[name][f"{shape}_s"]
                own[f"{shape}_s"] = mine
                own[f"{shape}_against_float32"] = seconds["float32"][f"{shape}_s"] / mine
                own[f"{shape}_against_dense"] = seconds[DENSE][f"{shape}_s"] / mine


def save(path: Path, value: dict[str, Any]) -> None:
    """A file of tensors and numbers, complete or absent."""
    beside = path.with_suffix(".tmp")
    torch.save(value, beside)
    beside.replace(path)


def alone(config: DistillConfig, target: Target) -> DistillConfig:
    """The settings of one of a job's targets, as they name its record."""
    return replace(config, to=target.text)
