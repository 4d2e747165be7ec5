"""What used to pass in silence or end in a traceback: damaged results, other batches, numbers that are none."""

import json
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cramming.errors import Stopped, UserError
from cramming.files import sha256
from cramming.model.config import FFNConfig
from cramming.parallel.environment import check_environment, recorded_environment
from cramming.train.clock import Stopwatch
from cramming.train.config import TrainConfig
from cramming.train.hardening import HardeningConfig, Ramp, TemperatureRamp
from cramming.train.history import read_history
from cramming.train.hooks import StopSignals
from cramming.train.pretrain import check_examples, check_processes, pretrain
from cramming.train.providers import Providers
from cramming.train.root import PretrainRoot
from tests.helpers.tiny import tiny_root

NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> PretrainRoot:
    root = tiny_root(tmp_path_factory.mktemp("finished"), budget_steps=4, checkpoints=2, validations=1)
    pretrain(root)
    return root


def test_a_record_says_who_computed_and_how(finished: PretrainRoot) -> None:
    record = json.loads((finished.run_folder / "record.json").read_text())
    assert record["weights_sha256"] == sha256(finished.run_folder / "model" / "model.safetensors")
    assert record["machine"]["processes"] == 1
    assert record["provider"]
    assert record["seconds_not_counted"] == 0
    assert record["environment"] == recorded_environment()


@pytest.mark.parametrize("damage", ["lost", "cut", "flipped", "no tokenizer"])
def test_a_damaged_model_is_written_again_from_the_last_checkpoint(finished: PretrainRoot, damage: str) -> None:
    weights = finished.run_folder / "model" / "model.safetensors"
    before = weights.read_bytes()
    match damage:
        case "lost":
            weights.unlink()
        case "cut":
            weights.write_bytes(before[:-100])
        case "flipped":
            weights.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        case _:
            (weights.parent / "tokenizer.json").unlink()
    pretrain(finished)
    assert weights.read_bytes() == before
    assert (weights.parent / "tokenizer.json").exists()


def stopped(folder: Path, step: int = 2) -> PretrainRoot:
    """A run that was stopped, whose checkpoint knows of as many rows."""
    root = tiny_root(folder, budget_steps=4, checkpoints=1, validations=1)
    hook = StopSignals.on_step

    def stop(self: StopSignals, trainer, step_) -> None:
        self.received = "SIGTERM" if trainer.state.step == step else None
        hook(self, trainer, step_)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StopSignals, "on_step", stop)
        with pytest.raises(Stopped):
            pretrain(root)
    return root


def test_a_damaged_history_is_named_and_a_lost_one_begins_anew(tmp_path: Path) -> None:
    root = stopped(tmp_path)
    history = root.run_folder / "metrics.jsonl"
    good = history.read_text()
    history.write_text(good.replace('"step": 1', '"step" 1', 1))
    with pytest.raises(UserError, match=r"metrics\.jsonl is damaged at line 1"):
        pretrain(root)
    history.write_text(good.replace("train/loss", "train/lass", 1))
    with pytest.raises(UserError, match="not those that the checkpoint counted"):
        pretrain(root)
    history.unlink()
    with pytest.warns(UserWarning, match="begins anew"):
        pretrain(root)
    assert [row["step"] for row in read_history(history)] == [3, 4]


def test_a_history_removed_under_a_run_ends_in_no_finished_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tiny_root(tmp_path, budget_steps=4, checkpoints=1, validations=1)
    hook = StopSignals.on_step

    def remove(self: StopSignals, trainer, step) -> None:
        if trainer.state.step == 2:
            (root.run_folder / "metrics.jsonl").unlink()
        hook(self, trainer, step)

    monkeypatch.setattr(StopSignals, "on_step", remove)
    with pytest.raises(UserError, match=r"metrics\.jsonl was removed"):
        pretrain(root)
    assert not list(tmp_path.glob("results/runs/*.json"))


def test_other_probes_after_a_resume_begin_churn_anew(tmp_path: Path) -> None:
    root = stopped(tmp_path)
    pretrain(replace(root, train=replace(root.train, usage_sequences=1, microbatch=root.train.microbatch)))
    assert (root.run_folder / "record.json").exists()


def test_a_batch_that_processes_cannot_share_is_refused() -> None:
    ffn = FFNConfig(kind="path", trees=1, depth=3)
    root = PretrainRoot(ffn=ffn, train=TrainConfig(budget_steps=1, batch=64, microbatch=16))
    check_processes(root, 2)
    with pytest.raises(UserError, match=r"train\.batch is 64.*3 processes.*train\.batch=48"):
        check_processes(root, 3)
    with pytest.raises(UserError, match=r"2 processes.*set train\.microbatch=8, or train\.batch=32"):
        check_processes(replace(root, train=TrainConfig(budget_steps=1, batch=16, microbatch=16)), 2)


