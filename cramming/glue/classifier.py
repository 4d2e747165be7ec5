"""The classifier that is finetuned: a checkpoint's encoder under a fresh head. Not its training (finetune.py)."""

from transformers import AutoModelForSequenceClassification, PreTrainedModel

from cramming.glue.tasks import Task
from cramming.model.saved import Pretrained, load_weights
from fff.hardening import set_hardening


def load_classifier(pretrained: Pretrained, task: Task, dropout: float) -> PreTrainedModel:
    """The checkpoint's encoder under a fresh head for `task`; the head comes from torch's current random state.

    FFF layers are finetuned hard, as they are evaluated. UserError as `load_weights`.
    """
    model = load_weights(
        AutoModelForSequenceClassification,
        pretrained,
        num_labels=1 if task.regression else len(task.labels),
        problem_type="regression" if task.regression else "single_label_classification",
        hidden_dropout_prob=dropout,
        classifier_dropout=dropout,
    )
    set_hardening(model, form="hard")
    return model
