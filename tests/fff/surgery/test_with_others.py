"""A foreign model with trees in it under the tools that people use: what they did before, they do after."""

from pathlib import Path

import pytest
import torch
from torch import nn

from fff import PathFFF
from fff.surgery import load, replace_feedforward
from tests.helpers.foreign import foreign, inputs_of, output_of

TREE = {"kind": "path", "depth": 3, "trees": 2}
FIXED = {"kind": "fixed", "depth": 2, "trees": 1}
MOE = {"kind": "moe", "experts": 4, "expert_width": 4, "top": 1}


def with_trees(name: str) -> nn.Module:
    model = foreign(name)
    replace_feedforward(model, TREE)
    return model


def trees_of(model: nn.Module) -> list[PathFFF]:
    return [module for module in model.modules() if isinstance(module, PathFFF)]


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_gradient_checkpointing_changes_no_gradient(name: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = with_trees(name)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.train()
        for module in model.modules():
            if hasattr(module, "dropout_prob"):
                module.dropout_prob = 0.0
        torch.manual_seed(0)
        output_of(name, model).square().sum().backward()
        gradients.append([tree.w_in.grad for tree in trees_of(model)])
    for a, b in zip(*gradients, strict=True):
        assert a.abs().sum() > 0
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_types(dtype: torch.dtype) -> None:
    for name in ("bert", "gpt2"):
        expected = output_of(name, with_trees(name))
        y = output_of(name, with_trees(name).to(dtype))
        assert y.dtype == dtype
        assert y.isfinite().all()
        assert torch.nn.functional.cosine_similarity(y.float().flatten(), expected.flatten(), dim=0) > 0.95
        with torch.autocast("cpu", torch.bfloat16):
            assert output_of(name, with_trees(name)).isfinite().all()


@torch.no_grad()
def test_torch_compile() -> None:
    model = with_trees("llama")
    compiled = torch.compile(model, backend="aot_eager")
    torch.testing.assert_close(output_of("llama", compiled), output_of("llama", model))


@pytest.mark.parametrize("layer", [TREE, FIXED, MOE])
def test_what_no_gradient_trains_is_the_same_after_loading(layer: dict, tmp_path: Path) -> None:
    model = foreign("bert")
    replace_feedforward(model, layer)
    model.save_pretrained(tmp_path)
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert all(trained.values()) == (layer is TREE)
    assert {name: parameter.requires_grad for name, parameter in load(tmp_path).named_parameters()} == trained


@torch.no_grad()
def test_device_map_and_offloading(tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    model = with_trees("bert")
    expected = output_of("bert", model)
    model.save_pretrained(tmp_path)
    for device_map in ({"": "cpu"}, "cpu", "auto"):
        placed = load(tmp_path, device_map=device_map)
        inputs = {name: tensor.to(placed.device) for name, tensor in inputs_of("bert")[1].items()}
        torch.testing.assert_close(placed(**inputs)[0].cpu(), expected)
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    assert all(tree.w_in.is_meta for tree in trees_of(model))
    assert torch.equal(output_of("bert", model), expected)


def test_accelerate_prepares_and_trains_it() -> None:
    accelerate = pytest.importorskip("accelerate")
    model = with_trees("gpt2").train()
    accelerator = accelerate.Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-2))
    before = [tree.w_out.detach().clone() for tree in trees_of(model)]
    ids = inputs_of("gpt2")[1]["input_ids"]
    accelerator.backward(model(input_ids=ids, labels=ids).loss)
    optimizer.step()
    assert all(not torch.equal(a, tree.w_out) for a, tree in zip(before, trees_of(model), strict=True))


def test_the_trainer_trains_saves_and_the_result_loads(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = with_trees("llama")
    before = [tree.w_out.detach().clone() for tree in trees_of(model)]
    ids = inputs_of("llama")[1]["input_ids"]
    rows = [{"input_ids": row, "labels": row} for row in ids]
    arguments = transformers.TrainingArguments(
        str(tmp_path), max_steps=1, use_cpu=True, report_to=[], disable_tqdm=True, per_device_train_batch_size=2,
        learning_rate=1e-2, save_strategy="no",
    )  # fmt: skip
    trainer = transformers.Trainer(model, arguments, train_dataset=rows)
    trainer.train()
    assert all(not torch.equal(a, tree.w_out) for a, tree in zip(before, trees_of(model), strict=True))
    trainer.save_model(str(tmp_path / "saved"))
    loaded = load(tmp_path / "saved")
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in loaded.state_dict().items())


def test_lora_adapts_attention_and_may_train_the_trees_in_full() -> None:
    peft = pytest.importorskip("peft", reason="peft is not in the lock file; install it to try LoRA")
    model = with_trees("bert")
    config = peft.LoraConfig(target_modules=["query", "value"], modules_to_save=["intermediate.dense"], r=2)
    adapted = peft.get_peft_model(model, config)
    assert torch.equal(output_of("bert", adapted), output_of("bert", with_trees("bert")))
    adapted.train()
    output_of("bert", adapted).square().sum().backward()
    trained = {name for name, parameter in adapted.named_parameters() if parameter.grad is not None}
    assert any("lora_B" in name for name in trained)
    assert any(name.endswith("w_in") for name in trained)
    assert all("lora" in name or "intermediate.dense" in name for name in trained)
    merged = adapted.merge_and_unload()
    assert len(trees_of(merged)) == 2