FLOATS = ("lr", "eps", "beta1", "beta2", "weight_decay", "batch_ramp", "mask_rate", "budget_hours")


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("key", FLOATS)
def test_numbers_that_are_none_are_refused(key: str, value: float) -> None:
    budget = {} if key == "budget_hours" else {"budget_steps": 1}
    with pytest.raises(UserError, match=rf"train\.{key} is"):
        TrainConfig(**budget, **{key: value})


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_so_are_those_of_hardening(value: float) -> None:
    for settings in (
        {"temperature": TemperatureRamp(start=value)},
        {"temperature": TemperatureRamp(end=value)},
        {"entropy_weight": Ramp(end=value)},
        {"balance_weight": Ramp(start=value)},
        {"region_leak": value},
        {"harden_at": value},
    ):
        with pytest.raises(UserError, match=r"hardening\."):
            HardeningConfig(**settings)


def test_an_infinite_clip_is_no_clipping(tmp_path: Path) -> None:
    assert TrainConfig(budget_steps=1, clip=INF).clip is None
    with pytest.raises(UserError, match=r"train\.clip is nan"):
        TrainConfig(budget_steps=1, clip=NAN)
    root = tiny_root(tmp_path, budget_steps=2, checkpoints=1, validations=1, clip=INF)
    pretrain(root)
    assert json.loads((root.run_folder / "record.json").read_text())["config"]["train"]["clip"] is None


def test_a_sentence_without_a_mask_is_refused_before_training(tmp_path: Path) -> None:
    check_examples(["The <mask> sees."])
    root = tiny_root(tmp_path)
    with pytest.raises(UserError, match=r"data\.examples\[0\] is 'No gap\.'"):
        pretrain(replace(root, data=replace(root.data, examples=["No gap."])))
    assert not (tmp_path / "outputs" / "data").exists()


def test_a_sentence_longer_than_the_model_reads_is_refused_before_training(tmp_path: Path) -> None:
    root = tiny_root(tmp_path)
    long = " ".join(["the"] * 40 + ["<mask>"])
    with pytest.raises(UserError, match=r"data\.examples\[1\] has \d+ tokens, and data\.seq_len is 32"):
        pretrain(replace(root, data=replace(root.data, examples=["The <mask> sees.", long])))
    assert not list(tmp_path.glob("outputs/runs/*/metrics.jsonl"))


def test_time_in_which_the_process_was_halted_does_not_count() -> None:
    now, worked = 0.0, 0.0
    watch = Stopwatch(lambda: now, lambda: worked)
    now, worked = 2.0, 1.0
    assert watch.lap() == 2.0
    now, worked = 902.0, 2.5
    watch.continued()
    assert watch.lap() == 1.5
    assert watch.uncounted == 898.5
    now, worked = 903.0, 3.0
    assert watch.lap() == 1.0


def test_a_hangup_stops_like_the_other_signals() -> None:
    assert signal.SIGHUP in StopSignals.SIGNALS


def test_a_cluster_may_say_it_twice_and_a_person_presses_ctrl_c_again() -> None:
    hook = StopSignals()
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGHUP):  # SLURM tells a job's step and its processes
        hook._receive(number, None)
    assert hook.received == "SIGTERM"
    with pytest.raises(KeyboardInterrupt):
        hook._receive(signal.SIGINT, None)


@pytest.mark.parametrize(
    ("name", "value", "refused"),
    [
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", True),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1", False),
        ("ACCELERATE_DYNAMO_BACKEND", "inductor", True),
        ("ACCELERATE_DYNAMO_BACKEND", "no", False),
        ("ACCELERATE_USE_FSDP", "true", True),
        ("ACCELERATE_USE_DEEPSPEED", "1", True),
        ("ACCELERATE_MIXED_PRECISION", "bf16", True),
        ("ACCELERATE_MIXED_PRECISION", "no", False),
    ],
)
def test_the_environment_changes_no_training_in_silence(
    name: str, value: str, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    if not refused:
        return check_environment("train.precision", "no")
    with pytest.raises(UserError, match=f"{name} is '{value}' in the environment; unset it"):
        check_environment("train.precision", "no")


def test_a_run_says_when_another_provider_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    providers = Providers()
    providers.restore({"names": ["cpu"]})
    module = sys.modules[Providers.__module__]
    monkeypatch.setattr(module, "computed_by", lambda model: frozenset({"gather"}))
    trainer = type("T", (), {"parts": type("P", (), {"model": None}), "stop_reason": None})
    with pytest.warns(UserWarning, match="began with provider cpu and goes on with gather"):
        providers.on_step(trainer, None)  # type: ignore[arg-type]
    assert providers.names == "cpu + gather"


def test_a_missing_compiler_shows_before_the_data_are_made(tmp_path: Path) -> None:
    from torch._inductor import config

    wanted = pytest.raises(UserError, match=r"train\.compile is true, and .* no C\+\+ compiler")
    with config.patch({"cpp.cxx": ("no-such-compiler",)}), wanted:  # pytest's own patch would not put it back
        pretrain(tiny_root(tmp_path, compile=True))
    assert not list((tmp_path / "outputs").glob("data/*"))
