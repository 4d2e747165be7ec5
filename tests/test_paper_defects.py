"""What is wrong in the predecessors' public code, written anew after its formulas: results/paper_defects.md, shown."""

import mmap
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.nn.functional import gelu

from cramming.data.tokenizer import SPECIAL_TOKENS
from cramming.glue.schedule import lr_factor, total_steps, warmup_steps
from cramming.model import CrammedConfig, CrammedForMaskedLM
from cramming.train.budget import lr_factor as pretraining_factor
from cramming.train.budget import progress
from cramming.train.config import TrainConfig
from fff import LeafFFF, PathFFF
from fff.reference import leaf_fff
from fff.topology import nodes_in_tree, path_length

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "results/paper_defects.md"
WEIGHTS = ("w_node", "b_node", "w_in", "b_in", "w_out", "b_out")  # of LeafFFF
GLUE_TRAIN = {"cola": 8551, "mnli": 392702, "mrpc": 3668, "rte": 2490, "stsb": 5749}


def linear(module: nn.Linear, bound: float) -> nn.Linear:
    """Its weight and bias as the published layer asks for them."""
    for parameter in module.parameters():
        nn.init.uniform_(parameter, -bound, bound)
    return module


def redraw(module: nn.Module) -> None:
    """What the published model does to each of its modules after they were made."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def test_the_layers_initialisation_never_takes_effect() -> None:
    torch.manual_seed(0)
    width, depth = 768, 11
    asked = width**-0.5, path_length(depth) ** -0.5
    into, out = nn.Linear(width, nodes_in_tree(depth)), nn.Linear(nodes_in_tree(depth), width, bias=False)
    layer = nn.ModuleList([linear(into, asked[0]), linear(out, asked[1])]).requires_grad_(False)
    assert out.weight.std() == pytest.approx(0.167, abs=1e-3)
    assert into.bias.std() > 0.02
    layer.apply(redraw)
    # The way in keeps its scale by chance, 1 / sqrt(3 * 768); the way out is eight times smaller, the biases are gone.
    assert into.weight.std() == pytest.approx(3**-0.5 * asked[0], rel=0.05)
    assert out.weight.std() == pytest.approx(3**-0.5 * asked[1] / 8.33, rel=0.01)
    assert not into.bias.any()


def test_our_model_starts_as_theirs_was_trained_and_our_layer_as_theirs_asks() -> None:
    torch.manual_seed(0)
    ffn = {"kind": "path", "trees": 1, "depth": 7}
    config = CrammedConfig(vocab_size=50, hidden_size=64, num_hidden_layers=1, num_attention_heads=1, ffn=ffn)
    trained, asked = CrammedForMaskedLM(config).requires_grad_(False).model.blocks[0].ffn, PathFFF(64, 64, 7)
    asked.requires_grad_(False)
    assert trained.w_out.std() == pytest.approx(0.02, rel=0.05)
    assert not trained.b_in.any()
    assert asked.w_out.std() == pytest.approx((3 * 8) ** -0.5, rel=0.05)
    assert asked.b_in.any()


def test_one_tasks_warm_up_serves_all_tasks() -> None:
    steps = {name: total_steps(size, 16, 5) for name, size in GLUE_TRAIN.items()}
    leaked = dict(zip(steps, warmup_steps(steps, 0.1, "legacy"), strict=True))
    assert set(leaked.values()) == {267}
    assert leaked["rte"] / steps["rte"] == pytest.approx(0.34, abs=0.005)
    del steps["cola"]
    leaked = dict(zip(steps, warmup_steps(steps, 0.1, "legacy"), strict=True))
    own = dict(zip(steps, warmup_steps(steps, 0.1, "per_task"), strict=True))
    for task in ("rte", "mrpc", "stsb"):
        peaks = [max(lr_factor(step, steps[task], warm[task]) for step in range(steps[task])) for warm in (leaked, own)]
        assert peaks[0] < 0.15
        assert peaks[1] == 1


def level_one_as_published(x: Tensor, w_in: Tensor, w_out: Tensor, y: Tensor) -> Tensor:
    """A node's scaled row is added to the output, but the row is taken from the output itself: w_out is not read."""
    for token, sums in zip(x, y, strict=True):
        node = 0
        for _ in range(path_length(11)):
            score = w_in[node] @ token
            sums += gelu(score) * sums
            node = 2 * node + (2 if score > 0 else 1)
    return y


