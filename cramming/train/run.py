"""One pretraining run from its parts to its results. Not when a run is due (pretrain.py), nor its loop (loop.py)."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cramming.data.shards import PreparedData
from cramming.errors import Diverged, Stopped, UserError
from cramming.files import remove_leftovers, write_json
from cramming.model.language import CrammedLanguageModel
from cramming.model.saved import write_model
from cramming.parallel.environment import recorded_environment
from cramming.parallel.peers import Peers
from cramming.parallel.world import World
from cramming.provenance import code_hash
from cramming.record import Record, record_file, write_record
from cramming.train.assemble import assemble, finished_model
from cramming.train.balance import Balance
from cramming.train.checkpoint import Checkpoints
from cramming.train.compiled import warm_up
from cramming.train.cost import cost_of, told
from cramming.train.finish import card_numbers, history_curve, history_metrics, print_examples, print_summary
from cramming.train.finished import refuse_diverged
from cramming.train.history import History, read_history
from cramming.train.hooks import Bar, Checkpoint, FiniteGuard, StopSignals, Validate
from cramming.train.loop import Hook, Trainer
from cramming.train.meter import Meter
from cramming.train.oracle import oracle_losses
from cramming.train.outer import OuterSteps
from cramming.train.parts import TrainState
from cramming.train.pictures import heatmap
from cramming.train.profiling import Profile
from cramming.train.providers import Providers
from cramming.train.root import PretrainRoot
from cramming.train.split import split_initially
from cramming.train.start import origins
from cramming.train.tracking import Mirror, close_wandb, open_wandb, wandb_mirror, wandb_usage
from cramming.train.traffic import Traffic
from cramming.train.usage import UsageHook
from cramming.train.validate import Validation
from fff.regions import routed_layers


@dataclass(frozen=True)
class RunFolder:
    """Where a run writes. `record` marks a finished run."""

    path: Path

    @property
    def record(self) -> Path:
        """The run's record; it exists once the run is finished."""
        return self.path / "record.json"

    @property
    def lock(self) -> Path:
        """Held by the process that trains the run."""
        return self.path / ".lock"

    @property
    def model(self) -> Path:
        """The finished model as transformers reads it."""
        return self.path / "model"

    @property
    def history(self) -> Path:
        """metrics.jsonl."""
        return self.path / "metrics.jsonl"


