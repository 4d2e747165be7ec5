"""More heads as native transformers classes: words, answers in a text, choices. Not their training."""

from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import (
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    TokenClassifierOutput,
)

from .configuration import CrammedConfig
from .encoder import CrammedModel, CrammedPreTrainedModel, wants_dict
from .losses import cross_entropy, span_loss
from .modeling import ClassificationHead

__all__ = ["CrammedForMultipleChoice", "CrammedForQuestionAnswering", "CrammedForTokenClassification"]


class CrammedForTokenClassification(CrammedPreTrainedModel):
    """The encoder with one linear layer on every token, after dropout."""

    def __init__(self, config: CrammedConfig) -> None:
        super().__init__(config)
        self.num_labels = int(config.num_labels or 1)
        self.model = CrammedModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.hidden_size, self.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Any,
    ) -> TokenClassifierOutput | tuple:
        """Classify each token.

        Args:
            labels: (B, S) int64 class numbers, -100 where there is none.
            num_items_in_batch: labelled tokens of the whole batch, see `CrammedForMaskedLM.forward`.
            kwargs: as the encoder's.

        Returns:
            logits (B, S, num_labels) and, with labels, cross-entropy (nats per labelled token).
        """
        encoded = self.model(input_ids, attention_mask, inputs_embeds, return_dict=True, **kwargs)
        logits = self.classifier(self.dropout(encoded.last_hidden_state))
        loss = None
        if labels is not None:
            loss = cross_entropy(logits.flatten(0, -2), labels.flatten(), num_items_in_batch)
        output = TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=encoded.hidden_states, attentions=encoded.attentions
        )
        return output if wants_dict(self.config, return_dict) else output.to_tuple()


class CrammedForQuestionAnswering(CrammedPreTrainedModel):
    """The encoder with two scores on every token: that an answer starts there, and that it ends there."""

    def __init__(self, config: CrammedConfig) -> None:
        super().__init__(config)
        self.model = CrammedModel(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        start_positions: torch.Tensor | None = None,
        end_positions: torch.Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> QuestionAnsweringModelOutput | tuple:
        """Find the answer within the input.

        Args:
            start_positions, end_positions: (B,) int64, the answer's first and last token; together or neither. A place
                outside the input is no label, as in BERT.
            kwargs: as the encoder's.

        Returns:
            start_logits and end_logits (B, S) and, with positions, the mean of both cross-entropies (nats).

        Raises:
            ValueError: one of the positions is given without the other.
        """
        encoded = self.model(input_ids, attention_mask, inputs_embeds, return_dict=True, **kwargs)
        start, end = (scores.contiguous() for scores in self.qa_outputs(encoded.last_hidden_state).unbind(-1))
        if (start_positions is None) != (end_positions is None):
            raise ValueError("Give both start_positions and end_positions, or neither.")
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = span_loss(start, end, start_positions, end_positions)
        output = QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start,
            end_logits=end,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )
        return output if wants_dict(self.config, return_dict) else output.to_tuple()


class CrammedForMultipleChoice(CrammedPreTrainedModel):
    """The encoder with the classification head, which gives each choice one score."""

    def __init__(self, config: CrammedConfig) -> None:
        super().__init__(config)
        self.model = CrammedModel(config)
        self.classifier = ClassificationHead(config, 1)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Any,
    ) -> MultipleChoiceModelOutput | tuple:
        """Choose among C texts, each of them read by itself.

        Args:
            input_ids, attention_mask, token_type_ids: (B, C, S), or `inputs_embeds` (B, C, S, H).
            position_ids: (B, C, S), or (1, S) for all.
            labels: (B,) int64, the right choice.
            num_items_in_batch: labels of the whole batch, see `CrammedForMaskedLM.forward`.
            kwargs: as the encoder's.

        Returns:
            logits (B, C) and, with labels, cross-entropy (nats). Hidden states and attentions are those of B x C texts.
        """
        given = input_ids if inputs_embeds is None else inputs_embeds
        choices = 1 if given is None else given.shape[1]
        ids, mask, vectors, segments = (
            None if each is None else each.flatten(0, 1)
            for each in (input_ids, attention_mask, inputs_embeds, token_type_ids)
        )
        if position_ids is not None and position_ids.ndim == 3:
            position_ids = position_ids.flatten(0, 1)
        settings = {"position_ids": position_ids, "token_type_ids": segments, **kwargs}
        encoded = self.model(ids, mask, vectors, return_dict=True, **settings)
        logits = self.classifier(encoded.last_hidden_state).view(-1, choices)
        loss = None if labels is None else cross_entropy(logits, labels.view(-1), num_items_in_batch)
        output = MultipleChoiceModelOutput(
            loss=loss, logits=logits, hidden_states=encoded.hidden_states, attentions=encoded.attentions
        )
        return output if wants_dict(self.config, return_dict) else output.to_tuple()
