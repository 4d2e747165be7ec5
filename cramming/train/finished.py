"""A pretraining run that has ended: recognised, with the data that it was trained on. Not the run itself (run.py)."""

from pathlib import Path

from safetensors import SafetensorError, safe_open

from cramming.data.shards import MANIFEST, find_prepared
from cramming.errors import Diverged, UserError
from cramming.files import read_json, sha256, write_json
from cramming.record import Record, read_record, recognised, record_file
from cramming.train.oracle import oracle_metric
from cramming.train.root import PretrainRoot
from cramming.train.start import origins

# Sources on this machine: what they hold now is known without a download.
LOCAL = ("docs", "text")


def ended_already(root: PretrainRoot, prepared: Path | None) -> bool:
    """Whether the run has ended; says so, and puts its record back among the results where it is missing.

    Raises:
        UserError: its record is damaged, or it ended on other data than the configuration names now.
        Diverged: it ended with numbers that are none.
    """
    path = root.run_folder / "record.json"
    if not path.exists():
        return False
    record = read_record(path)
    data = record.get("data_fingerprint", "")
    now = present_data(root, prepared, data)
    if now is not None and now != data:
        raise UserError(
            f"{root.run_name} is {record['status']} already, on data of fingerprint {data}; data.* gives {now} now. "
            "For a new run give the new text a name of its own (data.name=...), or put the old text back."
        )
    refuse_other_origins(root, record)
    name, _ = recognised(root.records, record["name"], {"data_fingerprint": data})
    kept = record_file(root.records, name)
    if not kept.exists():
        write_json(kept, record | {"name": name})
        print(f"written    {kept}, which was missing, from {path}")
    refuse_diverged(root, record)
    print(f"{root.run_name} is {record['status']} already: {root.run_folder}")
    if lacking := [name for name in map(oracle_metric, root.train.oracle) if name not in record["metrics"]]:
        print(
            f"its record lacks {', '.join(lacking)}, which a run takes at its end (train.oracle); to have it trained "
            f"again with them, move {root.run_folder} away"
        )
    return True


def refuse_other_origins(root: PretrainRoot, record: Record) -> None:
    """UserError where `train.start` or `train.documents` hold something else now; what is gone is not compared."""
    try:
        now = origins(root)
    except UserError:
        return
    for key, value in now.items():
        if record.get(key) != value:
            raise UserError(
                f"{root.run_name} is {record['status']} already, with another content of train.{key} ("
                f"{str(record.get(key))[:16]}, now {value[:16]}); put that back, or give the new one another path."
            )


def refuse_diverged(root: PretrainRoot, record: Record) -> None:
    """Say of a run that has ended with numbers that are none (Diverged) how to get another one."""
    if record["status"] != "finished":
        raise Diverged(
            f"{root.run_name} is {record['status']} already ({record.get('error')}), and the same command would train "
            f"the same again. Train another run: lower train.lr={root.train.lr:g}, or take another seed. To train this "
            f"one again after all, move {root.run_folder} away."
        )


def model_is_whole(model: Path, content: Record) -> bool:
    """Whether a finished run's model is all there, with the weights that its record knows (old records know none)."""
    weights = model / "model.safetensors"
    if not all((model / name).is_file() for name in ("config.json", "tokenizer.json", weights.name)):
        return False
    if "weights_sha256" in content:
        return sha256(weights) == content["weights_sha256"]
    try:
        with safe_open(weights, "pt"):
            return True
    except SafetensorError:
        return False


def present_data(root: PretrainRoot, prepared: Path | None, trained: str) -> str | None:
    """Fingerprint of the data that the configuration names now; None where that cannot be known without a download.

    Text whose files are not the prepared ones any more is prepared again: only that says whether its content changed.

    Args:
        prepared: folder of prepared data that stands for the sources.
        trained: fingerprint of what the run was trained on.
    """
    if prepared is not None:
        return str(read_json(prepared / MANIFEST)["fingerprint"])
    if root.data.source not in LOCAL:
        return None
    from cramming.data.prepare import place, prepare  # its sources need libraries that a machine may lack

    folder = Path(root.output_dir)
    try:
        final = place(root.data, folder)
        if (final / MANIFEST).is_file():
            return str(read_json(final / MANIFEST)["fingerprint"])
        if find_prepared(folder, trained) is None:  # removed since: nothing says that the sources have changed
            return None
        print("the sources are not those that were prepared; comparing what they hold", flush=True)
        return prepare(root.data, folder).fingerprint
    except UserError:  # gone, or unreadable: then there is nothing else to train on
        return None
