"""STS-B without finetuning: does the cosine of two sentences' vectors rank as people do? Not GLUE's regression."""

from pathlib import Path

import numpy as np

from cramming.glue.metrics import compute_metrics
from cramming.glue.sources import Split, load_local
from cramming.glue.tasks import suite_tasks
from cramming.sentences.encoder import SentenceEncoder


def read_pairs(glue: Path) -> Split:
    """STS-B's dev set, of GLUE's official files in `glue`/STS-B. UserError where they are missing or damaged."""
    return load_local(suite_tasks("glue")["stsb"], glue).dev["dev"]


def stsb(encoder: SentenceEncoder, pairs: Split, batch: int = 32) -> dict[str, float]:
    """Pearson's and Spearman's correlation of cosine and score."""
    assert pairs.second is not None
    vectors = encoder.encode([*pairs.first, *pairs.second], batch, progress="STS-B dev")
    first, second = np.split(vectors, 2)
    metrics = suite_tasks("glue")["stsb"].metrics
    return compute_metrics(metrics, (first * second).sum(1).astype(np.float64), pairs.labels.astype(np.float64))
