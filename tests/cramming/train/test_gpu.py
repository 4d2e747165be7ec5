"""What the loop does for a GPU, as far as a CPU can show it: waits, compiling, profile, FLOPs, orders without Hydra."""

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters
from torch.utils.flop_counter import FlopCounterMode

from cramming.data.prepare import prepare
from cramming.errors import UserError
from cramming.files import read_json
from cramming.machine import peak_flops
from cramming.model import CrammedConfig, CrammedForMaskedLM
from cramming.model.flops import training_flops
from cramming.train import loop
from cramming.train import run as run_module
from cramming.train.compiled import clear_gradients
from cramming.train.config import TrainConfig, WandbConfig
from cramming.train.finish import device_metrics
from cramming.train.history import read_history
from cramming.train.meter import Meter
from cramming.train.order import read_order, write_order
from cramming.train.pretrain import pretrain
from tests.helpers.tiny import tiny_root

ROOT = Path(__file__).resolve().parents[3]
TIMED = ("train/tokens_per_s", "budget/hours", "fff/usage_time")
WITHOUT = "import sys; sys.modules.update(dict.fromkeys(('hydra', 'omegaconf', 'datasets', 'evaluate', 'wandb')))"


def rows_of(folder: Path, **train) -> list[dict]:
    root = tiny_root(folder, **train)
    pretrain(root)
    rows = read_history(root.run_folder / "metrics.jsonl")
    return [{key: value for key, value in row.items() if key not in TIMED} for row in rows]


def test_waiting_for_the_device_counts_as_the_steps_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[int] = []

    def wait(trainer: loop.Trainer) -> bool:
        waited.append(trainer.state.step)
        time.sleep(0.05)
        return True

    monkeypatch.setattr(loop.Trainer, "_wait", wait)
    root = tiny_root(tmp_path, log_steps=5, checkpoints=1, validations=1)
    pretrain(root)
    assert waited == [5, 10, 12]
    rows = read_history(root.run_folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == waited
    assert rows[0]["budget/hours"] * 3600 > 0.05
    assert rows[0]["train/tokens_per_s"] < rows[0]["budget/tokens"] / 0.05


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_compiled_run_is_the_plain_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    plain = rows_of(tmp_path / "plain", budget_steps=4, validations=1)
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, mode, **how: compile_(model, backend="eager", **how))
    assert rows_of(tmp_path / "compiled", budget_steps=4, validations=1, compile=True, compile_mode=mode) == plain


def test_nothing_compiles_after_the_warm_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_, warm_up, graphs = torch.compile, run_module.warm_up, []
    whole = {"backend": "eager", "fullgraph": True}
    monkeypatch.setattr(torch, "compile", lambda model, mode, **how: compile_(model, **whole, **how))
    count = lambda: graphs.append(counters["stats"]["unique_graphs"])  # noqa: E731
    monkeypatch.setattr(run_module, "warm_up", lambda *a, **how: (count(), warm_up(*a, **how), count()))
    sizes = {"batch": 8, "microbatch": 4, "valid_sequences": 8}
    pretrain(tiny_root(tmp_path, budget_steps=6, validations=3, usage_steps=2, compile=True, **sizes))
    count()
    assert graphs[1] - graphs[0] == 2, "training and validation"
    assert graphs[2] == graphs[1]


def test_graphs_sum_gradients_in_memory_of_their_own() -> None:
    config = TrainConfig(budget_steps=1, compile=True, compile_mode="reduce-overhead")
    model = torch.nn.Linear(2, 2)
    optimiser = torch.optim.AdamW(model.parameters())
    clear_gradients(model, optimiser, config)
    kept = model.weight.grad
    model(torch.ones(1, 2)).sum().backward()
    clear_gradients(model, optimiser, config)
    assert model.weight.grad is kept
    assert not kept.any()
    clear_gradients(model, optimiser, replace(config, compile=False))
    assert model.weight.grad is None


