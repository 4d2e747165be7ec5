"""Dense to tree by distillation: what must be equal, what must be better, what is refused, and that it goes on."""

from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi
from scipy.stats import spearmanr
from tokenizers import Tokenizer, models
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from cramming.convert.pretrained.config import DistillConfig
from cramming.convert.pretrained.convert import convert
from cramming.convert.pretrained.dense import prove
from cramming.convert.pretrained.equations import Equations, choose, solve
from cramming.convert.pretrained.faster import in_use
from cramming.convert.pretrained.folder import write_folder
from cramming.convert.pretrained.job import Job, Texts
from cramming.convert.pretrained.judge import kept, neighbours
from cramming.convert.pretrained.splits import scale_of, split_level
from cramming.convert.pretrained.target import read_target
from cramming.convert.pretrained.teacher import ANSWER_S, load_teacher, teacher_of
from cramming.convert.pretrained.text import padded, refuse_unread
from cramming.convert.pretrained.whole import Whole
from cramming.errors import UserError
from fff import LeafFFF, surgery
from fff.kernels.int8_linear import unusable
from tests.helpers.distilled import QUICK, bert, documents, job, llama, tokenizer, write_gguf

STILL = {"block_tokens": 0, "whole_tokens": 0}


def made(folder: Path, text: str, model: Any = None, **changes: Any) -> tuple[Job, Any]:
    """One target, made alone."""
    found = job(folder, model, to=text, controls=[], **changes)
    return found, found.make()[0]


def sample() -> dict[str, torch.Tensor]:
    ids = tokenizer()(documents(4), truncation=True, max_length=32)["input_ids"]
    return padded(ids, 0).inputs


@pytest.mark.parametrize(
    ("text", "tag", "used"),
    [
        ("path:1x10", "path-1x10", 11),
        ("path:4x3+8", "path-4x3+8", 24),
        ("leaf:5x192+96", "leaf-5x192+96", 288),
        ("leaf:2x8", "leaf-2x8", 8),
        ("none", "none", 0),
    ],
)
def test_targets_are_read(text: str, tag: str, used: int) -> None:
    target = read_target(text)
    assert target.tag == tag
    assert target.settings("gelu", gated=False).neurons_used == used


@pytest.mark.parametrize(
    "text",
    ["", "tree", "leaf:5", "path:1x10+", "narrow:0", "narrow:-3", "leaf:5x0", "path:0x3", "leaf:99x2", "leaf:2x8+x"],
)
def test_a_wrong_target_names_the_key_and_shows_the_grammar(text: str) -> None:
    with pytest.raises(UserError, match=r"distill\.to.*path:TxD.*narrow:K"):
        read_target(text)
    with pytest.raises(UserError, match=r"distill\.controls"):
        DistillConfig(model="m", controls=[text])


@pytest.mark.parametrize("model", [bert, llama])
def test_all_neurons_kept_are_the_dense_model(tmp_path: Path, model: Any) -> None:
    dense = model()
    _, found = made(tmp_path, "narrow:48", dense, **STILL)
    with torch.no_grad():
        before, after = dense(**sample())[0], found.model.cpu()(**sample())[0]
    assert float((before - after).norm() / before.norm()) < 1e-5


def test_blocks_are_found_with_the_norm_behind_them() -> None:
    blocks = prove(bert(), sample())
    assert [each.norm for each in blocks] == [f"encoder.layer.{n}.output.LayerNorm" for n in (0, 1)]
    assert all(each.own_residual and each.activation == "gelu" for each in blocks)
    blocks = prove(llama(), sample())
    assert [each.norm for each in blocks] == ["model.layers.1.input_layernorm", "model.norm"]
    assert not any(each.own_residual for each in blocks)
    assert all(each.w_value is not None and each.activation == "silu" for each in blocks)


