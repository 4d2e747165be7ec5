"""A pretraining run as a file, for a machine without Hydra: configuration and prepared data. Not the run itself."""

from pathlib import Path

from cramming.errors import UserError
from cramming.files import read_json, write_json
from cramming.train.root import PretrainRoot
from cramming.values import build


def write_order(root: PretrainRoot, data: Path, folder: Path) -> Path:
    """Write a pretraining run's configuration and prepared data as `scripts/pretrain_plain.py` reads them."""
    path = folder / f"{root.run_name}.json"
    write_json(path, {"config": root.as_dict(), "data": str(data)})
    return path


def read_order(path: Path) -> tuple[PretrainRoot, Path]:
    """What `write_order` wrote: configuration and prepared folder.

    Raises:
        UserError: the file is missing, damaged, or of other code.
    """
    content = read_json(path)
    try:
        return build(PretrainRoot, content["config"]), Path(content["data"])
    except (KeyError, TypeError, UserError) as error:
        found = error if isinstance(error, UserError) else repr(error)
        raise UserError(f"{path} does not fit this code ({found}); write it again with scripts/prepare.py.") from None
