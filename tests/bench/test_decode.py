"""Decoding's bench: the step is transformers' pass, bytes are counted, rows are those of the report."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from bench import decode
from bench.decode import Plan, contenders, measure
from bench.decoder import DENSE, NONE, Size, Step, by_transformers, check, in_type, logits_of, with_feedforward
from bench.rows import read_rows
from bench.touched import bytes_touched
from cramming.report.decoding import decoding_markdown
from cramming.report.speed import read_speed
from fff import PathFFF
from fff.kernels.int8_linear import Rows
from fff.layers.quantised import QuantisedPath

# Large enough for int8: smaller linears stay as they are.
SIZE = Size(layers=2, width=192, neurons=256, heads=6, key_heads=3, vocab_size=128)
PLAN = Plan(size=SIZE, depths=(3,), prompt=4, new=3, turns=2)
H, KEYS, N, V, L = 192, 96, 256, 128, 2  # width, width of the keys, neurons, vocabulary, layers


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int8 by torch"])
@pytest.mark.parametrize("feedforward", [DENSE, "1x3", NONE])
def test_the_step_is_transformers_pass(feedforward: str, dtype: str) -> None:
    model = in_type(with_feedforward(SIZE, feedforward, 12), dtype)
    check(model, Step(model, 12), SIZE.tokens(12), dtype, "step")


@pytest.mark.parametrize("feedforward", [DENSE, "1x3"])
@torch.no_grad()
def test_its_attention_is_transformers_where_places_matter(feedforward: str) -> None:
    model, tokens = with_feedforward(SIZE, feedforward, 12), SIZE.tokens(12)
    flat = model(input_ids=tokens[None]).logits[0]
    for layer in model.model.layers:
        for linear in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
            linear.weight.normal_(std=0.5)
    whole = model(input_ids=tokens[None]).logits[0]
    moved = model(input_ids=tokens[None], position_ids=2 * torch.arange(12)[None]).logits[0]
    assert (moved - whole).abs().max() > 0.01
    assert (flat - whole).abs().max() > 0.01
    torch.testing.assert_close(logits_of(Step(model, 12), tokens), whole, atol=1e-4, rtol=1e-3)


def test_another_step_is_refused() -> None:
    model = with_feedforward(SIZE, DENSE, 8)
    step = Step(model, 8)
    step.eps = 1.0
    with pytest.raises(AssertionError, match=r"dense: .* from transformers"):
        check(model, step, SIZE.tokens(8), "float32", "dense")


def test_transformers_steps_begin_anew_at_the_first_place() -> None:
    model, tokens = with_feedforward(SIZE, "1x3", 8), SIZE.tokens(8)
    step = by_transformers(model)
    torch.testing.assert_close(logits_of(step, tokens), logits_of(step, tokens), atol=0, rtol=0)


def test_models_differ_in_their_feedforwards_alone() -> None:
    models = [with_feedforward(SIZE, each, 8) for each in (DENSE, "1x3", NONE)]
    for key, value in models[2].state_dict().items():
        assert all(torch.equal(model.state_dict()[key], value) for model in models)
    assert [sum(isinstance(m, PathFFF) for m in model.modules()) for model in models] == [0, 2, 0]
    for dtype in ("int8", "int8 by torch"):
        in_int8 = in_type(models[1], dtype)
        assert sum(isinstance(m, QuantisedPath) for m in in_int8.modules()) == 2
        assert not any(isinstance(m, nn.Linear) for m in in_int8.modules())
    assert sum(isinstance(m, PathFFF) for m in models[1].modules()) == 2  # a copy was changed


def count(feedforward: str, dtype: str, tokens: int = 1) -> int:
    model = in_type(with_feedforward(SIZE, feedforward, 8), dtype)
    ids = SIZE.tokens(tokens)[None]
    return bytes_touched(model, lambda: model(input_ids=ids, use_cache=False))


def test_bytes_of_a_token_are_those_of_linears_a_row_and_a_path() -> None:
    attention = L * (2 * H * H + 2 * H * KEYS)
    rest = attention + V * H + H + (2 * L + 1) * H  # head, the token's row of the embedding, norms
    angles = 4 * SIZE.width // SIZE.heads // 2 * 2  # rotary frequencies, float32, kept twice
    assert count(NONE, "float32") == 4 * rest + angles
    assert count(DENSE, "float32") - count(NONE, "float32") == 4 * L * 3 * H * N
    assert count("1x3", "float32") - count(NONE, "float32") == 4 * L * 4 * (2 * H + 1)
    assert count("1x6", "bfloat16") - count(NONE, "bfloat16") == 2 * L * 7 * (2 * H + 1)
    # Of int8: a byte for each weight, and a scale for each row of a tree, in and out, beside its bias.
    assert count("1x3", "int8") - count(NONE, "int8") == L * 4 * (2 * H + 4 * 3)
    rows = L * (2 * N + H)
    more = count(DENSE, "int8") - count(NONE, "int8") - (L * 3 * H * N + 4 * rows)
    shapes = ((N, H), (N, H), (H, N))
    assert more == L * sum(Rows(torch.zeros(shape, dtype=torch.int8)).nbytes - math.prod(shape) for shape in shapes)
    assert 0 <= more <= 4 * rows, "a number for each row that oneDNN packs beside it"
    by_torch = count(DENSE, "int8 by torch") - count(NONE, "int8 by torch")
    assert by_torch == pytest.approx(L * 3 * H * N, rel=0.002)


def test_a_row_that_two_tokens_visit_is_counted_once() -> None:
    model = with_feedforward(SIZE, "1x3", 8)
    tree = next(m for m in model.modules() if isinstance(m, PathFFF))
    x, many = torch.randn(1, H), torch.randn(200, H)
    one, same = (bytes_touched(tree, lambda n=n: tree(x.expand(n, H))) for n in (1, 5))
    assert one == same == 4 * 4 * (2 * H + 1)
    assert bytes_touched(tree, lambda: tree(many)) == 15 * 4 * (2 * H + 1)


def test_what_cannot_be_counted_is_refused() -> None:
    with pytest.raises(TypeError, match="Bilinear has matrices"):
        bytes_touched(layer := nn.Bilinear(2, 2, 2), lambda: layer(torch.ones(1, 2), torch.ones(1, 2)))


def test_rows_stand_beside_their_type_and_the_best_dense_one() -> None:
    threads = torch.get_num_threads()
    rows = measure(Plan(size=SIZE, depths=(3,), prompt=4, new=3, turns=2, transformers=True))
    assert torch.get_num_threads() == threads
    by_name = {row.name: row for row in rows}
    kinds = [(f, d) for f in (DENSE, "1x3", NONE) for d in (*decode.DTYPES, *["int8 by torch"] * (f == DENSE))]
    assert list(by_name) == [f"{f} {d}{way}" for f, d in kinds for way in ("", ", transformers")]
    for row in rows:
        assert row.opponent == f"dense {row.dtype}" + (", transformers" if "transformers" in row.name else "")
        assert row.ratio == pytest.approx(by_name[row.opponent].median / row.median)
        assert row.second is not None
        assert row.ratio_second == pytest.approx(by_name[row.second].median / row.median)
        assert row.tokens_per_s == pytest.approx(3 / row.median)
        assert (row.n, row.tokens) == (2, 3)
    best = min((row for row in rows if row.name.startswith(DENSE)), key=lambda row: row.median)
    assert {row.second for row in rows} == {best.name}
    assert by_name["1x3 float32"].relative_error == 0
    assert by_name["dense float32"].provider is None
    assert by_name["1x3 int8"].provider is not None
    assert by_name["dense int8"].bytes_per_token < by_name["dense bfloat16"].bytes_per_token  # type: ignore[operator]


def test_a_wrong_decoder_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Step, "_norm", lambda self, x, norm: x)
    with pytest.raises(AssertionError, match="dense float32"):
        contenders(PLAN)


def test_the_command_writes_rows_that_the_report_shows(tmp_path: Path, capsys) -> None:
    out = tmp_path / "decode.json"
    small = ["--layers", "1", "--vocabulary", "64", "--new", "2", "--prompt", "2", "--turns", "1", "--depths", "2"]
    decode.main([*small, "--dtypes", "float32", "--threads", "1", "--out", str(out)])
    assert "tokens/s" in capsys.readouterr().out
    rows = read_rows(out)
    assert [row.name for row in rows] == ["dense float32", "1x2 float32", "none float32"]
    assert {row.what for row in rows} == {"decode"}
    page = decoding_markdown(read_speed(tmp_path))
    (line,) = (line for line in page.splitlines() if line.startswith("| 1x2"))
    assert f"{rows[1].bytes_per_token / 1e6:,.1f}" in line  # type: ignore[operator]


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--new", "0", "--new is 0"),
        ("--dtypes", "float16", "--dtypes is 'float16'"),
        ("--depths", "7,x", "--depths names 'x'"),
        ("--vocabulary", "3", "--vocabulary is 3"),
    ],
)
def test_wrong_options_are_named(option: str, value: str, words: str, capsys) -> None:
    with pytest.raises(SystemExit):
        decode.main([option, value])
    assert words in capsys.readouterr().err