class Clipped(nn.Module):
    """GELU on noise of the usual size, and something else on what a model really computes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.gelu(x.clamp(max=self.most))

    most = 1e9


def test_a_block_that_its_weights_do_not_recompute_is_refused_by_name() -> None:
    model = bert()
    clipped = Clipped()
    model.encoder.layer[1].intermediate.intermediate_act_fn = clipped
    model.encoder.layer[1].intermediate.register_forward_pre_hook(lambda *_: None)
    original = model.forward

    def forward(*args: Any, **options: Any) -> Any:
        clipped.most = 0.5  # as the whole model alone calls it
        try:
            return original(*args, **options)
        finally:
            clipped.most = 1e9

    model.forward = forward  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"encoder\.layer\.1.*recompute"):
        prove(model, sample())


def test_a_leafs_start_is_better_than_none_and_scratch(tmp_path: Path) -> None:
    errors = {}
    for name, text, start in (
        ("leaves", "leaf:1x12+8", "leaves"),
        ("scratch", "leaf:1x12+8", "scratch"),
        ("none", "none", "leaves"),
    ):
        errors[name] = made(tmp_path / name, text, start=start, **STILL)[1].errors["begun"]
    assert errors["leaves"] < 0.7 * errors["none"]
    assert errors["leaves"] < 0.7 * errors["scratch"]


@pytest.mark.parametrize("text", ["path:2x3", "path:1x3+8", "leaf:1x12+8", "narrow:12"])
def test_training_lowers_a_blocks_error(tmp_path: Path, text: str) -> None:
    errors = made(tmp_path, text, block_tokens=40_000, whole_tokens=0)[1].errors
    none = made(tmp_path, "none", **STILL)[1].errors["begun"]
    assert errors["begun"] < none
    assert errors["trained"] < errors["begun"]


@pytest.mark.parametrize("model", [bert, llama])
def test_a_leafs_neurons_and_trunk_solve_their_least_squares_together(tmp_path: Path, model: Any) -> None:
    # With every neuron in the trunk, and none of them in a leaf that could add, all of the block is there again.
    _, found = made(tmp_path, "leaf:1x1+48", model(), ridge=1e-9, **STILL)
    assert found.errors["begun"] < 1e-4


def test_sts_b_is_judged_by_the_cosines_of_unpadded_means(tmp_path: Path) -> None:
    texts = documents(40)
    first, second, scores = texts[:20], texts[20:], [round(0.25 * number, 2) for number in range(20)]
    (tmp_path / "glue" / "STS-B").mkdir(parents=True)
    rows = zip(first, second, map(str, scores), strict=True)
    lines = ["sentence1\tsentence2\tscore", *("\t".join(row) for row in rows)]
    (tmp_path / "glue" / "STS-B" / "dev.tsv").write_text("\n".join(lines) + "\n")
    dense, read = bert(), tokenizer()

    def vector(text: str) -> torch.Tensor:
        with torch.no_grad():
            return dense(**read(text, return_tensors="pt")).last_hidden_state[0].mean(0)

    cosines = [float(torch.cosine_similarity(vector(a), vector(b), dim=0)) for a, b in zip(first, second, strict=True)]
    found, model = made(tmp_path / "job", "none", dense, glue_dir=str(tmp_path / "glue"), **STILL)
    judged = found.judge([model])
    assert judged["dense"]["spearman"] == pytest.approx(spearmanr(cosines, scores)[0], abs=1e-6)
    assert set(judged["none"]) > {"spearman", "spearman_in_use", "neighbours", "cosine"}
    with pytest.raises(UserError, match="STS-B is missing"):
        job(tmp_path / "other", glue_dir=str(tmp_path))


def test_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    _, whole = made(tmp_path / "whole", "leaf:1x12+8")
    cut = job(tmp_path / "cut", to="leaf:1x12+8", controls=[])

    class Ended(Exception):
        pass

    original = Whole.run

    def run(self: Any, stop: Any = None) -> float:
        original(self, lambda step: step == 5)
        raise Ended

    Whole.run = run  # type: ignore[method-assign]
    try:
        with pytest.raises(Ended):
            cut.make()
    finally:
        Whole.run = original  # type: ignore[method-assign]
    resumed = job(tmp_path / "cut", to="leaf:1x12+8", controls=[]).make()[0]
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[key]), key
    assert whole.errors == resumed.errors


def test_forward_selection_takes_the_columns_that_the_target_is_made_of() -> None:
    generator = torch.Generator().manual_seed(0)
    columns = torch.randn(500, 20, generator=generator)
    columns[:, 7] = columns[:, 3] + 0.01 * columns[:, 7]  # nearly the same as one that is needed
    y = columns[:, [3, 11, 15]] @ torch.randn(3, 6, generator=generator) + 2
    a = torch.cat([columns, torch.ones(500, 1)], 1).double()
    equations = Equations(a.t() @ a, a.t() @ y.double(), 500.0)
    chosen = choose(equations, 3, 1e-6)
    assert sorted(chosen) in ([3, 11, 15], [7, 11, 15])
    rows, constant = solve(equations, chosen, 1e-9)
    assert torch.allclose(columns[:, chosen] @ rows + constant, y, atol=0.05)


def test_hyperplanes_halve_the_tokens_of_every_node() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1000, 8, generator=generator) * torch.arange(1.0, 9)
    at = torch.zeros(1000, dtype=torch.int64)
    for depth in range(3):
        level, score = split_level(x, scale_of(x), at, 2**depth, generator)
        assert torch.allclose(score, (x * level.weight[at]).sum(1) + level.bias[at], atol=1e-3)
        at = 2 * at + (score > 0)
    assert torch.bincount(at, minlength=8).tolist() == [125] * 8


def test_neighbours_kept_is_a_share() -> None:
    rows = nn.functional.normalize(torch.randn(40, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    near = neighbours(rows)
    assert not (near == torch.arange(40)[:, None]).any()
    assert kept(near, near.flip(1)) == 1.0
    assert kept(near, (near + 1000)) == 0.0


def test_convert_judges_the_controls_and_its_model_is_saved_and_loaded(tmp_path: Path) -> None:
    dense = bert()
    settings = {key: value for key, value in QUICK.items() if key != "model"}
    found = convert(dense, documents(2000), tokenizer=tokenizer(), folder=tmp_path / "work", **settings)
    assert set(found.metrics) == {"dense", "leaf:1x12+8", "none", "narrow:12"}
    for name in ("none", "narrow:12", "leaf:1x12+8"):
        assert {"neighbours", "cosine", "neighbours_in_use", "minutes", "error_trained"} <= set(found.metrics[name])
    surgery.save(found.model, tmp_path / "model")
    again = surgery.load(tmp_path / "model")
    with torch.no_grad():
        assert torch.equal(found.model.cpu()(**sample())[0], again(**sample())[0])


def test_a_decoder_is_judged_by_perplexity(tmp_path: Path) -> None:
    made_job = job(tmp_path, llama(), to="leaf:1x12+8", controls=["none", "narrow:12"], neighbours=120)
    metrics = made_job.judge(made_job.make())
    assert all(each["perplexity"] > 1 for each in metrics.values())


@pytest.mark.parametrize("text", ["leaf:1x12+8", "path:1x3", "narrow:12", "none"])
def test_a_decoder_of_one_gguf_file_is_converted_saved_loaded_and_speaks(tmp_path: Path, text: str) -> None:
    pytest.importorskip("gguf", reason="reads .gguf files (extra `gguf`)")
    dense = llama()
    write_gguf(tmp_path / "tiny.gguf", dense)
    tokenizer().save_pretrained(tmp_path / "tokenizer")
    found = load_teacher(str(tmp_path / "tiny.gguf"), str(tmp_path / "tokenizer"))
    assert (found.causal, found.name) == (True, "tiny")
    ids = sample()["input_ids"][:1, :9]
    with torch.no_grad():
        assert torch.equal(found.model(ids).logits, dense(ids).logits)
    converted = made(tmp_path / "work", text, found.model)[1]
    write_folder(converted, found, {}, tmp_path / "model", replace=False)
    load = AutoModelForCausalLM.from_pretrained if text.startswith("narrow") else surgery.load
    again = load(tmp_path / "model")
    settings = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 5, "do_sample": False}
    assert torch.equal(again.generate(ids, **settings), converted.model.generate(ids, **settings))
    assert "AutoModelForCausalLM" in (tmp_path / "model/README.md").read_text() or text.startswith("narrow")


@pytest.mark.skipif(unusable() is not None, reason=str(unusable()))
@torch.no_grad()
def test_a_decoder_in_use_is_in_int8_by_row_and_token() -> None:
    dense, ids = llama(), sample()["input_ids"]
    used = in_use(dense, "int8")
    assert not any(isinstance(module, nn.Linear) for module in used.modules())
    expected, found = dense(ids).logits, used(ids).logits
    assert float((found - expected).norm() / expected.norm()) < 0.05
    torch.testing.assert_close(used(ids[:1]).logits, found[:1])  # whatever texts stand beside it
    assert in_use(dense, "float32") is dense


def test_leaves_keep_a_decoders_gates_and_begin_better_with_them(tmp_path: Path) -> None:
    job_, found = made(tmp_path, "leaf:1x12+8", llama(), **STILL)
    layers = [module for module in found.model.modules() if isinstance(module, LeafFFF)]
    assert len(layers) == 2
    for layer, dense in zip(layers, job_.denses, strict=True):
        assert layer.gated
        assert layer.activation == "silu"
        rows = {tuple(row) for row in torch.cat([dense.w_in, dense.w_value], 1).tolist()}
        mine = torch.cat([layer.w_in, layer.w_value], -1).flatten(0, 1)
        mine = torch.cat([mine, torch.cat([layer.master_w_in, layer.master_w_value], -1)])
        assert {tuple(row) for row in mine.tolist()} <= rows  # each neuron with its own gate
    assert found.errors["begun"] < 0.9 * made(tmp_path / "none", "none", llama(), **STILL)[1].errors["begun"]


def test_an_id_that_the_hub_does_not_have_is_told_at_once_and_once(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def model_info(self: Any, given: str, timeout: float) -> None:
        asked.append((given, timeout))
        raise OSError("404: there is no such model")

    def ask(*_: Any, **__: Any) -> None:
        raise AssertionError("transformers would ask again and again")

    monkeypatch.setattr(HfApi, "model_info", model_info)
    monkeypatch.setattr("cramming.convert.pretrained.teacher.AutoConfig.from_pretrained", ask)
    with pytest.raises(UserError, match=r"distill\.model: nobody/nothing cannot be loaded .*404: there is no"):
        load_teacher("nobody/nothing")
    assert asked == [("nobody/nothing", ANSWER_S)]
    assert "".join(capfd.readouterr()) == ""


# What is wrong -> what the one line must name.
def test_bad_input_is_one_clear_error_before_long_work(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json"):
        load_teacher(str(tmp_path))
    with pytest.raises(UserError, match="missing"):
        load_teacher(str(tmp_path / "nothing"))
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        load_teacher(str(tmp_path / "a.txt"))
    with pytest.raises(UserError, match="no feedforward block"):
        prove(nn.Sequential(nn.LayerNorm(8)), {"input": torch.randn(2, 8)})
    with pytest.raises(UserError, match="tokenizer does not fit"):
        teacher_of(bert(), tokenizer(extra=20))
    bert().save_pretrained(tmp_path / "bare")  # transformers makes an empty tokenizer of it
    with pytest.raises(UserError, match=r"distill\.tokenizer does not fit the text: of \d+ of \d+ tokens it knows"):
        Job(
            load_teacher(str(tmp_path / "bare")), Texts(documents(), documents(60, 1)), DistillConfig(**QUICK), tmp_path
        )
    with pytest.raises(UserError, match="it makes no token of it"):
        refuse_unread(PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE())), documents())
    with pytest.raises(UserError, match="no transformers model"):
        teacher_of(nn.Linear(4, 4), tokenizer())
    with pytest.raises(UserError, match="tokenizer is missing"):
        convert(bert(), documents())
    with pytest.raises(UserError, match=r"distill\.tokens asks for 9,000,000"):
        job(tmp_path, tokens=9_000_000)
    with pytest.raises(UserError, match=r"distill\.neighbours"):
        job(tmp_path, neighbours=5000)
    with pytest.raises(UserError, match=r"distill\.seq_len"):
        job(tmp_path, seq_len=100)
    with pytest.raises(UserError, match=r"distill\.record_gb"):
        job(tmp_path, record_gb=1e-6)
    with pytest.raises(UserError, match=r"narrow:64.*48 neurons"):
        job(tmp_path, to="narrow:64")
    with pytest.raises(UserError, match=r"gate.*distill\.keep_gates"):
        job(tmp_path, llama(), to="path:1x2", keep_gates=True)
    with pytest.raises(UserError, match=r"path:1x2\+4.*silu"):
        job(tmp_path, llama(), to="path:1x2+4")
    assert not list(tmp_path.glob("recording*"))