def test_the_first_benchmark_never_reads_the_output_weights() -> None:
    torch.manual_seed(0)
    layer, other = (PathFFF(8, 8, 11, bias=False).requires_grad_(False) for _ in range(2))
    x, start = torch.randn(5, 8), torch.randn(5, 8)
    other.w_in.copy_(layer.w_in)
    published = [level_one_as_published(x, layer.w_in[0], each.w_out[0], start.clone()) for each in (layer, other)]
    assert torch.equal(*published)
    assert not torch.allclose(layer(x), other(x))
    assert not level_one_as_published(x, layer.w_in[0], layer.w_out[0], torch.zeros(5, 8)).any()


def nodes_read(layer: PathFFF, x: Tensor) -> int:
    """Different rows that a batch reads, of 4095."""
    return layer.path(x)[0].unique().numel()


def test_memory_that_was_never_written_sends_every_token_down_one_path() -> None:
    torch.manual_seed(0)
    layer, x = PathFFF(64, 64, 11, bias=False).requires_grad_(False), torch.randn(2000, 64)
    assert nodes_read(layer, x) > 2000
    fresh = torch.frombuffer(mmap.mmap(-1, 4 * layer.w_in.numel()), dtype=torch.float32)  # pages as the system gives
    layer.w_in.copy_(fresh.view_as(layer.w_in))
    assert nodes_read(layer, x) == path_length(11)
    assert not layer(x).any()
    layer.w_in.fill_(float("nan"))  # nor does it matter what else one finds there, as long as no score is above 0
    assert nodes_read(layer, x) == path_length(11)


def test_one_pointer_for_every_row_of_a_batch_is_one_path() -> None:
    torch.manual_seed(0)
    layer, x = PathFFF(64, 64, 11, bias=False), torch.randn(2000, 64)
    assert nodes_read(layer, x[:1].expand(2000, -1)) == path_length(11)
    assert nodes_read(layer, x) > 100 * path_length(11)


def test_benchmarks_without_biases_are_of_another_layer_than_the_trained_one() -> None:
    torch.manual_seed(0)
    trained, timed = PathFFF(64, 64, 11).requires_grad_(False), PathFFF(64, 64, 11, bias=False).requires_grad_(False)
    timed.load_state_dict({name: value for name, value in trained.state_dict().items() if name != "b_in"})
    x = torch.randn(2000, 64)
    leaves = [layer.path(x)[0][..., -1] for layer in (trained, timed)]
    assert (leaves[0] != leaves[1]).float().mean() > 0.1


def as_published(layer: LeafFFF, x: Tensor) -> Tensor:
    """The first paper's published inference: right at a tie, the leaf's output bias left out, a loop over tokens."""
    rows = []
    for token in x:
        node = 0
        for level in range(layer.depth):
            score = layer.w_node[node] @ token + layer.b_node[node]
            node = 2 * node + 1 + int(score >= 0)
            leaf = node - (2 ** (level + 1) - 1)
        rows.append(gelu(layer.w_in[leaf] @ token + layer.b_in[leaf]) @ layer.w_out[leaf])
    return torch.stack(rows)


def leaf_layer(depth: int) -> tuple[LeafFFF, Tensor]:
    torch.manual_seed(0)
    return LeafFFF(8, 8, depth, 4, dtype=torch.float64).eval().requires_grad_(False), torch.randn(50, 8).double()


def test_published_inference_leaves_out_the_leafs_output_bias() -> None:
    layer, x = leaf_layer(3)
    hard_training_pass = leaf_fff(x, *(getattr(layer, name) for name in WEIGHTS), "gelu").y
    torch.testing.assert_close(layer(x), hard_training_pass)
    assert (as_published(layer, x) - hard_training_pass).norm() / hard_training_pass.norm() > 0.3
    layer.b_out.zero_()  # and nothing else is missing
    torch.testing.assert_close(as_published(layer, x), layer(x))


