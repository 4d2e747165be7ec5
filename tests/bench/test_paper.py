"""The paper's columns: every level computes the layer that it is named after."""

import pytest
import torch

from bench.cases import dense
from bench.paper import dense_of_matrix_and_vector, dense_of_vectors, measure, tree_of_vectors
from fff import PathFFF
from fff.reference import path_fff


def test_levels_compute_the_definitions() -> None:
    torch.manual_seed(0)
    layer, flat, x = PathFFF(16, 16, 3, bias=False), dense(15, torch.float32, 16), torch.randn(9, 16)
    wide = path_fff(x.double(), layer.w_in.double(), None, layer.w_out.double(), "gelu").y
    with torch.inference_mode():
        assert torch.allclose(tree_of_vectors(layer)(x).double(), wide, atol=1e-5)
        assert torch.allclose(dense_of_vectors(flat)(x), flat(x), atol=1e-5)
        assert torch.allclose(dense_of_matrix_and_vector(flat)(x), flat(x), atol=1e-5)


def test_rows_carry_both_ratios() -> None:
    rows = measure(3, 64, 0.0)
    flat = {row.name: row.median / row.tokens for row in rows if row.name.startswith("dense")}
    assert len(flat) == 3
    for row in rows:
        per_token = row.median / row.tokens
        assert row.ratio == pytest.approx(flat[f"dense 15, {row.what}"] / per_token)
        assert row.ratio_second == pytest.approx(min(flat.values()) / per_token)
        assert row.opponent == f"dense 15, {row.what}"
        assert flat[str(row.second)] == min(flat.values())
