"""What workers tell each other before an exchange: that they fit together, and who has a vote. No weights."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cramming.parallel.peers import Peers

DIGEST = 16  # bytes; that two things have one digest is as likely as nothing that ever happened

CARD = 1 + 2 * DIGEST  # bytes that a worker sends of itself: what it comes with, its facts' name and its past's

# What a worker comes with: what it trained since the last meeting; what it has just taken over from another one;
# nothing, for it begins, or goes on from its checkpoint.
TRAINED, FRESH, BEGINS = range(3)


class Refused(Exception):
    """Workers that cannot take part, and why, by their numbers."""

    def __init__(self, why: Mapping[int, str]) -> None:
        super().__init__(" ".join(why.values()))
        self.why = dict(why)


class Astray(Exception):
    """Workers that do not stand where the first one does, by their numbers: they come from another meeting."""

    def __init__(self, workers: list[int]) -> None:
        super().__init__(f"workers {workers} come from another meeting")
        self.workers = workers


def digest(*parts: bytes) -> bytes:
    """DIGEST bytes that name the parts."""
    found = hashlib.blake2b(digest_size=DIGEST)
    for part in parts:
        found.update(len(part).to_bytes(8, "little") + part)
    return found.digest()


def greet(peers: Peers, facts: Mapping[str, Any], past: bytes, part: int = TRAINED) -> list[bool]:
    """Whether each worker has trained since the last meeting; they meet. What is sent has one size, whatever they are.

    The first worker below is the first that has trained; if none has, the first that has taken over nothing.

    Args:
        facts: plain values by name, alike in all that fit together.
        past: DIGEST bytes that name the last meeting.
        part: TRAINED, FRESH or BEGINS.

    Raises:
        Refused: facts of some differ from those of the first worker; everywhere.
        Astray: the pasts of some do, or some begin where others have trained; everywhere.
    """
    text = json.dumps(dict(facts), sort_keys=True).encode()
    card = bytes([part]) + digest(text) + past
    cards = [bytes(each.numpy()) for each in peers.gather(_tensor(card))]
    parts = [each[0] for each in cards]
    first = min(range(peers.size), key=lambda rank: (TRAINED, BEGINS, FRESH).index(parts[rank]))
    if any(each[1 : 1 + DIGEST] != cards[first][1 : 1 + DIGEST] for each in cards):
        raise Refused(_differences(peers, text, first))
    lost = [each[1:] != cards[first][1:] or (each[0] == BEGINS and parts[first] == TRAINED) for each in cards]
    if any(lost):
        raise Astray([name for name, one in zip(peers.names, lost, strict=True) if one])
    return [each == TRAINED for each in parts]


def _differences(peers: Peers, text: bytes, first: int) -> dict[int, str]:
    """In what the others' facts differ from the first worker's; they meet."""
    (longest,) = torch.stack(peers.gather(torch.tensor([len(text)]))).max(0).values.tolist()
    found = [json.loads(bytes(each.numpy())) for each in peers.gather(_tensor(text.ljust(longest)))]
    why = {}
    for name, theirs in zip(peers.names, found, strict=True):
        for key in sorted(theirs.keys() | found[first].keys()):
            ours, other = found[first].get(key), theirs.get(key)
            if ours != other:
                why[name] = (
                    f"{key} is {other!r} in worker {name} and {ours!r} in worker {peers.names[first]}; start all of "
                    "them with the same code and the same configuration."
                )
                break
    return why


def _tensor(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)
