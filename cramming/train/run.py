"""The parts of one pretraining run, put together and run to the end. Not when a run is due (pretrain.py)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn

from cramming.data.loader import Masker, MicrobatchLoader, SequenceOrder
from cramming.data.masking import masked_count
from cramming.data.shards import PreparedData
from cramming.errors import Diverged, Stopped
from cramming.files import write_json
from cramming.model.flops import training_flops
from cramming.model.saved import write_model
from cramming.record import Record, record_file, write_record
from cramming.train.build import build_model
from cramming.train.checkpoint import Checkpoints, TrainState
from cramming.train.compiled import compiled, warm_up
from cramming.train.finish import history_curve, history_metrics, print_examples, print_summary
from cramming.train.hardening import Hardening
from cramming.train.hooks import (
    Bar,
    Checkpoint,
    FiniteGuard,
    History,
    Hook,
    StopSignals,
    Validate,
    read_history,
)
from cramming.train.loop import Trainer
from cramming.train.meter import Meter
from cramming.train.optim import build_optimiser
from cramming.train.profiling import Profile
from cramming.train.root import PretrainRoot
from cramming.train.tracking import close_wandb, open_wandb
from cramming.train.usage import UsageHook, heatmap, wandb_usage
from cramming.train.validate import Validation
from fff.regions import routed_layers

MASK_TOKEN = "<mask>"


@dataclass(frozen=True)
class RunFolder:
    """Where a run writes. `record` marks a finished run."""

    path: Path

    @property
    def record(self) -> Path:
        """The run's record; it exists once the run is finished."""
        return self.path / "record.json"

    @property
    def model(self) -> Path:
        """The finished model as transformers reads it."""
        return self.path / "model"

    @property
    def history(self) -> Path:
        """metrics.jsonl."""
        return self.path / "metrics.jsonl"


