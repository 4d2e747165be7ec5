"""The classifier that is finetuned: a checkpoint's encoder under a fresh head; and kept. Not its training.

Its head reads the first token, as the authors' does, and only a pair's template begins with `<cls>`: a single text is
"A <sep>". As in the authors' GLUE, single texts are therefore encoded as pairs with an empty second text, as
"<cls> A <sep> <sep>": in finetuning, in evaluation, and by the tokenizer that is kept with such a task's classifier.
"""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from cramming.files import remove_leftovers
from cramming.glue.tasks import Task
from cramming.locks import locked
from cramming.model.foreign import classifier_of
from cramming.model.saved import Pretrained, load_weights, write_model
from fff.hardening import set_hardening


def load_classifier(pretrained: Pretrained, task: Task, dropout: float) -> PreTrainedModel:
    """The checkpoint's encoder under a fresh head for `task`; the head comes from torch's current random state.

    FFF layers are finetuned hard, as they are evaluated. UserError as `load_weights` or `classifier_of`.
    """
    head: dict[str, Any] = {
        "num_labels": 1 if task.regression else len(task.labels),
        "problem_type": "regression" if task.regression else "single_label_classification",
    }
    if pretrained.foreign:
        model = classifier_of(pretrained, dropout, **head)
    else:
        both = {"hidden_dropout_prob": dropout, "classifier_dropout": dropout}
        model = load_weights(AutoModelForSequenceClassification, pretrained, **head, **both)
    set_hardening(model, form="hard")
    return model


def write_classifier(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, folder: Path, metrics: Mapping[str, float]
) -> None:
    """Keep a finetuned classifier, complete or absent, as transformers' Auto classes and pipelines read it.

    Commands that share the folder above wait for one another; what a killed one left there is removed.
    """
    if not task.regression:
        model.config.id2label = dict(enumerate(task.labels))
        model.config.label2id = {label: number for number, label in enumerate(task.labels)}
    above = folder.parent
    with locked(above.with_name(f".{above.name}.lock"), wait=True):
        remove_leftovers(above, alone=True)
        numbers = {f"{task.name} {name}, dev set": f"{metrics[name]:.2%}" for name in task.metrics}
        write_model(model, tokenizer if task.pairs else singles_as_pairs(tokenizer), folder, numbers)


def singles_as_pairs(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A copy that encodes a single text as a pair with an empty second one."""
    kept = copy.deepcopy(tokenizer)
    content = json.loads(kept.backend_tokenizer.to_str())
    template = content["post_processor"]
    if template and template["type"] == "TemplateProcessing":
        template["single"] = [piece for piece in template["pair"] if piece.get("Sequence", {}).get("id") != "B"]
        kept.backend_tokenizer.post_processor = Tokenizer.from_str(json.dumps(content)).post_processor
    return kept
