"""Metrics against hand-computed values and the libraries underneath, and the learning-rate schedules."""

import math

import numpy as np
import pytest
import torch
import transformers
from scipy import stats
from sklearn import metrics as sklearn_metrics

from cramming.glue.metrics import METRICS, UndefinedMetricError, compute_metrics
from cramming.glue.schedule import lr_factor, total_steps, warmup_steps


def test_values_computed_by_hand():
    # 2 true positives, 1 false positive, 1 false negative, 2 true negatives.
    references, predictions = np.array([1, 1, 1, 0, 0, 0]), np.array([1, 1, 0, 1, 0, 0])
    scores = compute_metrics(("accuracy", "f1", "matthews"), predictions, references)
    assert scores["accuracy"] == pytest.approx(4 / 6)
    assert scores["f1"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert scores["matthews"] == pytest.approx((2 * 2 - 1 * 1) / math.sqrt(3 * 3 * 3 * 3))
    line = compute_metrics(("pearson", "spearman"), np.array([1.0, 2.0, 4.0]), np.array([1.0, 2.0, 3.0]))
    assert line["pearson"] == pytest.approx(3 / math.sqrt(2 * (14 / 3)))
    assert line["spearman"] == pytest.approx(1.0)


def test_values_of_the_libraries_on_random_input():
    rng = np.random.default_rng(0)
    references, predictions = rng.integers(0, 2, 200), rng.integers(0, 2, 200)
    scores = compute_metrics(("accuracy", "f1", "matthews"), predictions, references)
    assert scores["f1"] == pytest.approx(sklearn_metrics.f1_score(references, predictions))
    assert scores["matthews"] == pytest.approx(sklearn_metrics.matthews_corrcoef(references, predictions))
    x, y = rng.normal(size=(2, 50))
    scores = compute_metrics(("pearson", "spearman"), x, y)
    assert scores["pearson"] == pytest.approx(stats.pearsonr(x, y)[0])
    assert scores["spearman"] == pytest.approx(stats.spearmanr(x, y)[0])


def test_constant_predictions_score_zero_or_nothing_but_never_something():
    constant, mixed = np.ones(4, dtype=int), np.array([0, 1, 0, 1])
    assert compute_metrics(("matthews",), constant, mixed) == {"matthews": 0.0}
    assert compute_metrics(("f1",), 1 - constant, mixed) == {"f1": 0.0}
    with pytest.raises(UndefinedMetricError, match="pearson"):
        compute_metrics(("pearson",), np.full(4, 2.5), mixed.astype(float))
    with pytest.raises(UndefinedMetricError, match="spearman"):
        compute_metrics(("spearman",), mixed.astype(float), np.full(4, 2.5))


def test_metrics_need_no_network(monkeypatch):
    import socket

    def refuse(*_args, **_kwargs):
        raise AssertionError("a metric asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    for name in METRICS:
        assert compute_metrics((name,), np.array([0, 1, 1]), np.array([0, 1, 0]))[name] == pytest.approx(
            METRICS[name]().score(np.array([0, 1, 0]), np.array([0, 1, 1]))
        )


def test_schedule_equals_transformers_cosine():
    total, warmup = 50, 5
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = transformers.get_cosine_schedule_with_warmup(optimiser, warmup, total)
    for step in range(total):
        assert lr_factor(step, total, warmup) == pytest.approx(schedule.get_last_lr()[0])
        optimiser.step()
        schedule.step()
    assert lr_factor(warmup, total, warmup) == 1.0
    assert lr_factor(0, 3, 0) == 1.0


def test_the_leak_gives_every_task_the_first_tasks_warmup():
    # CoLA, RTE, MRPC, STS-B at 5 epochs and batch 16: 267 steps, a third of RTE's 780 (34 %).
    sizes = {"rte": 2490, "mrpc": 3668, "stsb": 5749, "cola": 8551}
    steps = {name: total_steps(examples, 16, 5) for name, examples in sizes.items()}
    assert list(steps.values()) == [780, 1150, 1800, 2675]
    assert warmup_steps(steps, 0.1, "per_task") == [78, 115, 180, 267]
    assert warmup_steps(steps, 0.1, "legacy") == [267] * 4
    # After a task as large as MNLI (without CoLA), RTE never leaves warm-up.
    assert warmup_steps({"rte": 780, "mnli": total_steps(392702, 16, 5)}, 0.1, "legacy")[0] > 780
    assert lr_factor(779, 780, 12271) == pytest.approx(779 / 12271)
