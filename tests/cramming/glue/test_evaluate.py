"""What `make glue` takes for held out: the data of the run itself, found by their fingerprint."""

from dataclasses import replace
from pathlib import Path

import pytest

from cramming.data.prepare import prepare
from cramming.errors import UserError
from cramming.files import read_json, write_json
from cramming.glue.evaluate import held_out_documents
from cramming.model.saved import open_pretrained
from tests.helpers.composed import composed
from tests.helpers.data import make_documents, text_config, write_txt
from tests.helpers.glue import tiny_run


def test_a_run_finds_its_own_data_whatever_their_sources_are_now(tmp_path: Path) -> None:
    text = write_txt(tmp_path / "corpus.txt", make_documents(300))
    root = replace(composed("glue"), output_dir=str(tmp_path / "out"), data=text_config([text]))
    own = prepare(root.data, tmp_path / "out")
    run = tiny_run(tmp_path / "out" / "runs" / "tiny-1x2-s0-abc123")
    write_json(run / "record.json", read_json(run / "record.json") | {"data_fingerprint": own.fingerprint})
    write_txt(text, make_documents(300, seed=1))
    found = held_out_documents(root, open_pretrained(run))
    assert found == own.held_out_documents()
    assert found
    text.unlink()
    assert held_out_documents(root, open_pretrained(run)) == found
    moved = replace(root, output_dir=str(tmp_path / "elsewhere"))
    assert held_out_documents(moved, open_pretrained(run)) == found


def test_data_that_are_gone_and_changed_are_named_with_both_fingerprints(tmp_path: Path) -> None:
    text = write_txt(tmp_path / "corpus.txt", make_documents(300))
    root = replace(composed("glue"), output_dir=str(tmp_path / "out"), data=text_config([text]))
    run = tiny_run(tmp_path / "out" / "runs" / "tiny-1x2-s0-abc123")  # trained on "tokens"
    with pytest.raises(UserError, match=r"fingerprint tokens\) are not in .*out/data, and data\.\* makes other"):
        held_out_documents(root, open_pretrained(run))
