"""Which of many texts are read together, so that nothing is padded. Not their tokens, nor the model."""

from collections.abc import Iterator

import numpy as np


def equal_lengths(lengths: np.ndarray, most: int) -> Iterator[np.ndarray]:
    """Numbers of texts of one length each, at most `most` together, from short to long; each text once.

    No place is padded and no mask needed: what a text gets is what it would get alone. A caller puts the results back
    in order by these numbers.

    Args:
        lengths: (n,) tokens of each text.
    """
    order = np.argsort(lengths, kind="stable")
    borders = np.flatnonzero(np.diff(lengths[order])) + 1
    for same in np.split(order, borders) if len(order) else ():
        for start in range(0, len(same), most):
            yield same[start : start + most]