class Run:
    """The parts of one run, put together; `train` runs them to the end."""

    def __init__(self, root: PretrainRoot, folder: RunFolder, accelerator: Accelerator, data: PreparedData) -> None:
        self.root, self.folder, self.accelerator, self.data = root, folder, accelerator, data
        self.mask_id = int(data.tokenizer().get_vocab()[MASK_TOKEN])
        config = root.train
        identity = {"configuration": root.identity, "data": data.fingerprint}
        self.checkpoints = Checkpoints(folder.path / "checkpoints", identity, keep=config.keep_checkpoints)
        self.validation = Validation(
            data,
            sequences=config.valid_sequences,
            microbatch=config.microbatch,
            rate=config.mask_rate,
            mask_id=self.mask_id,
        )
        self.model = build_model(root, data)
        if accelerator.num_processes > 1:
            # Equal weights need equal generators; a region leak in all processes must not be one and the same.
            set_seed(root.seed, device_specific=True)
        self.parameters = sum(p.numel() for p in self.model.parameters())
        self.memory: dict[str, Any] = {}  # of the hooks of the run that this one continues
        self.hardening = Hardening(root.hardening, self.model)
        self.optimiser = build_optimiser(self.model, config, accelerator.device)
        self.unigram = self.validation.unigram_loss()

    def train(self) -> None:
        """Train to the end of the budget, or until stopped; then export, record and say what comes next."""
        accelerator, config = self.accelerator, self.root.train
        prepared, optimiser = accelerator.prepare(self.model, self.optimiser)
        state = self._resume(optimiser)
        model = compiled(prepared, config)
        if state.progress < 1:
            self.hardening.apply(state.progress)
            self._warm_up(model, optimiser)
        loader = self._loader(state)
        wandb_run = None
        if accelerator.is_main_process:
            self._announce(state)
            wandb_run = self._wandb()
        hooks = self._hooks(wandb_run)
        trainer = Trainer(config, accelerator, model, self.model, optimiser, loader, state, hooks, self.hardening)
        try:
            trainer.train()
        except Diverged as error:
            self._record(state, "diverged", {"error": str(error)})
            raise
        finally:
            loader.close()
            close_wandb(wandb_run)
        if trainer.stop_reason is not None:
            raise Stopped(
                f"Stopped by {trainer.stop_reason} at step {state.step} ({state.progress:.1%} of the budget); the "
                f"checkpoint is in {self.checkpoints.folder}. The same command continues from it."
            )
        if accelerator.is_main_process:
            self._finish(state)

    def _hooks(self, wandb_run: Any) -> list[Hook]:
        """What looks on, in this order: later hooks read what earlier ones found."""
        config, validate, usage = self.root.train, Validate(self.validation), self._usage(wandb_run)
        sources: list[Validate | UsageHook] = [validate, *usage.values()]
        hooks: list[Hook] = [FiniteGuard(), *sources]
        if self.accelerator.is_main_process:
            bar = Bar()
            mirrors = [bar.show, *([wandb_mirror(wandb_run)] if wandb_run else [])]
            hooks += [bar, History(self.folder.history, sources, mirrors, self._meter())]
        hooks += [StopSignals(), Checkpoint(self.checkpoints, usage)]
        if config.profile_steps and self.accelerator.is_main_process:
            profile = Profile(config.profile_steps, self.folder.path / "profile.json")
            hooks = [profile.first, *hooks, profile.last]
        return hooks

    def _meter(self) -> Meter:
        accelerator, data = self.accelerator, self.data
        predicted = masked_count(self.root.train.mask_rate, data.seq_len)
        flops = training_flops(self.model.config, data.seq_len, predicted)
        return Meter(flops, accelerator.device, accelerator.num_processes)

    def _warm_up(self, model: nn.Module, optimiser: Any) -> None:
        """Compile before the clock starts; without train.compile this does nothing."""
        if self.root.train.compile:
            numbers = np.arange(self.root.train.microbatch)
            batch = self._masker()(self.data.train.take(numbers % len(self.data.train)), numbers)
            warm_up(model, self.model, optimiser, self.accelerator, self.root.train, batch)

    def _masker(self) -> Masker:
        return Masker(self.root.seed, self.root.train.mask_rate, self.data.vocab_size, self.mask_id)

    def _usage(self, wandb_run: Any) -> dict[str, UsageHook]:
        """The hook that watches the leaves, if there are any."""
        if not routed_layers(self.model):
            return {}
        hook = UsageHook(
            self.validation,
            sequences=self.root.train.usage_sequences,
            steps=self.root.train.usage_steps,
            folder=self.folder.path / "usage",
            shows=[heatmap, *([wandb_usage(wandb_run)] if wandb_run else [])],
        )
        if "usage" in self.memory:
            hook.restore(self.memory["usage"])
        return {"usage": hook}

    def _resume(self, optimiser: Any) -> TrainState:
        if self.accelerator.is_main_process:
            self.folder.path.mkdir(parents=True, exist_ok=True)
            self.checkpoints.clean()
            write_json(self.folder.path / "config.json", self.root.as_dict())
        self.accelerator.wait_for_everyone()
        found = self.checkpoints.list()
        if not found:
            return TrainState()
        state = self.checkpoints.read(found[-1])
        scaler, self.memory = self.checkpoints.load(found[-1], self.model, optimiser, self.accelerator.process_index)
        if scaler is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(scaler)
        return state

    def _loader(self, state: TrainState) -> MicrobatchLoader:
        config, accelerator = self.root.train, self.accelerator
        shuffled = self.root.data.order == "random"
        return MicrobatchLoader(
            self.data.train,
            SequenceOrder(len(self.data.train), self.root.seed, shuffled=shuffled),
            self._masker(),
            start=state.sequences,
            microbatch=config.microbatch,
            process=accelerator.process_index,
            processes=accelerator.num_processes,
            pin=accelerator.device.type == "cuda",
        )

    def _wandb(self) -> Any:
        root = self.root
        settings = root.as_dict() | {"parameters": self.parameters, "data_fingerprint": self.data.fingerprint}
        return open_wandb(
            root.wandb, name=root.run_name, folder=self.folder.path, settings=settings, group=root.group_name
        )

    def _announce(self, state: TrainState) -> None:
        root, config = self.root, self.root.train
        budget = next(
            f"{getattr(config, k):,} {k[7:]}"
            for k in ("budget_tokens", "budget_steps", "budget_hours")
            if getattr(config, k)
        )
        print(f"run        {root.run_name}" + (f" (continues at step {state.step})" if state.step else ""))
        print(f"data       {self.data.folder} ({len(self.data.train):,} sequences of {self.data.seq_len} tokens)")
        size = f"{root.model.layers} layers x {root.model.hidden_size}"
        print(f"model      {size}, ffn {root.ffn.tag}, {self.parameters:,} parameters")
        print(f"budget     {budget}, batch {config.batch} x {self.data.seq_len}, lr {config.lr:g}, seed {root.seed}")
        print(f"unigram    {self.unigram:.4f} nats (guessing by frequency on the validation tokens)", flush=True)

    def _record(self, state: TrainState, status: str, extra: dict[str, Any]) -> Record | None:
        if not self.accelerator.is_main_process:
            return None
        root, rows = self.root, read_history(self.folder.history)
        return write_record(
            Path(root.results_dir),
            kind="pretrain",
            name=root.run_name,
            status=status,
            config=root.as_recorded(),
            seed=root.seed,
            data_fingerprint=self.data.fingerprint,
            samples={
                "train_tokens": state.tokens,
                "train_steps": state.step,
                "valid_sequences": len(self.validation),
                "parameters": self.parameters,
            },
            metrics=history_metrics(rows, self.unigram),
            extra={
                "experiment": root.experiment,
                "ffn": root.ffn.tag,
                "group": root.group,
                "resolved": root.resolved(),
                "curve": history_curve(rows),
                **extra,
            },
        )

    def _finish(self, state: TrainState) -> None:
        write_model(self.model, self.data.tokenizer(), self.folder.model)
        content = self._record(state, "finished", {})
        assert content is not None
        write_json(self.folder.record, content)
        record = record_file(Path(self.root.results_dir), content["name"])
        print_examples(self.model, self.data, self.root.data.examples)
        print_summary(content, model=self.folder.model, history=self.folder.history, record=record)


def wandb_mirror(run: Any) -> Any:
    """A mirror for History that logs rows to a W&B run."""
    return lambda step, row: run.log({key: value for key, value in row.items() if key != "step"}, step=step)
