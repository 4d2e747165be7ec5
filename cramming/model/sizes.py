"""What the sizes of a crammed model must be, whoever sets them: the command line or a config.json. Not its layers."""

import math
from collections.abc import Mapping
from typing import Any

POSITIONS = ("sinusoidal", "rotary")
COUNTS = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads"),
    *("vocab_size", "max_position_embeddings", "classifier_size"),
)
SCALES = ("rotary_base", "layer_norm_eps", "initializer_range")
SHARES = ("hidden_dropout_prob", "classifier_dropout")


def check_sizes(values: Mapping[str, Any], name: Mapping[str, str]) -> None:
    """Refuse what no encoder can be.

    Args:
        values: by transformers' names; hidden_size, num_attention_heads and positions at least.
        name: what messages call each of them.

    Raises:
        ValueError: the value, by its name, and what it should be.
    """
    for key in filter(values.__contains__, COUNTS):
        if type(values[key]) is not int or values[key] < 1:
            raise ValueError(f"{name[key]} is {values[key]!r}; set it to 1 or more.")
    for key in filter(values.__contains__, SCALES):
        if not isinstance(values[key], int | float) or not 0 < values[key] < math.inf:
            raise ValueError(f"{name[key]} is {values[key]!r}; set it above 0.")
    for key in filter(values.__contains__, SHARES):
        if not isinstance(values[key], int | float) or not 0 <= values[key] < 1:
            raise ValueError(f"{name[key]} is {values[key]!r}; set it from 0 to below 1.")
    width, heads = values["hidden_size"], values["num_attention_heads"]
    if width % heads:
        raise ValueError(
            f"{name['num_attention_heads']} is {heads}, which does not divide {name['hidden_size']}={width}; "
            f"choose a divisor, for example {name['num_attention_heads']}={_nearest_divisor(width, heads)}."
        )
    if values["positions"] not in POSITIONS:
        raise ValueError(f"{name['positions']} is {values['positions']!r}; choose one of {', '.join(POSITIONS)}.")
    if width % 2:
        raise ValueError(f"{name['hidden_size']} is {width}; positions need an even width.")
    if values["positions"] == "rotary" and width // heads % 2:
        raise ValueError(
            f"{name['hidden_size']} / {name['num_attention_heads']} is {width // heads}; rotary positions pair the "
            "columns of a head, so make it even."
        )


def _nearest_divisor(number: int, wish: int) -> int:
    return min((d for d in range(1, number + 1) if number % d == 0), key=lambda d: (abs(d - wish), d))
