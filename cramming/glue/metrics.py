"""Scores of finetuned models as `evaluate.Metric` classes that need no network. Not averages, which `report` makes."""

import math
from collections.abc import Iterable
from typing import Any

import datasets
import evaluate
import numpy as np
from scipy import stats
from sklearn import metrics as sklearn_metrics


class UndefinedMetricError(ValueError):
    """A metric has no value for these predictions, such as a correlation with a constant."""


class OfflineMetric(evaluate.Metric):
    """Base: `compute(predictions=..., references=...)` gives {name: value in [-1, 1]}; held in memory, no network."""

    name_of_value = ""
    value_type = "int64"

    def __init__(self, **kwargs: Any):
        super().__init__(**{"keep_in_memory": True, **kwargs})

    def _build_data_dir(self) -> str:
        """No folder: what is held in memory needs none, and the cache's may not be writable."""
        return ""

    def _info(self) -> evaluate.MetricInfo:
        value = datasets.Value(self.value_type)
        return evaluate.MetricInfo(
            description=self.__class__.__doc__ or "",
            citation="",
            inputs_description="predictions and references of equal length",
            features=datasets.Features({"predictions": value, "references": value}),
        )

    def _compute(self, *, predictions: list, references: list) -> dict[str, float]:
        value = self.score(np.asarray(references), np.asarray(predictions))
        if not math.isfinite(value):
            raise UndefinedMetricError(f"{self.name_of_value} is undefined: predictions or labels are constant")
        return {self.name_of_value: value}

    def score(self, references: np.ndarray, predictions: np.ndarray) -> float:
        """The value itself; arrays of shape (examples,)."""
        raise NotImplementedError


class Accuracy(OfflineMetric):
    """Share of equal classes."""

    name_of_value = "accuracy"

    def score(self, references: np.ndarray, predictions: np.ndarray) -> float:
        """See `OfflineMetric.score`."""
        return float(sklearn_metrics.accuracy_score(references, predictions))


class F1(OfflineMetric):
    """F1 of class 1 (GLUE's for MRPC and QQP); 0 where class 1 is neither predicted nor present."""

    name_of_value = "f1"

    def score(self, references: np.ndarray, predictions: np.ndarray) -> float:
        """See `OfflineMetric.score`."""
        return float(sklearn_metrics.f1_score(references, predictions, zero_division=0))


class Matthews(OfflineMetric):
    """Matthews' correlation coefficient; 0 for constant predictions, as scikit-learn defines it."""

    name_of_value = "matthews"

    def score(self, references: np.ndarray, predictions: np.ndarray) -> float:
        """See `OfflineMetric.score`."""
        return float(sklearn_metrics.matthews_corrcoef(references, predictions))


class Pearson(OfflineMetric):
    """Pearson's correlation; raises UndefinedMetricError for constants."""

    name_of_value = "pearson"
    value_type = "float64"

    def score(self, references: np.ndarray, predictions: np.ndarray) -> float:
        """See `OfflineMetric.score`."""
        return math.nan if constant(references, predictions) else float(stats.pearsonr(references, predictions)[0])


class Spearman(OfflineMetric):
    """Spearman's rank correlation; raises UndefinedMetricError for constants."""

    name_of_value = "spearman"
    value_type = "float64"

    def score(self, references: np.ndarray, predictions: np.ndarray) -> float:
        """See `OfflineMetric.score`."""
        return math.nan if constant(references, predictions) else float(stats.spearmanr(references, predictions)[0])


def constant(*arrays: np.ndarray) -> bool:
    """Whether one of the arrays has fewer than two different values."""
    return any(len(array) < 2 or float(np.ptp(array)) == 0.0 for array in arrays)


METRICS: dict[str, type[OfflineMetric]] = {
    metric.name_of_value: metric for metric in (Accuracy, F1, Matthews, Pearson, Spearman)
}


def compute_metrics(names: tuple[str, ...], predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    """All named metrics of one dev set; UndefinedMetricError when one of them has no value."""
    results: dict[str, float] = {}
    for name in names:
        results.update(METRICS[name]().compute(predictions=predictions.tolist(), references=references.tolist()))
    return results


def rehearse(names: Iterable[str]) -> None:
    """Compute each metric once on two examples: what the libraries cannot do here must show before any training."""
    for name in names:
        compute_metrics((name,), np.array([0, 1]), np.array([0, 1]))