def test_a_profile_counts_what_the_host_waits_for(tmp_path: Path) -> None:
    root = tiny_root(tmp_path, log_steps=4, profile_steps=2, checkpoints=1, validations=1)
    pretrain(root)
    found = read_json(root.run_folder / "profile.json")
    assert found["steps"] == 2
    if torch.cuda.is_available():
        assert not found["waits"]
    else:  # the finite guard reads each loss
        assert found["waits"]["aten::item"] >= 2
    assert found["uses"]["fused AdamW"]
    assert found["uses"]["flash attention"] or torch.cuda.is_available()  # which there takes half types alone
    assert any("Optimizer.step" in row["name"] for row in found["host"])
    assert root.run_name == tiny_root(tmp_path, validations=1).run_name
    with pytest.raises(UserError, match=r"train\.profile_steps is 9"):
        TrainConfig(budget_steps=1, profile_steps=9)


def test_without_matplotlib_there_are_figures_but_no_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    root = tiny_root(tmp_path, budget_steps=2, checkpoints=1, validations=1)
    with pytest.warns(UserWarning, match="matplotlib is not installed"):
        pretrain(root)
    assert "fff/usage_entropy" in read_history(root.run_folder / "metrics.jsonl")[-1]
    assert not (root.run_folder / "usage").exists()


def small(ffn: dict, **more) -> CrammedConfig:
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "max_position_embeddings": 16}
    return CrammedConfig(vocab_size=96, ffn=ffn, **sizes, **more)


@pytest.mark.parametrize("activation", ["gelu", "gated_gelu"])
def test_flops_are_those_that_are_computed(activation: str) -> None:
    config = small({"kind": "dense", "width": 48, "activation": activation}, attn_implementation="eager")
    model = CrammedForMaskedLM(config)
    ids = torch.randint(7, 96, (2, 16))
    places = torch.arange(4).expand(2, 4)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, masked_positions=places, labels=ids.gather(1, places)).loss.backward()
    flops = training_flops(config, 16, 4)
    assert counter.get_total_flops() == flops.path * ids.numel() == flops.dense * ids.numel()


def test_a_path_asks_for_less_than_it_trains() -> None:
    none = training_flops(small({"kind": "none"}), 16, 4)
    path = training_flops(small({"kind": "path", "trees": 2, "depth": 5}), 16, 4)
    leaf = training_flops(small({"kind": "leaf", "depth": 3, "leaf_width": 4}), 16, 4)
    neuron = 3 * 3 * 4 * 32  # training, layers, a row in and a row out
    assert path.path - none.path == neuron * 2 * 6
    assert path.dense - none.path == neuron * 2 * 63
    assert leaf.path - none.path == neuron * 4 + 3 * 3 * 2 * 32 * 3
    assert path.utilisation(100.0, 1e6)["mfu"] == pytest.approx(path.path * 100 / 1e6)


def test_peaks_are_known_by_name_and_rows_say_nothing_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    names = {"NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H200": 989e12, "NVIDIA A100-SXM4-80GB": 312e12, "Other": None}
    for name, peak in names.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert peak_flops(gpu) == peak
    flops = training_flops(small({"kind": "none"}), 16, 4)
    assert peak_flops(cpu) is None
    assert Meter(flops, cpu)(1000.0) == {}
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 5_000_000_000)
    row = Meter(flops, gpu, processes=2)(1000.0)
    assert row["train/mfu"] == pytest.approx(flops.path * 1000 / (2 * 989e12))
    assert device_metrics([row])["peak_memory_gb"] == 5.0


def test_an_order_trains_where_hydra_and_the_sources_libraries_are_missing(tmp_path: Path) -> None:
    root = tiny_root(tmp_path, budget_steps=2, checkpoints=1, validations=1)
    data = prepare(root.data, Path(root.output_dir))
    order = write_order(root, data.folder, tmp_path / "orders")
    assert read_order(order) == (root, data.folder)
    (tmp_path / "text.txt").unlink()
    program = f"{WITHOUT}; import runpy; runpy.run_path('scripts/pretrain_plain.py', run_name='__main__')"
    command = [sys.executable, "-c", program, str(order)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (root.run_folder / "model" / "model.safetensors").exists()
    record = read_json(tmp_path / "results" / "runs" / f"{root.run_name}.json")
    assert record["data_fingerprint"] == data.fingerprint
    order.write_text('{"config": {"unknown": 1}, "data": ""}')
    with pytest.raises(UserError, match="does not fit this code"):
        read_order(order)
    assert root.wandb == WandbConfig(mode="off")
