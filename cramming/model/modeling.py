"""The crammed BERT's heads as native transformers classes: MLM, classification. Not the encoder, nor their training."""

from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput

from .configuration import CrammedConfig
from .encoder import CrammedModel, CrammedPreTrainedModel, wants_dict
from .language import CrammedLanguageModel
from .losses import IGNORED, classification_loss, problem_of
from .outputs import CrammedMaskedLMOutput

__all__ = ["CrammedForMaskedLM", "CrammedForSequenceClassification", "CrammedModel"]


class CrammedForMaskedLM(CrammedLanguageModel):
    """The encoder with a decoder tied to the word embedding, which predicts masked tokens."""

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        masked_positions: torch.Tensor | None = None,
        return_dict: bool | None = None,
        with_logits: bool = True,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Any,
    ) -> CrammedMaskedLMOutput | tuple:
        """Predict masked tokens.

        Args:
            labels: (B, S) int64 with -100 where nothing is predicted, or (B, K) beside `masked_positions`.
            masked_positions: (B, K) int64 positions to predict; the sparse form with a fixed shape, which needs no
                synchronisation with the device.
            with_logits: False leaves them out of the output. Pretraining needs the loss alone, and 4096 predictions of
                32768 tokens are half a gigabyte in float32.
            num_items_in_batch: labelled tokens of the whole batch of which this is a part (transformers' Trainer gives
                it where it accumulates gradients): the loss is this part's sum divided by it.
            kwargs: as the encoder's.

        Returns:
            logits (B, S, V); (B, K, V) with `masked_positions`; (labelled tokens, V) when training with labels and
            `config.sparse_prediction`. The loss (nats per labelled token) is the same in each. In training, where FFF
            layers have auxiliary losses (`fff.hardening`), `auxiliary_losses` names them (means over layers) and
            `aux_loss`, their sum weighted by `auxiliary_weights`, is part of `loss`.
        """
        encoded = self.model(input_ids, attention_mask, inputs_embeds, return_dict=True, **kwargs)
        x = encoded.last_hidden_state
        if masked_positions is not None:
            x = x.gather(1, masked_positions[..., None].expand(-1, -1, x.shape[-1]))
        elif labels is not None and self.training and self.config.sparse_prediction:
            labelled = labels != IGNORED
            x, labels = x[labelled], labels[labelled]
        logits = self.decoder(x)
        loss, aux_loss = self.losses(logits, labels, encoded.auxiliary_losses, num_items_in_batch)
        output = CrammedMaskedLMOutput(
            loss=loss,
            logits=logits if with_logits else None,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
            aux_loss=aux_loss,
            auxiliary_losses=encoded.auxiliary_losses,
        )
        return output if wants_dict(self.config, return_dict) else output.to_tuple()


class ClassificationHead(nn.Module):
    """The authors' head on the first token: Linear, tanh, dropout, Linear. One module, which PEFT trains and saves."""

    def __init__(self, config: CrammedConfig, labels: int) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.classifier_size)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.out_proj = nn.Linear(config.classifier_size, labels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Hidden states (B, S, H) -> logits (B, labels)."""
        return self.out_proj(self.dropout(torch.tanh(self.dense(x[:, 0]))))


# Names of the head's weights in folders of before, which two modules had.
FORMER_HEAD = {r"^pooler\.": "classifier.dense.", r"^classifier\.(weight|bias)$": r"classifier.out_proj.\1"}


class CrammedForSequenceClassification(CrammedPreTrainedModel):
    """The encoder with a classification head."""

    def __init__(self, config: CrammedConfig) -> None:
        super().__init__(config)
        self.num_labels = int(config.num_labels or 1)
        self.model = CrammedModel(config)
        self.classifier = ClassificationHead(config, self.num_labels)
        self.post_init()

    @classmethod
    def from_pretrained(cls, *arguments: Any, **settings: Any) -> Any:
        """As transformers does it, also from folders whose head has its former names."""
        return super().from_pretrained(*arguments, **{"key_mapping": FORMER_HEAD, **settings})

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput | tuple:
        """Classify or score whole inputs.

        Args:
            labels: (B,) class numbers; (B,) or (B, num_labels) numbers for regression; (B, num_labels) 0 or 1 for
                several classes at once. `config.problem_type` says which; without it, as BERT: regression where
                num_labels is 1, one class where labels are whole numbers, several otherwise.
            num_items_in_batch: labels of the whole batch of which this is a part, see `CrammedForMaskedLM.forward`.
            kwargs: as the encoder's.

        Returns:
            logits (B, num_labels) and, with labels, cross-entropy (nats; over classes, or of each class by itself) or
            mean squared error.
        """
        encoded = self.model(input_ids, attention_mask, inputs_embeds, return_dict=True, **kwargs)
        logits = self.classifier(encoded.last_hidden_state)
        loss = None
        if labels is not None:
            problem = self.config.problem_type or problem_of(self.num_labels, labels)
            loss = classification_loss(problem, logits, labels, num_items_in_batch)
        output = SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=encoded.hidden_states, attentions=encoded.attentions
        )
        return output if wants_dict(self.config, return_dict) else output.to_tuple()
