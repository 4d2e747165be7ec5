"""The regions page in a real browser: clicked, and read as it appears. And what its script refuses."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cramming.errors import UserError
from cramming.files import sha256, write_json
from cramming.regions.measure import measure, node_margins
from cramming.regions.page import contents, page, write_page
from fff.topology import first_node, level_of
from tests.helpers.commands import inline
from tests.helpers.data import make_documents
from tests.helpers.saved import save_model

CHROMIUM = shutil.which("chromium")
DRIVER = shutil.which("chromedriver")
HARMLESS = '</script><script>document.title = "broken"</script> 🐸 the gräy frog & the river'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("regions")
    (home / "text.txt").write_text("\n\n".join([*make_documents(60), HARMLESS, *make_documents(5, seed=9)]))
    save_model(home / "model")
    write_page(measure(home / "model", home / "text.txt", 4000), home / "page.html")
    return home


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is missing: pip install selenium")
    if not CHROMIUM or not DRIVER:
        pytest.skip("chromium or chromedriver is missing: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    flags = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking "
    flags += "disable-component-update disable-sync window-size=1400,1000"
    for flag in [*flags.split(), f"user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


class Reader:
    """The page as its user sees it."""

    def __init__(self, browser: Any, path: Path) -> None:
        self.browser = browser
        browser.get(path.as_uri())

    def one(self, css: str) -> Any:
        return self.browser.find_element("css selector", css)

    def all(self, css: str) -> list[Any]:
        return self.browser.find_elements("css selector", css)

    def text(self, css: str) -> str:
        return self.one(css).text.replace("\u00a0", " ")

    def click(self, css: str) -> None:
        self.one(css).click()

    def choose(self, select: str, value: int) -> None:
        self.click(f"{select} option[value='{value}']")

    def search(self, word: str) -> None:
        self.one("#word").clear()
        self.one("#word").send_keys(word + "\n")


@pytest.fixture
def reader(browser: Any, folder: Path) -> Iterator[Reader]:
    yield Reader(browser, folder / "page.html")
    assert [entry["message"] for entry in browser.get_log("browser")] == []


def counted(folder: Path, layer: int, tree: int, node: int) -> int:
    """Tokens at a node, counted from the measurement itself."""
    found = measure(folder / "model", folder / "text.txt", 4000).layers[layer]
    level = level_of(node)
    return int((found.leaves[tree] >> (found.depth - level) == node - first_node(level)).sum())


def test_clicking_shows_a_nodes_numbers_and_tokens(reader: Reader, folder: Path) -> None:
    assert "text.txt: 4,000 tokens" in reader.text("#about")
    assert reader.text("#title") == "Root: the whole tree"
    assert "bits of at most 6" in reader.text("#entropy")
    assert len(reader.all("rect.node")) == 2**6 - 1
    reader.click("[data-node='4']")
    assert reader.text("#title") == "Node 4, level 2 of 6"
    assert f"({counted(folder, 0, 0, 4):,})" in reader.text("#share")
    assert "left, right" in reader.text("#panel")
    assert "median" in reader.text("#margins")
    assert reader.one("[data-node='1']").get_attribute("class") == "node above"
    rows = reader.all("#typical tr.opens")
    assert len(rows) > 3
    assert len(rows[0].find_elements("css selector", "mark")) == 1
    rows[0].click()
    assert len(rows[0].find_elements("css selector", "mark")) > 1


def test_layer_tree_and_level_are_chosen(reader: Reader, folder: Path) -> None:
    reader.choose("#layer", 1)
    reader.choose("#tree", 1)
    reader.choose("#level", 6)
    assert reader.text("#drawn") == "blocks.1.ffn, tree 1: usage"
    assert len(reader.all("rect.node")) == 2**7 - 1
    reader.click("#fullest tr.opens")
    leaf = int(reader.text("#title").split()[1].rstrip(","))
    assert f"({counted(folder, 1, 1, leaf + first_node(6)):,})" in reader.text("#share")
    assert "takes no decision" in reader.text("#margins")
    assert f'"blocks.1.ffn"), {leaf}, tree=1)' in reader.text("#edit")
    for _ in range(3):
        reader.click("#up")
    reader.click("#focus")
    assert len(reader.all("rect.node")) == 2**4 - 1
    reader.click("#right")
    assert "level 4 of 6" in reader.text("#title")
    reader.click("#whole")
    assert len(reader.all("rect.node")) == 2**7 - 1


def test_a_searched_word_lights_up(reader: Reader, folder: Path) -> None:
    occurrences = (folder / "text.txt").read_text().lower().count(" boat ")  # beyond the last token too
    reader.search("BOAT")
    found = reader.text("#found")
    number = int(found.split(":")[1].split()[0])
    assert 0 < number <= occurrences
    assert "tokens of “BOAT”" in reader.text("#drawn")
    hits = int(reader.text("#hits p").split()[0])
    assert hits >= number
    assert reader.text("#drawing text:not(.level)") == str(hits)
    reader.click("#found button")
    assert reader.text("#title").startswith("Leaf ")
    assert 0 < int(reader.text("#hits p").split()[0]) <= hits
    assert {mark.text.lower() for mark in reader.all("#hits mark")} <= {"boat", "b", "bo", "boa", "o", "at", "oat", "t"}
    reader.search("zebra(")
    assert "does not occur" in reader.text("#found")
    reader.click("#clear")
    assert not reader.one("#found").is_displayed()
    assert reader.text("#drawn").endswith("usage")


def test_text_is_never_markup_and_offsets_are_the_browsers(browser: Any, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(HARMLESS)
    write_page(measure(folder / "model", tmp_path / "text.txt", 4000), tmp_path / "page.html")
    reader = Reader(browser, tmp_path / "page.html")
    assert browser.title == f"Regions of {folder.name}"
    reader.search("river")
    assert reader.text("#found").startswith("“river”: 1 occurrence ")
    assert "".join(mark.text for mark in reader.all("#hits mark")) == "river"
    reader.search("</script>")
    assert reader.text("#found").startswith("“</script>”: 2 occurrences")


def test_depth_11_loads_within_two_seconds(browser: Any, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("\n\n".join(make_documents(4000)))
    save_model(tmp_path / "model", trees=1, depth=11)
    regions = measure(tmp_path / "model", tmp_path / "text.txt", 65536)
    assert len(regions.probe.ids) == 65536
    write_page(regions, tmp_path / "page.html")
    reader = Reader(browser, tmp_path / "page.html")
    assert int(reader.one("body").get_attribute("data-ready")) < 2000  # milliseconds, see page.js
    reader.choose("#level", 11)
    assert len(reader.all("rect.node")) == 2**12 - 1
    reader.click("#fullest tr.opens")
    assert "level 11 of 11" in reader.text("#title")


def test_the_page_asks_for_no_network(folder: Path) -> None:
    content = (folder / "page.html").read_text()
    assert "default-src 'none'" in content
    for asking in ("src=", "@import", "fetch(", "url(", "XMLHttpRequest", "http://", "https://"):
        assert asking not in content.replace("http://www.w3.org/2000/svg", "")


def test_margins_are_each_nodes_quantiles(folder: Path) -> None:
    draw = np.random.default_rng(0)
    leaves, margins = draw.integers(0, 8, 300).astype(np.uint8), draw.random((300, 3), dtype=np.float32)
    leaves[leaves == 5] = 4
    leaves[leaves >= 6] = 1  # so that no token visits node 6
    found = node_margins(leaves, margins)
    for node in range(7):
        level = level_of(node)
        inside = margins[leaves >> (3 - level) == node - first_node(level), level]
        if len(inside):
            np.testing.assert_allclose(found[node], np.quantile(inside, [0.05, 0.25, 0.5, 0.75, 0.95]), rtol=1e-5)
        else:
            assert np.isnan(found[node]).all()
            assert node == 6
    regions = measure(folder / "model", folder / "text.txt", 70)  # two windows and a shorter one
    assert regions.layers[1].leaves.shape == (2, 70)
    assert contents(regions)["layers"][1]["trees"][0]["leaves"]["type"] == "u1"
    assert "{{" not in page(regions).replace(regions.probe.text, "")


def test_the_leaf_layer_is_shown_too(folder: Path, tmp_path: Path) -> None:
    model = save_model(tmp_path / "leaf", kind="leaf", depth=3, leaf_width=4)
    found = measure(model, folder / "text.txt", 100).layers[0]
    assert found.leaves.shape == (1, 100)
    assert found.margins.shape == (1, 7, 5)
    assert not found.editable


def test_depth_0_and_one_token_are_shown(browser: Any, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the")
    save_model(tmp_path / "model", depth=0)
    write_page(measure(tmp_path / "model", tmp_path / "text.txt", 100), tmp_path / "page.html")
    reader = Reader(browser, tmp_path / "page.html")
    assert "0.00 bits of at most 0" in reader.text("#entropy")


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "missing"), (b"", "empty"), (b" \n ", "empty"), (b"a\0b", "UTF-8"), (b"\xff\xfe\x41", "UTF-8")],
)
def test_a_bad_text_is_named(folder: Path, tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "probe.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=rf"probe\.txt .*{message}"):
        measure(folder / "model", path, 100)


def test_a_bad_checkpoint_is_named(folder: Path, tmp_path: Path) -> None:
    text = folder / "text.txt"
    with pytest.raises(UserError, match="nowhere holds no finished model"):
        measure(tmp_path / "nowhere", text, 100)
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.json").write_text('{"train": {}, "experiment": "quickstart"}')  # as a run begins
    with pytest.raises(UserError, match="begun holds no finished model"):
        measure(tmp_path / "begun", text, 100)
    with pytest.raises(UserError, match=r"dense has no FFF layers \(ffn.kind is 'dense'\).*DEPTH=7"):
        measure(save_model(tmp_path / "dense", kind="dense", width=64, activation="gelu"), text, 100)
    with pytest.raises(UserError, match=r"its paths follow from the tokens' ids \(ffn=fixed\)"):
        measure(save_model(tmp_path / "fixed", kind="fixed", trees=1, depth=2, path="token"), text, 100)
    (tmp_path / "signs.txt").write_text("七人の侍")
    with pytest.raises(UserError, match="knows nothing of this text"):
        measure(folder / "model", tmp_path / "signs.txt", 100)


def test_the_script_prints_what_it_wrote_and_refuses_in_one_line(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "scripts/regions.py", str(folder / "model"), str(folder / "text.txt"), "--out"]
    done = subprocess.run([*command, str(tmp_path / "new" / "a.html")], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "new" / "a.html").stat().st_size > 10_000
    assert str(tmp_path / "new" / "a.html") in done.stdout
    refused = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: --out:")


def test_what_the_command_line_cannot_do_is_one_line_before_the_model_is_read(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cramming.regions.measure.load_encoder", lambda _: pytest.fail("the model was read first"))
    (tmp_path / "file").touch()
    (tmp_path / "binary.txt").write_bytes(bytes(range(1, 256)) * 20)
    text = str(folder / "text.txt")
    for arguments in (
        [text, "--out=/proc/page.html"],
        [text, f"--out={tmp_path}/file/page.html"],
        [text, f"--out={tmp_path}"],
        [text, f"--out={tmp_path}/a.html", "--tokens=-1"],
        [str(tmp_path / "binary.txt"), f"--out={tmp_path}/a.html"],
        [str(tmp_path), f"--out={tmp_path}/a.html"],
        ["/dev/zero", f"--out={tmp_path}/a.html"],
        ["/dev/null", f"--out={tmp_path}/a.html"],
    ):
        done = inline("regions", str(folder / "model"), *arguments)
        assert done.returncode == 2
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["binary.txt", "file"]


def test_more_tokens_than_a_page_holds_are_what_it_holds(folder: Path) -> None:
    few = measure(folder / "model", folder / "text.txt", 10**6)
    many = measure(folder / "model", folder / "text.txt", 10**40)
    assert many.probe.whole
    np.testing.assert_array_equal(many.probe.ids, few.probe.ids)


def test_a_damaged_model_is_named(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(folder / "model", run / "model")
    weights = run / "model" / "model.safetensors"
    write_json(run / "record.json", {"name": "run", "weights_sha256": sha256(weights)})
    assert measure(run, folder / "text.txt", 50).run == "run"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors is damaged .* exports the model again"):
        measure(run, folder / "text.txt", 50)
