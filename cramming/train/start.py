"""What a run begins with beside its configuration: a finished model's weights, documents dealt to workers. Not the run.

`train.start` and `train.documents` name folders; what these hold belongs to the run's identity.
"""

from pathlib import Path

from cramming.data.dealt import dealt_fingerprint, open_dealt
from cramming.data.shards import PreparedData
from cramming.errors import UserError
from cramming.model.language import CrammedLanguageModel
from cramming.model.saved import Pretrained, load_tokenizer, load_weights, open_pretrained
from cramming.parallel.world import World
from cramming.train.root import PretrainRoot


def start_of(root: PretrainRoot) -> Pretrained | None:
    """The checked model that the run begins from; None where it begins afresh. UserError as `open_pretrained`."""
    return None if root.train.start is None else open_pretrained(Path(root.train.start))


def start_from(start: Pretrained, model: CrammedLanguageModel) -> None:
    """Give a fresh model its weights; moments, schedules and the position in the data begin anew.

    Raises:
        UserError: they do not fit the model that the configuration asks for.
    """
    ours, theirs = model.state_dict(), load_weights(type(model), start).state_dict()
    for name in sorted(ours.keys() | theirs.keys()):
        found, wanted = (list(each[name].shape) if name in each else None for each in (theirs, ours))
        if found != wanted:
            raise UserError(
                f"train.start: {name} is {found or 'missing'} in {start.folder} and {wanted or 'missing'} in the model "
                "that is to be trained; set `model` and `ffn` as that one has them."
            )
    model.load_state_dict(theirs)


def check_start(root: PretrainRoot, data: PreparedData) -> None:
    """Refuse a model to start from that reads other tokens than the data hold (UserError)."""
    if (start := start_of(root)) and load_tokenizer(start).get_vocab() != data.tokenizer().get_vocab():
        raise UserError(
            f"train.start: {start.folder} reads other tokens than {data.folder} holds; give a model that was trained "
            "with this tokenizer, or prepare the text with its own (data.tokenizer)."
        )


def with_documents(root: PretrainRoot, data: PreparedData, world: World) -> PreparedData:
    """The data as this worker reads them: with the documents that were dealt to it, if they were (UserError)."""
    if root.train.documents is None:
        return data
    folder, trusted = Path(root.train.documents), not root.data.verify
    return open_dealt(folder, data, world.worker, world.workers, trusted=trusted)


def origins(root: PretrainRoot) -> dict[str, str]:
    """Hashes of what the two keys name, by the keys' names; nothing where they are not set. UserError as above."""
    found = {}
    if start := start_of(root):
        found["start"] = start.weights_sha256
    if root.train.documents is not None:
        found["documents"] = dealt_fingerprint(Path(root.train.documents))
    return found
