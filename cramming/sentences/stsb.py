"""STS-B without finetuning: does the cosine of two sentences' vectors rank as people do? Not GLUE's regression."""

from pathlib import Path

import numpy as np

from cramming.glue.metrics import compute_metrics
from cramming.glue.sources import Split, home_of, read_tsv
from cramming.glue.tasks import suite_tasks
from cramming.sentences.encoder import SentenceEncoder


def read_pairs(glue: Path) -> Split:
    """STS-B's dev set, `glue`/STS-B/dev.tsv of GLUE's official files. UserError where they are missing or damaged."""
    task = suite_tasks("glue")["stsb"]
    return read_tsv(task, home_of(task, glue) / "dev.tsv", 0)[0]


def stsb(encoder: SentenceEncoder, pairs: Split, batch: int = 32) -> dict[str, float]:
    """Pearson's and Spearman's correlation of cosine and score.

    Raises:
        UndefinedMetricError: all cosines are equal.
    """
    assert pairs.second is not None
    vectors = encoder.encode([*pairs.first, *pairs.second], batch, progress="STS-B dev")
    first, second = np.split(vectors, 2)
    metrics = suite_tasks("glue")["stsb"].metrics
    return compute_metrics(metrics, (first * second).sum(1).astype(np.float64), pairs.labels.astype(np.float64))
