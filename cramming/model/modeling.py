"""The crammed BERT as native transformers classes: encoder, MLM, classification. Not its training."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import SequenceClassifierOutput

from fff.layers.base import Feedforward
from fff.unsaved import Unsaved

from .configuration import CrammedConfig
from .layers import CrammedBlock, CrammedEmbedding
from .outputs import CrammedMaskedLMOutput, CrammedOutput
from .positions import RotaryPositions

IGNORED = -100  # label of a position without a prediction, as everywhere in transformers


class CrammedPreTrainedModel(PreTrainedModel):
    """What the crammed models share: configuration class, initialisation, attention back ends."""

    config_class = CrammedConfig
    base_model_prefix = "model"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _no_split_modules = ["CrammedBlock"]  # noqa: RUF012 (read by transformers)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """N(0, initializer_range) for every weight, FFF nodes included, as the published models were trained."""
        std = self.config.initializer_range
        if isinstance(module, nn.Linear | nn.Embedding):
            init.normal_(module.weight, mean=0.0, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, Feedforward):
            module.init_weights(std, init)
        elif isinstance(module, CrammedEmbedding) and module.position_scale is not None:
            init.constant_(module.position_scale, self.config.hidden_size**-0.5)


class CrammedModel(CrammedPreTrainedModel):
    """The encoder. Returns the normalised last hidden state (B, S, H)."""

    def __init__(self, config: CrammedConfig) -> None:
        super().__init__(config)
        self.embedding = CrammedEmbedding(config)
        head_dim = config.hidden_size // config.num_attention_heads
        self.rotary = None
        if config.positions == "rotary":
            self.rotary = RotaryPositions(config.max_position_embeddings, head_dim, config.rotary_base)
        self.blocks = nn.ModuleList(CrammedBlock(config) for _ in range(config.num_hidden_layers))
        self.final_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The word embedding."""
        return self.embedding.words

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the word embedding."""
        self.embedding.words = value  # type: ignore[assignment]

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> CrammedOutput | tuple:
        """Encode tokens.

        Args:
            input_ids: (B, S) int64, or give `inputs_embeds` (B, S, H) instead.
            attention_mask: (B, S), 1 for tokens and 0 for padding; None when nothing is padded.

        Raises:
            ValueError: S exceeds max_position_embeddings, or not exactly one kind of input is given.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of input_ids and inputs_embeds.")
        x = self.embedding(input_ids, inputs_embeds)
        mask = None  # some versions of transformers would build a full one while torch.compile traces
        if attention_mask is not None:
            mask = create_bidirectional_mask(config=self.config, inputs_embeds=x, attention_mask=attention_mask)
        rotation = self.rotary(x.shape[1], x) if self.rotary is not None else None
        keep = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        states, losses = [x], []
        for block in self.blocks:
            x, found = block(x, mask, rotation)
            losses.append(found)
            if keep:
                states.append(x)
        x = self.final_norm(x)
        output = CrammedOutput(
            last_hidden_state=x,
            hidden_states=tuple(states) if keep else None,
            auxiliary_losses=_mean_over_layers(losses),
        )
        return output if _wants_dict(self.config, return_dict) else output.to_tuple()


