"""A pretraining that has ended is recognised by its settings and its text, under former names too."""

import json
import math
import os
import shutil
from dataclasses import fields, replace
from pathlib import Path

import pytest

from cramming.errors import Diverged, UserError
from cramming.files import short_hash
from cramming.glue.evaluate import evaluate_run
from cramming.glue.root import GlueRoot
from cramming.record import read_records
from cramming.report.groups import pretrain_groups
from cramming.report.pretraining import pretraining_markdown
from cramming.train.pretrain import pretrain
from cramming.train.root import PretrainRoot
from cramming.train.usage import UsageHook
from cramming.train.validate import Validation
from tests.helpers.tiny import tiny_root


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    pretrain(few_steps(folder))
    return folder


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> PretrainRoot:
    """The finished run, its text and its data, in a place of their own."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    old, new = few_steps(trained).run_folder.name, few_steps(tmp_path)
    (tmp_path / "outputs" / "runs" / old).rename(tmp_path / "outputs" / "runs" / new.run_name)
    return few_steps(tmp_path)


def few_steps(folder: Path) -> PretrainRoot:
    return tiny_root(folder, budget_steps=2, validations=1, checkpoints=1)


def text_of(root: PretrainRoot) -> Path:
    return Path(root.data.files[0])


def shouted(path: Path) -> None:
    path.write_text(path.read_text().replace("cat", "goat"))


def test_the_same_text_is_recognised_whatever_its_time(copy: PretrainRoot, capsys: pytest.CaptureFixture[str]) -> None:
    os.utime(text_of(copy), (1, 1))
    pretrain(copy)
    assert "is finished already" in capsys.readouterr().out
    text_of(copy).unlink()
    pretrain(copy)
    assert "is finished already" in capsys.readouterr().out


@pytest.fixture(scope="module")
def diverged(tmp_path_factory: pytest.TempPathFactory) -> PretrainRoot:
    """A run whose last mark has a number that is none."""
    root = few_steps(tmp_path_factory.mktemp("diverged"))
    real = UsageHook._probe_loss
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(UsageHook, "_probe_loss", lambda *arguments: real(*arguments) * math.nan)
        with pytest.raises(Diverged, match=r"is diverged already \(soft_hard_gap is nan\).*lower train\.lr=0\.003"):
            pretrain(root)
    return root


def test_a_diverged_run_is_told_with_the_way_out(diverged: PretrainRoot) -> None:
    with pytest.raises(Diverged) as told:
        pretrain(diverged)
    text = str(told.value)
    assert "soft_hard_gap is nan" in text
    assert "another seed" in text
    assert f"move {diverged.run_folder} away" in text


@pytest.mark.parametrize("checkpoint", [False, True])
def test_finetuning_a_diverged_run_is_refused_with_the_reason(diverged: PretrainRoot, checkpoint: bool) -> None:
    known = {field.name: getattr(diverged, field.name) for field in fields(diverged)}
    root = GlueRoot(**known, checkpoint=str(diverged.run_folder) if checkpoint else None)
    with pytest.raises(UserError, match=r"is diverged \(soft_hard_gap is nan\); .*lower train\.lr"):
        evaluate_run(root)
    assert len(list(Path(diverged.results_dir).glob("runs/*.json"))) == 1


def test_finetuning_what_diverged_in_mid_run_is_refused_too(tmp_path: Path, monkeypatch) -> None:
    root = few_steps(tmp_path)
    monkeypatch.setattr(Validation, "run", lambda *_: {"loss": math.nan})
    with pytest.raises(Diverged):
        pretrain(root)
    known = {field.name: getattr(root, field.name) for field in fields(root)}
    with pytest.raises(UserError, match=r"is diverged \(The validation's .* is no number.*left no model"):
        evaluate_run(GlueRoot(**known))


def test_the_tables_mark_a_diverged_run(diverged: PretrainRoot) -> None:
    page = pretraining_markdown(pretrain_groups(read_records(Path(diverged.results_dir))))
    assert "none finished, 1 diverged" in page
    assert f"`{diverged.run_name}`: diverged (soft_hard_gap is nan)" in page


def test_another_text_is_told_and_the_way_out_taken(copy: PretrainRoot) -> None:
    shouted(text_of(copy))
    (first,) = read_records(Path(copy.results_dir))
    with pytest.raises(
        UserError, match=rf"finished already, on data of fingerprint {first['data_fingerprint']}; .*name"
    ):
        pretrain(copy)
    pretrain(replace(copy, data=replace(copy.data, name="goats")))
    records = read_records(Path(copy.results_dir))
    assert first in records
    assert len({record["data_fingerprint"] for record in records}) == len(records) == 2


def test_another_seed_on_another_text_is_no_repetition(copy: PretrainRoot) -> None:
    shouted(text_of(copy))
    pretrain(replace(copy, seed=1))
    groups = pretrain_groups(read_records(Path(copy.results_dir)))
    assert [len(group.good) for group in groups] == [1, 1]


def test_the_result_of_another_place_stays(copy: PretrainRoot, tmp_path: Path) -> None:
    shouted(text_of(copy))
    pretrain(replace(copy, output_dir=str(tmp_path / "elsewhere")))
    names = sorted(record["name"] for record in read_records(Path(copy.results_dir)))
    assert len(names) == 2
    pretrain(replace(copy, output_dir=str(tmp_path / "elsewhere")))
    assert sorted(record["name"] for record in read_records(Path(copy.results_dir))) == names


def test_a_run_goes_on_under_the_name_it_had(copy: PretrainRoot, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = replace(copy, ffn=replace(copy.ffn, provider="gather"))
    former = replace(chosen).names[1]
    home = copy.run_folder.parent
    copy.run_folder.rename(home / former.run)
    (home / former.run / "record.json").unlink()
    manifest = home / former.run / "checkpoints" / "step-2" / "checkpoint.json"
    content = json.loads(manifest.read_text())
    content["identity"]["configuration"] = former.identity
    del content["checksum"]
    content["checksum"] = short_hash(content, 64)
    manifest.write_text(json.dumps(content))
    pretrain(replace(chosen))
    assert "continues at step 2" in capsys.readouterr().out
    assert sorted(path.name for path in home.iterdir()) == [former.run]


def test_a_record_tells_layers_and_processes_and_no_folder(trained: Path) -> None:
    (record,) = read_records(trained / "results")
    assert record["resolved"]["ffn"]["leaves"] == 2 * 2 * 8
    assert record["machine"]["processes"] == 1
    assert str(trained) not in json.dumps(record)
