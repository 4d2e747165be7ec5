"""Text and prepared data in S3, by a server that speaks its protocol: killed, cut off, silent, refused, continued."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from cramming import remote
from cramming.data.prepare import place, prepare
from cramming.data.stored import put_prepared, verify
from cramming.errors import Passing
from tests.helpers.commands import inline
from tests.helpers.data import make_documents, text_config, write_txt
from tests.helpers.s3 import Between
from tests.helpers.swept import TINY

ROOT = Path(__file__).parents[3]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return write_txt(tmp_path / "a.txt", make_documents(300))


@pytest.fixture
def between(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Between]]:
    """Ends those that a test makes, which the store's library then uses."""
    made: list[Between] = []
    yield made
    for each in made:
        each.close()


def reached_by(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on this process reaches the store so."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def test_a_run_trains_from_data_that_were_put_there(s3: str, text: Path, tmp_path: Path) -> None:
    words = [*TINY.split(), f"data.files=[{text}]", f"data.remote={s3}"]
    assert inline("prepare", *words, f"output_dir={tmp_path}/made").returncode == 0
    (folder,) = (tmp_path / "made/data").glob("tiny-*")
    told = inline("verify", f"{s3}/{folder.name}")
    assert told.returncode == 0, told.stderr
    assert told.stdout.startswith("whole ")
    done = inline("pretrain", *words, f"output_dir={tmp_path}/far", f"results_dir={tmp_path}/results")
    assert done.returncode == 0, done.stderr
    assert "fetch" in done.stderr
    assert (tmp_path / "far/data" / folder.name / "manifest.json").read_bytes() == (
        folder / "manifest.json"
    ).read_bytes()


def test_killed_while_it_uploads_it_is_not_there_and_the_same_command_puts_the_rest(
    s3: str,
    text: Path,
    tmp_path: Path,
    between: list[Between],
) -> None:
    config = text_config([text])
    data = prepare(config, tmp_path)
    there, size = f"{s3}/{data.folder.name}", (data.folder / "train-00000.bin").stat().st_size
    between.append(Between(os.environ["AWS_ENDPOINT_URL"], size, silent=True))
    code = (
        "import sys; from pathlib import Path; from cramming.data.stored import put_prepared; "
        "put_prepared(Path(sys.argv[1]), sys.argv[2])"
    )
    environment = os.environ | {"AWS_ENDPOINT_URL": between[0].address, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", code, str(data.folder), s3], env=environment, cwd=ROOT)
    assert between[0].over.wait(120), "a file is on its way"
    process.kill()
    process.wait()
    store = fsspec.filesystem("s3")
    store.invalidate_cache()
    assert store.find(there), "something had arrived"
    assert not remote.exists(f"{there}/manifest.json", "data.remote")
    with pytest.raises(Passing, match=r"manifest\.json"):
        verify(there)
    assert put_prepared(data.folder, s3) == there
    assert verify(there)["fingerprint"] == data.fingerprint


@pytest.mark.parametrize("way", ["put", "fetch"])
def test_a_server_that_goes_away_is_one_error_and_the_same_command_goes_on(
    way: str, s3: str, text: Path, tmp_path: Path, between: list[Between],
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    config = text_config([text], remote=s3)
    data = prepare(text_config([text]), tmp_path / "made")
    if way == "fetch":
        put_prepared(data.folder, s3)
    capfd.readouterr()
    whole = os.environ["AWS_ENDPOINT_URL"]
    between.append(Between(whole, (data.folder / "train-00000.bin").stat().st_size if way == "put" else 4000))
    reached_by(between[0].address, monkeypatch)
    home = tmp_path / "far"
    with pytest.raises(Passing, match=r"data\.remote: s3://bucket/folder/.* cannot be reached .*credentials\."):
        prepare(config, home)
    assert "Traceback" not in capfd.readouterr().err
    assert between[0].over.is_set()
    if way == "fetch":
        assert not place(config, home).exists()
    reached_by(whole, monkeypatch)
    assert prepare(config, home).fingerprint == data.fingerprint
    put_prepared(place(config, home), s3)  # as scripts/prepare.py does with what was made before
    assert verify(f"{s3}/{data.folder.name}")["fingerprint"] == data.fingerprint


def test_a_server_that_falls_silent_is_an_error_too(
    s3: str,
    between: list[Between],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fsspec.get_filesystem_class("s3"), "read_timeout", 0.2)
    between.append(Between(os.environ["AWS_ENDPOINT_URL"], 0, silent=True))
    reached_by(between[0].address, monkeypatch)
    with pytest.raises(Passing, match=r"data\.remote: .* cannot be reached \(ReadTimeoutError"):
        remote.exists(f"{s3}/manifest.json", "data.remote")
    assert 2 <= between[0].asked <= 8, "s3fs asks five times, and botocore beneath it not five times for each"


def test_what_the_user_says_of_patience_is_kept(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "7")
    files, _ = remote.store(f"{s3}/a", "data.files")
    assert files.config_kwargs == {}
    monkeypatch.delenv("AWS_MAX_ATTEMPTS")
    files, _ = remote.store(f"{s3}/a", "data.files")
    assert files.config_kwargs == remote.ONCE["config_kwargs"]


def test_no_credentials_and_a_bucket_that_is_not_there_are_told(
    s3: str,
    tmp_path: Path,
    text: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done = inline("verify", "s3://nobucket/folder/data")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "s3://nobucket/folder/data/manifest.json cannot be reached" in done.stderr
    assert "bucket does not exist" in done.stderr
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        monkeypatch.delenv(f"AWS_{name}")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    reached_by(os.environ["AWS_ENDPOINT_URL"], monkeypatch)
    with pytest.raises(Passing, match="NoCredentialsError"):
        prepare(text_config([text], remote=s3), tmp_path)
    assert not list((tmp_path / "data").glob("[!.]*")), "told before long work"


def test_wrong_credentials_are_told_before_long_work(
    s3: str,
    tmp_path: Path,
    text: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from moto.core.responses import ActionAuthenticatorMixin
    from moto.settings import INITIAL_NO_AUTH_ACTION_COUNT  # noqa: F401, that the server can check them at all

    monkeypatch.setattr("moto.settings.INITIAL_NO_AUTH_ACTION_COUNT", 0.0)
    monkeypatch.setattr(ActionAuthenticatorMixin, "request_count", 0)
    with pytest.raises(Passing, match=r"PermissionError.*the store's credentials"):
        prepare(text_config([text], remote=s3), tmp_path)
    assert not list((tmp_path / "data").glob("[!.]*"))