class Run:
    """One run, put together; `train` runs it to the end."""

    def __init__(self, root: PretrainRoot, folder: RunFolder, world: World, data: PreparedData) -> None:
        self.root, self.folder, self.world, self.data = root, folder, world, data
        config = root.train
        self.origins = origins(root)
        identity = {"configuration": root.identity, "data": data.fingerprint, **self.origins}
        self.checkpoints = Checkpoints(folder.path / "checkpoints", identity, keep=config.keep_checkpoints)
        self.parts = assemble(root, data, world)
        self.validation = Validation(
            data, self.parts.objective, sequences=config.valid_sequences, microbatch=config.microbatch
        )
        self.parameters = sum(p.numel() for p in self.parts.model.parameters())
        self.unigram = self.validation.unigram_loss()
        self.providers = Providers()

    def train(self) -> None:
        """Train to the end of the budget, or until stopped; then save, record and say what comes next."""
        memory, state = self._resume(), self.parts.state
        if not state.step:
            split_initially(self.parts)
        if self.world.main:
            self._announce()
        if state.reached < 1:
            warm_up(self.parts)
        mirror = self._wandb() if self.world.main and not self.world.worker else None
        exit_code = 1
        try:
            hooks = self._hooks(mirror)
            for hook in hooks:
                if hook.name in memory:
                    hook.restore(memory[hook.name])
            with self.parts.loader() as batches:
                trainer = Trainer(self.parts, batches, hooks)
                trainer.train()
            exit_code = int(trainer.stop_reason is not None)
            self.checkpoints.finish(self.world)
        except Diverged as error:
            self.checkpoints.finish(self.world)
            self._record("diverged", {"error": str(error)})
            raise
        finally:
            close_wandb(mirror, exit_code)
        if trainer.stop_reason is not None:
            raise Stopped(
                f"Stopped by {trainer.stop_reason} at step {state.step} ({state.progress:.1%} of the budget); the "
                f"checkpoint is in {self.checkpoints.folder}. The same command continues from it."
            )
        oracle, model = oracle_losses(self.parts, self.validation), finished_model(self.parts)
        if self.world.main:
            self._finish(oracle, model)

    def write_model_again(self, content: Record) -> None:
        """The finished model from the last checkpoint, which has to give the weights that the record knows.

        Every process takes part.

        Raises:
            UserError: there is no checkpoint of the end, or it gives others.
        """
        self._resume()
        if self.parts.state.reached < 1:
            raise UserError(
                f"{self.folder.model} is lost or damaged, and no checkpoint of the run's end is left; move "
                f"{self.folder.path} away and start the same command to train it again."
            )
        model = finished_model(self.parts)
        if not self.world.main:
            return
        weights = self._write_model(model, content["metrics"])
        if content.get("weights_sha256", weights) != weights:
            raise UserError(
                f"{self.checkpoints.list()[-1]} gives other weights than {self.folder.record} knows; move "
                f"{self.folder.path} away and start the same command to train it again."
            )
        print(f"written    {self.folder.model}, which was lost or damaged, from the last checkpoint", flush=True)

    def _resume(self) -> dict[str, Any]:
        """Take up the newest checkpoint, if there is one; returns what the hooks remember, by their names."""
        found = self.world.launch.from_main(self._newest)
        self._refuse_unseen()
        if found is None:
            return {}
        self.parts.state = TrainState(**found["state"])
        return self.checkpoints.load(self.checkpoints.folder / found["name"], self.parts)

    def _newest(self) -> dict[str, Any] | None:
        """The main process alone: prepare the run's folder; name and state of the newest checkpoint, which is whole."""
        self.folder.path.mkdir(parents=True, exist_ok=True)
        self.checkpoints.clean()
        remove_leftovers(self.folder.path, alone=True)  # its lock is ours
        write_json(self.folder.path / "config.json", self.root.as_dict())
        if not (found := self.checkpoints.list()):
            return None
        return {"name": found[-1].name, "state": asdict(self.checkpoints.read(found[-1]))}

    def _refuse_unseen(self) -> None:
        """UserError where another machine has a folder of its own: its part of a checkpoint would never be found."""
        if self.world.agree([float(not (self.folder.path / "config.json").is_file())])[0]:
            raise UserError(
                f"{self.folder.path} is not seen by all processes; set output_dir to a folder that all machines share."
            )

    def _hooks(self, mirror: Mirror | None) -> list[Hook]:
        """What looks on, in this order: later hooks read what earlier ones found."""
        config, world = self.root.train, self.world
        sources: list[Validate | UsageHook] = [Validate(self.validation)]
        if routed_layers(self.parts.model):
            shows = [heatmap, *([wandb_usage(mirror)] if mirror else [])]
            folder, sequences = self.folder.path / "usage", config.usage_sequences
            sources.append(
                UsageHook(self.validation, sequences=sequences, steps=config.usage_steps, folder=folder, shows=shows)
            )
        outer = OuterSteps(Peers.of_launch(), self._facts()) if world.apart else None
        traffic = Traffic(outer) if world.workers > 1 and not world.sharded else None
        hooks: list[Hook] = [StopSignals(), FiniteGuard(), Balance(), self.providers]
        hooks += [*([outer] if outer else []), *([traffic] if traffic else []), *sources]
        if world.main:
            bar, meter = Bar(), Meter(self.parts.flops, world.device, world.workers)
            mirrors = [bar.show, *([wandb_mirror(mirror)] if mirror else [])]
            hooks += [bar, History(self.folder.history, sources, mirrors, meter, traffic)]
        hooks.append(Checkpoint(self.checkpoints))
        if config.profile_steps and world.main:
            profile = Profile(config.profile_steps, self.folder.path / "profile.json")
            hooks = [profile.first, *hooks, profile.last]
        return hooks

    def _facts(self) -> dict[str, Any]:
        return {"the code": code_hash(), "the data": self.data.fingerprint, **self.origins, **self.root.facts()}

    def _wandb(self) -> Mirror | None:
        root = self.root
        settings = root.as_recorded() | {"parameters": self.parameters, "data_fingerprint": self.data.fingerprint}
        step = self.parts.state.step
        rows = [row for row in read_history(self.folder.history) if row["step"] <= step] if step else []
        return open_wandb(
            root.wandb, name=root.run_name, folder=self.folder.path, settings=settings, group=root.group_name, rows=rows
        )

    def _announce(self) -> None:
        root, config, state = self.root, self.root.train, self.parts.state
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
        meter = Meter(self.parts.flops, self.world.device, self.world.workers)
        cost = cost_of(config, self.data.seq_len, self.world.workers)
        print(f"cost       {told(cost, meter.flops, meter.peak, meter.name)}")
        print(f"unigram    {self.unigram:.4f} nats (guessing by frequency on the validation tokens)", flush=True)

    def _record(self, status: str, extra: dict[str, Any], metrics: dict[str, float] | None = None) -> Record | None:
        if not self.world.main:
            return None
        root, state, rows = self.root, self.parts.state, read_history(self.folder.history)
        return write_record(
            root.records,
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
            metrics=history_metrics(rows, self.unigram) | (metrics or {}),
            processes=self.world.workers,
            provider=self.providers.names,
            extra={
                "experiment": root.experiment,
                "ffn": root.ffn.tag,
                "group": root.group,
                "resolved": root.resolved(),
                "curve": history_curve(rows),
                "seconds_not_counted": round(state.uncounted, 3),
                "environment": recorded_environment(),
                **self.origins,
                **extra,
            },
        )

    def _finish(self, oracle: dict[str, float], model: CrammedLanguageModel) -> None:
        self._refuse_lost_history()
        weights = self._write_model(model, history_metrics(read_history(self.folder.history), self.unigram))
        content = self._record("finished", {"weights_sha256": weights}, oracle)
        assert content is not None
        write_json(self.folder.record, content)
        refuse_diverged(self.root, content)
        record = record_file(self.root.records, content["name"])
        print_examples(self.parts.objective, model, self.data, self.root.data.examples)
        print_summary(content, model=self.folder.model, history=self.folder.history, record=record)

    def _write_model(self, model: CrammedLanguageModel, metrics: dict[str, float]) -> str:
        """Write the model with its card; returns the SHA-256 of its weights."""
        objective = self.parts.objective
        numbers = card_numbers(metrics, self.parts.state.tokens, self.data.fingerprint, objective.unit)
        return write_model(model, objective.exported(self.data.tokenizer()), self.folder.model, numbers)

    def _refuse_lost_history(self) -> None:
        """UserError where the history does not end with the run's last mark: a record of it would have no results."""
        rows = read_history(self.folder.history)
        if not rows or rows[-1]["step"] != self.parts.state.step or "valid/loss" not in rows[-1]:
            last = f"ends at step {rows[-1]['step']}" if rows else "is missing or empty"
            raise UserError(
                f"{self.folder.history} {last} and the run at step {self.parts.state.step}: the run's last results are "
                f"lost, and no record is written. Remove the newest folder in {self.checkpoints.folder} and start the "
                "same command to train from the checkpoint before it."
            )
