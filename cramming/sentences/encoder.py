"""Texts -> vectors of one length, by the mean over an encoder's last hidden states. Not where texts come from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from cramming.data.lengths import equal_lengths
from cramming.errors import UserError

CHUNK = 4096  # texts tokenised at a time, which bounds the memory of Python lists


@dataclass(frozen=True)
class SentenceEncoder:
    """An encoder that makes a vector of a text.

    Attributes:
        model: called with input_ids (B, S) int64, none of them padding; its output has last_hidden_state (B, S, H).
        tokenizer: the model's.
        max_length: tokens that are read of a text, special ones included.
        identity: what the vectors depend on besides the text, as plain values.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    identity: dict[str, Any]

    def encode(self, texts: Sequence[str], batch: int = 32, progress: str = "") -> np.ndarray:
        """Vectors (N, H) float32 of length 1, in the order of the texts; see `encode_ids`."""
        return self.encode_ids(self._tokens(texts), batch, progress)

    @torch.inference_mode()
    def encode_ids(
        self, tokens: Sequence[Sequence[int] | np.ndarray], batch: int = 32, progress: str = ""
    ) -> np.ndarray:
        """The same of texts that are ids already.

        Texts of one length are computed together, so that nothing is padded; the longest first, so that a lack of
        memory shows at once.

        Args:
            batch: texts of a forward pass, at most.
            progress: what a bar on the terminal calls the work; "" for no bar.

        Raises:
            UserError: there is no text, or one without a single token.
        """
        if not tokens:
            raise UserError("there is no text to embed; give one at least.")
        lengths = np.array([len(row) for row in tokens])
        if not lengths.all():
            raise UserError(f"text {int(lengths.argmin()) + 1} of {len(tokens)} has no token; leave it out.")
        batches = list(equal_lengths(lengths, batch))[::-1]
        found = []
        with tqdm(total=len(tokens), desc=progress, unit=" texts", leave=False, disable=not progress) as bar:
            for rows in batches:
                found.append(self._pooled(np.stack([tokens[row] for row in rows])))
                bar.update(len(rows))
        vectors = np.empty((len(tokens), found[0].shape[1]), np.float32)
        vectors[np.concatenate(batches)] = np.concatenate(found)
        return vectors

    def _tokens(self, texts: Sequence[str]) -> list[np.ndarray]:
        found: list[np.ndarray] = []
        for start in range(0, len(texts), CHUNK):
            part = list(texts[start : start + CHUNK])
            ids = self.tokenizer(part, truncation=True, max_length=self.max_length, padding=False)["input_ids"]
            found += [np.asarray(row, np.int32) for row in ids]
        return found

    def _pooled(self, ids: np.ndarray) -> np.ndarray:
        """Means of the last hidden states over the tokens (B, S) of each text, of length 1."""
        device = next(self.model.parameters()).device
        states = self.model(input_ids=torch.from_numpy(ids.astype(np.int64)).to(device)).last_hidden_state
        return nn.functional.normalize(states.float().mean(1), dim=-1).cpu().numpy()
