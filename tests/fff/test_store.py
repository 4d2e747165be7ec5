"""Rows on a disk: what is written is read, by the rows that a token passes, in bounded memory; what is refused."""

import copy
import itertools
import pickle
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from fff import PathFFF, store
from fff.kernels import PROVIDERS
from fff.optimise import optimise_for_cpu
from fff.reference import path_fff
from fff.topology import child
from fff.usage import measure
from tests.helpers.commands import ROOT

HERE = [
    name
    for name, provider in PROVIDERS.items()
    if provider.execution == "conditional"
    and name != "triton"  # here it is an interpreter
    and not provider.available(torch.device("cpu"), torch.float32)
]


def layer(depth: int = 5, trees: int = 2, dtype: torch.dtype = torch.float32, **options) -> PathFFF:
    torch.manual_seed(depth)
    return PathFFF(24, 16, depth, trees, **options).to(dtype).eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    store.write(layer(), tmp_path / "rows")
    return tmp_path / "rows"


@pytest.mark.parametrize("provider", HERE)
@pytest.mark.parametrize("bias", [True, False])
def test_a_stored_layer_is_the_layer(tmp_path: Path, provider: str, bias: bool) -> None:
    module, x = layer(bias=bias, activation="silu"), torch.randn(3, 50, 24)
    store.write(module, tmp_path / "rows")
    stored = store.open(tmp_path / "rows", provider)
    module.provider = provider
    with torch.no_grad():
        assert torch.equal(stored(x), module(x))
        assert torch.equal(stored(x[0, :1]), module(x[0, :1])), "the short way of inference too"
        nodes, scores = stored.path(x)
    assert torch.equal(nodes, module.path(x)[0])
    assert torch.equal(scores, module.path(x)[1])
    assert stored.computed_by == {provider}
    assert not any(weight.requires_grad for weight in stored.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_safetensors_reads_the_files(tmp_path: Path, dtype: torch.dtype) -> None:
    module = layer(dtype=dtype)
    store.write(module, tmp_path / "rows")
    first = safetensors.torch.load_file(tmp_path / "rows" / "w_in.safetensors")
    second = safetensors.torch.load_file(tmp_path / "rows" / "w_out.safetensors")
    assert (set(first), set(second)) == ({"w_in", "b_in"}, {"w_out"})
    for name, weight in {**first, **second}.items():
        assert torch.equal(weight, getattr(module, name))
    opened = store.open(tmp_path / "rows")
    assert opened.w_in.dtype == dtype
    assert opened.w_in.data_ptr() % 4096 == opened.w_out.data_ptr() % 4096 == 0
    if dtype.itemsize >= 4:
        x = torch.randn(30, 24, dtype=dtype)
        expected = path_fff(x.double(), *(weight.double() for weight in module.parameters()), "gelu")
        torch.testing.assert_close(opened(x).double(), expected.y, rtol=1e-4, atol=1e-5)


def test_blocks_of_any_size_come_to_the_same_file(tmp_path: Path) -> None:
    module = layer()
    rows = [weight.detach().flatten(0, 1) for weight in module.parameters()]
    for number, sizes in enumerate(([126], [1, 60, 65], [0, 126], [63, 63])):
        blocks = zip(*(weight.split(sizes) for weight in rows), strict=True)
        store.write_blocks(blocks, tmp_path / f"{number}", d_in=24, d_out=16, depth=5, trees=2)
        opened = store.open(tmp_path / f"{number}")
        assert all(torch.equal(a, b) for a, b in zip(opened.parameters(), module.parameters(), strict=True))


def test_what_is_no_layer_is_not_written(tmp_path: Path) -> None:
    good = [torch.randn(7, 4), torch.randn(7), torch.randn(7, 3)]
    sizes = {"d_in": 4, "d_out": 3, "depth": 2}

    def broken() -> Iterator[tuple[Tensor, ...]]:
        yield tuple(weight[:3] for weight in good)
        raise OSError("the source is gone")

    wrong: list = [
        ([], {}, "have 0 rows together, and the layer has 7"),
        ([tuple(w[:5] for w in good)], {}, "have 5 rows together"),
        ([good, good], {}, "block 1 .*, 0 rows at most"),
        ([(good[0], None, good[2])], {}, "block 0 .*b_in"),
        ([(good[0], good[1], good[0])], {}, r"block 0 .*'w_out': \(7, 3\)"),
        ([tuple(w.double() for w in good)], {}, "block 0 .*float64.* of torch.float32 are needed"),
        ([good], {"depth": 30}, "depth=30; it must be from 0 to 29"),
        ([good], {"d_in": 0}, "d_in=0; it must be 1 or more"),
        ([good], {"depth": 29, "trees": 3}, "at most 2\\^31 - 1"),
        ([good], {"activation": "sine"}, "activation='sine' is unknown"),
        ([good], {"dtype": torch.int8}, "dtype=torch.int8"),
    ]
    for blocks, changes, message in wrong:
        with pytest.raises(ValueError, match=message):
            store.write_blocks(blocks, tmp_path / "rows", **sizes | changes)
    with pytest.raises(OSError, match="the source is gone"):
        store.write_blocks(broken(), tmp_path / "rows", **sizes)
    assert list(tmp_path.iterdir()) == [], "complete or absent"
    store.write_blocks([good], tmp_path / "rows", **sizes)
    with pytest.raises(ValueError, match="rows exists, and nothing is written over it"):
        store.write_blocks([good], tmp_path / "rows", **sizes)


def test_a_folder_that_is_no_store_is_refused(tmp_path: Path, folder: Path) -> None:
    other = tmp_path / "other"
    store.write(layer(), other)
    first, second = folder / "w_in.safetensors", folder / "w_out.safetensors"
    whole = first.read_bytes(), second.read_bytes()
    length = 8 + int.from_bytes(whole[0][:8], "little")

    def foreign(path: Path) -> None:
        safetensors.torch.save_file({"w_in": torch.zeros(1, 3, 4)}, path)

    damages = [
        (lambda: first.unlink(), "rows is no store: w_in.safetensors is missing"),
        (lambda: second.unlink(), "rows is no store: w_out.safetensors is missing"),
        (lambda: first.write_bytes(whole[0][:-1]), "w_in.safetensors is cut: it has"),
        (lambda: second.write_bytes(whole[1][: len(whole[1]) // 2]), "w_out.safetensors is cut: it has"),
        (lambda: first.write_bytes(whole[0][:length]), "w_in.safetensors is cut"),
        (lambda: first.write_bytes(whole[0] + b"x"), "w_in.safetensors is longer than it says"),
        (lambda: first.write_bytes(whole[0][:100]), "w_in.safetensors is no file of a store"),
        (lambda: first.write_bytes(b""), "w_in.safetensors is no file of a store"),
        (lambda: first.write_bytes(b"\xff" * 64), "w_in.safetensors is no file of a store"),
        (lambda: foreign(first), "w_in.safetensors is no file of a store"),
        (lambda: first.write_bytes(whole[1]), "do not belong together"),
        (lambda: first.write_bytes((other / "w_in.safetensors").read_bytes()), "do not belong together"),
        (lambda: first.write_bytes(whole[0].replace(b"[2, 63, 24]", b"[2, 64, 24]")), "no file of a store"),
    ]
    for damage, message in damages:
        damage()
        with pytest.raises(ValueError, match=message):
            store.open(folder)
        first.write_bytes(whole[0])
        second.write_bytes(whole[1])
    store.open(folder)
    with pytest.raises(ValueError, match="nowhere is no store"):
        store.open(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="provider='masked' computes masked, but execution='conditional'"):
        store.open(folder, "masked")


def test_nothing_changes_converts_or_copies_the_rows(folder: Path) -> None:
    stored = store.open(folder)
    model, x = nn.Sequential(nn.Linear(24, 24), stored), torch.randn(9, 24)
    place = stored.w_in.data_ptr()
    for refused in (lambda: nn.Sequential(stored).bfloat16(), lambda: stored.to("meta"), lambda: stored.double()):
        with pytest.raises(ValueError, match=r"rows of torch\.float32 that stay on the disk"):
            refused()
    with pytest.raises(ValueError, match="for inference alone"):
        stored.train()
    with pytest.raises(ValueError, match=f"the rows of a stored layer are those of {re.escape(str(folder))}"):
        stored.load_state_dict(dict(layer().named_parameters()), strict=False)
    assert not any(name.startswith("1.") for name in model.state_dict())
    model.load_state_dict(model.state_dict())
    model.float().eval().to("cpu").requires_grad_(False)
    for twin in (copy.deepcopy(stored), pickle.loads(pickle.dumps(stored))):
        assert torch.equal(twin(x), stored(x))
        assert twin._maps is not stored._maps
    assert len(pickle.dumps(stored)) < 1000
    assert stored.w_in.data_ptr() == place


def test_a_model_made_fast_keeps_its_stored_rows(folder: Path) -> None:
    model = nn.Sequential(nn.Linear(24, 24), store.open(folder), PathFFF(16, 16, 2)).eval()
    told = optimise_for_cpu(model, linears="keep")
    assert told.left == (("1", "its rows stay on the disk"),)
    assert isinstance(model[1], store.StoredPath)


def test_a_folder_is_found_again_from_elsewhere(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    stored, x = store.open(folder.name), torch.randn(3, 24)
    monkeypatch.chdir(tmp_path.parent)
    assert torch.equal(copy.deepcopy(stored)(x), stored(x))


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux tells of a map's pages")
def test_a_map_has_no_huge_pages(folder: Path) -> None:
    # Provider cpu asks for them, which on some systems reads the whole file.
    stored, areas = store.open(folder), Path("/proc/self/smaps").read_text().split("VmFlags:")
    for file in ("w_in", "w_out"):
        flags = next(after for area, after in itertools.pairwise(areas) if f"{stored.folder}/{file}.saf" in area)
        assert {"nh", "rr"} <= set(flags.splitlines()[0].split())


def test_autocast_narrows_the_output_alone(folder: Path) -> None:
    stored, x = store.open(folder), torch.randn(9, 24)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, (nodes, _) = stored(x), stored.path(x.bfloat16())
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, stored(x).bfloat16())
    assert torch.equal(nodes, stored.path(x.bfloat16().float())[0])
    with pytest.raises(ValueError, match=r"the input is torch.bfloat16, but the layer's weights are torch.float32"):
        stored(x.bfloat16())


def test_visits_of_nodes_are_counted_from_leaves(folder: Path) -> None:
    stored = store.open(folder)
    nodes, _ = stored.path(x := torch.randn(100, 24))
    expected = torch.stack([torch.bincount(nodes[:, tree].flatten(), minlength=63) for tree in range(2)])
    counts = measure(stored.route(x)).counts
    assert torch.equal(store.node_visits(counts), expected)
    row = (24 + 16) * 4
    assert stored.warm(counts, 10**9) == row * int((expected > 0).sum())
    assert stored.warm(counts, 5 * row + 1) == 5 * row
    with pytest.raises(ValueError, match=r"counts must be \(2, 32\), got \(1, 32\)"):
        stored.warm(counts[:1], 1)


MB = 2**20


def limited(folder: Path, provider: str) -> None:
    """For a process of its own: pass tokens by a layer of which it may own no copy."""
    stored = store.open(folder, provider)
    torch.manual_seed(1)
    x = torch.randn(96, 768)
    with torch.no_grad():
        stored(x[:1]), stored.path(x[:1])  # what is made once is made, and what is imported late is
        torch.testing.assert_close(x, x)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    most = int(status["VmData"].split()[0]) * 1024 + 24 * MB
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    assert stored.w_in.nbytes > 45 * MB < stored.w_out.nbytes
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        stored.w_in.clone()
    stored.release()
    assert stored.resident_bytes < 1 * MB
    with torch.no_grad():
        y = torch.cat([stored(x[:1]), stored(x[1:])])
        resident = stored.resident_bytes
        nodes, scores = (part[:, 0] for part in stored.path(x))
    # The definition, on the rows that were visited.
    assert stored.b_in is not None
    right = (stored.w_in[0][nodes].double() * x.double()[:, None]).sum(-1) + stored.b_in[0][nodes]
    clear = right[:, :-1].abs() > 1e-4
    assert (nodes[:, 0] == 0).all()
    assert ((nodes[:, 1:] == child(nodes[:, :-1], right[:, :-1])) | ~clear).all()
    assert clear.double().mean() > 0.99
    torch.testing.assert_close(scores.double(), right, rtol=1e-4, atol=1e-4)
    expected = (gelu(right)[..., None] * stored.w_out[0][nodes].double()).sum(1)
    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-4)
    # A row of 3 KB lies in two pages at most, in each of two files, and its bias in one.
    hot = nodes.unique().numel()
    assert 300 < hot < 96 * 14
    assert resident <= hot * 5 * 4096 + 2 * MB


def test_a_layer_larger_than_the_memory_a_process_may_have(tmp_path: Path) -> None:
    """Not the map but a copy of it would count; what is resident of the map is what tokens visited."""
    torch.manual_seed(0)
    total, size = 2**14 - 1, 2048
    base = torch.randn(2, size, 768)

    def blocks() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for start in range(0, total, size):
            count = min(size, total - start)
            rows = base[:, :count].roll(start // size, -1)  # other rows in each block
            yield 0.03 * rows[0], 0.1 * rows[1, :, 0], rows[1]

    store.write_blocks(blocks(), tmp_path / "rows", d_in=768, d_out=768, depth=13)
    for provider in [name for name in ("gather", "cpu") if name in HERE]:
        # Not a fork: what tests before this one gave back would be memory that a copy could take without asking.
        call = f"limited(Path({str(tmp_path / 'rows')!r}), {provider!r})"
        program = f"from pathlib import Path; from tests.fff.test_store import limited; {call}"
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