def test_published_inference_fails_at_depth_0() -> None:
    layer, x = leaf_layer(0)
    with pytest.raises(UnboundLocalError, match="leaf"):
        as_published(layer, x)
    torch.testing.assert_close(layer(x), gelu(x @ layer.w_in[0].T + layer.b_in[0]) @ layer.w_out[0] + layer.b_out[0])


def test_published_training_and_inference_break_a_tie_to_different_sides() -> None:
    layer, x = leaf_layer(1)
    layer.w_node.zero_()
    layer.b_node.zero_()
    layer.b_out.zero_()
    assert torch.sigmoid(torch.zeros(())).round() == 0  # training rounds the probability: left
    left, right = (gelu(x @ layer.w_in[i].T + layer.b_in[i]) @ layer.w_out[i] for i in (0, 1))
    torch.testing.assert_close(layer(x), left)  # here a tie goes left in training and inference
    torch.testing.assert_close(as_published(layer, x), right)


def test_a_budget_in_hours_trains_otherwise_on_a_faster_machine() -> None:
    def factors(seconds_per_step: float, **budget: float | None) -> list[float]:
        config = TrainConfig(**{"budget_hours": None, **budget})
        used = (progress(config, tokens=0, steps=step, seconds=step * seconds_per_step) for step in range(0, 1000, 100))
        return [pretraining_factor("triangle2", t) for t in used]

    assert factors(3.6, budget_hours=1) == factors(3.6, budget_steps=1000)
    assert factors(1.8, budget_hours=1) != factors(3.6, budget_hours=1)
    assert factors(1.8, budget_steps=1000) == factors(3.6, budget_steps=1000)


def test_special_tokens_of_a_set_have_ids_by_the_hash_seed() -> None:
    code = f"print(*set({SPECIAL_TOKENS!r}))"
    orders = {
        subprocess.run(
            [sys.executable, "-S", "-c", code], env={"PYTHONHASHSEED": str(seed)}, capture_output=True, check=True
        ).stdout.split()[0]
        for seed in range(1, 9)
    }
    assert len(orders) > 1  # whichever comes first gets id 0, which the model takes for <pad>


def average(row: SimpleNamespace, mnli_times: int) -> float:
    tasks = (row.rte, row.mrpc, row.stsb, row.sst2, row.qnli, row.qqp)
    return (sum(tasks) + mnli_times * row.mnli) / (len(tasks) + mnli_times)


def test_the_quoted_rows_of_table_1_are_averaged_otherwise_than_the_papers_own() -> None:
    glue = yaml.safe_load((ROOT / "results/paper.yaml").read_text())["glue"]

    def row(values: list[float]) -> SimpleNamespace:
        return SimpleNamespace(**dict(zip(glue["columns"], values, strict=True)))

    own = [row(found["values"]) for found in glue["rows"].values()]
    assert all(abs(average(each, 2) - each.avg_no_cola) < 0.065 for each in own)
    distil = row(glue["external"]["DistilBERT"])
    assert abs(average(distil, 1) - distil.avg_no_cola) < 0.05
    assert abs(average(distil, 2) - distil.avg_no_cola) > 0.1


def test_the_page_names_every_demonstration_and_no_other() -> None:
    here = {name for name, value in globals().items() if name.startswith("test_") and callable(value)}
    named = set(re.findall(r"tests/test_paper_defects\.py::(\w+)", PAGE.read_text()))
    assert named == {name for name in here if "_page" not in name}


def test_the_page_is_wrapped_at_100_columns() -> None:
    prose = re.sub(r"```sh\n.*?\n```", "", PAGE.read_text(), flags=re.DOTALL)
    assert max(map(len, prose.splitlines())) <= 100


def test_the_pages_short_commands_run() -> None:
    short = re.findall(r"^python -c .*$", PAGE.read_text(), flags=re.MULTILINE)
    assert len(short) == 2
    for line in short:
        done = subprocess.run(
            ["sh", "-c", line.replace("python", sys.executable, 1)], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()
