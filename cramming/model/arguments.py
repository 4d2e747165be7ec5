"""Arguments that a forward pass must not swallow in silence. Not what it does with the others."""

import difflib
from collections.abc import Mapping
from typing import Any

from torch import Tensor

KNOWN = (
    "input_ids",
    "attention_mask",
    "inputs_embeds",
    "position_ids",
    "token_type_ids",
    "labels",
    "start_positions",
    "end_positions",
    "masked_positions",
    "past_key_values",
    "use_cache",
    "logits_to_keep",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "with_logits",
    "num_items_in_batch",
)
# What transformers, its Trainer and pipelines pass to any model, and which says nothing to these.
HARMLESS = ("cache_position", "is_causal", "num_items_in_batch")


def refuse_unknown(model: str, arguments: Mapping[str, Any]) -> None:
    """TypeError for an argument that no forward pass here knows, as Python raises it; None is no argument."""
    for name, value in arguments.items():
        if value is None or name in HARMLESS:
            continue
        near = difflib.get_close_matches(name, KNOWN, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(KNOWN)}."
        raise TypeError(f"{model}.forward() got an unexpected argument {name!r}; {hint}")


def refuse_segments(token_type_ids: Tensor | None) -> None:
    """ValueError for a segment other than 0: the crammed BERT has no segment embedding."""
    if token_type_ids is not None and bool(token_type_ids.any()):
        raise ValueError("token_type_ids are not 0 everywhere, and this model knows no segments; leave them out.")