class CrammedForMaskedLM(CrammedPreTrainedModel, Unsaved):
    """The encoder with a decoder tied to the word embedding, without transform and bias."""

    _tied_weights_keys = {"decoder.weight": "model.embedding.words.weight"}  # noqa: RUF012 (read by transformers)

    def __init__(self, config: CrammedConfig) -> None:
        super().__init__(config)
        self.model = CrammedModel(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        weights: dict[str, float] = {}
        for module in self.modules():
            if isinstance(module, Feedforward):
                weights |= module.loss_weights
        self.loss_names = tuple(weights)
        self.keep("auxiliary_weights", torch.tensor(list(weights.values()), dtype=torch.float32, device="cpu"))
        self.post_init()

    @property
    def auxiliary_weights(self) -> torch.Tensor:
        """Weights of the losses in `loss_names`, in that order: the layers' own unless training sets them."""
        return self.unsaved("auxiliary_weights", self.decoder.weight.device)

    def set_auxiliary_weights(self, weights: dict[str, float]) -> None:
        """Set weights by name; names that no layer knows are left out."""
        for place, name in enumerate(self.loss_names):
            if name in weights:  # filled: a copy from the host would wait for the device
                self.auxiliary_weights[place].fill_(weights[name])

    def get_output_embeddings(self) -> nn.Module:
        """The decoder."""
        return self.decoder

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the decoder."""
        self.decoder = new_embeddings  # type: ignore[assignment]

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        masked_positions: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        with_logits: bool = True,
        **kwargs: Any,
    ) -> CrammedMaskedLMOutput | tuple:
        """Predict masked tokens.

        Args:
            labels: (B, S) int64 with -100 where nothing is predicted, or (B, K) beside `masked_positions`.
            masked_positions: (B, K) int64 positions to predict; the sparse form with a fixed shape, which needs no
                synchronisation with the device.
            with_logits: False leaves them out of the output. Pretraining needs the loss alone, and 4096 predictions of
                32768 tokens are half a gigabyte in float32.

        Returns:
            logits (B, S, V); (B, K, V) with `masked_positions`; (labelled tokens, V) when training with labels and
            `config.sparse_prediction`. The loss (nats per labelled token) is the same in each. In training, where FFF
            layers have auxiliary losses (`fff.hardening`), `auxiliary_losses` names them (means over layers) and
            `aux_loss`, their sum weighted by `auxiliary_weights`, is part of `loss`.
        """
        encoded = self.model(
            input_ids, attention_mask, inputs_embeds, output_hidden_states=output_hidden_states, return_dict=True
        )
        x = encoded.last_hidden_state
        if masked_positions is not None:
            x = x.gather(1, masked_positions[..., None].expand(-1, -1, x.shape[-1]))
        elif labels is not None and self.training and self.config.sparse_prediction:
            labelled = labels != IGNORED
            x, labels = x[labelled], labels[labelled]
        logits = self.decoder(x)
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits.flatten(0, -2).float(), labels.flatten(), ignore_index=IGNORED)
        aux_loss = None
        if losses := encoded.auxiliary_losses:
            weights = zip(self.auxiliary_weights, self.loss_names, strict=True)
            aux_loss = sum(w * losses[name] for w, name in weights if name in losses)
            loss = loss + aux_loss if loss is not None else None
        output = CrammedMaskedLMOutput(
            loss=loss,
            logits=logits if with_logits else None,
            hidden_states=encoded.hidden_states,
            aux_loss=aux_loss,
            auxiliary_losses=losses,
        )
        return output if _wants_dict(self.config, return_dict) else output.to_tuple()


class CrammedForSequenceClassification(CrammedPreTrainedModel):
    """The encoder with the authors' head on the first token: Linear, tanh, dropout, Linear."""

    def __init__(self, config: CrammedConfig) -> None:
        super().__init__(config)
        self.num_labels = int(config.num_labels or 1)
        self.model = CrammedModel(config)
        self.pooler = nn.Linear(config.hidden_size, config.classifier_size)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.classifier_size, self.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput | tuple:
        """Classify or score whole inputs.

        Args:
            labels: (B,) class numbers, or float targets when config.problem_type is "regression" or num_labels is 1.

        Returns:
            logits (B, num_labels) and, with labels, cross-entropy (nats) or mean squared error.
        """
        encoded = self.model(
            input_ids, attention_mask, inputs_embeds, output_hidden_states=output_hidden_states, return_dict=True
        )
        first_token = encoded.last_hidden_state[:, 0]
        logits = self.classifier(self.dropout(torch.tanh(self.pooler(first_token))))
        loss = None
        if labels is not None:
            loss = self._loss(logits.float(), labels)
        output = SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=encoded.hidden_states)
        return output if _wants_dict(self.config, return_dict) else output.to_tuple()

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if self.config.problem_type == "regression" or self.num_labels == 1:
            return nn.functional.mse_loss(logits.squeeze(-1), labels.to(logits.dtype).view(logits.squeeze(-1).shape))
        return nn.functional.cross_entropy(logits, labels.view(-1))


def _mean_over_layers(losses: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor] | None:
    found = [layer for layer in losses if layer]
    return {name: torch.stack([layer[name] for layer in found]).mean() for name in found[0]} if found else None


def _wants_dict(config: PreTrainedConfig, return_dict: bool | None) -> bool:
    return bool(getattr(config, "return_dict", True) if return_dict is None else return_dict)
