"""Sentences per second of several encoders on the same texts. Not a layer's time (bench)."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

from cramming.sentences.encoder import SentenceEncoder


def sentences_per_s(
    encoders: Mapping[str, SentenceEncoder],
    texts: Sequence[str],
    batch: int = 32,
    rounds: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median over rounds of texts per second, tokenising included; the encoders take turns, after one round unmeasured.

    Taking turns, they meet the same neighbours on the machine: a quotient of two is firmer than either.
    """
    found: dict[str, list[float]] = {name: [] for name in encoders}
    for turn in range(rounds + 1):
        for name, encoder in encoders.items():
            begin = clock()
            encoder.encode(texts, batch)
            speed = len(texts) / (clock() - begin)
            found[name] += [speed] if turn else []
    return {name: statistics.median(values) for name, values in found.items()}
