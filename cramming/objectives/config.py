"""Configuration group `objective`, and the objectives that there are. Not what each does (its own file).

Another objective is a file with its class, and a line here.
"""

from dataclasses import dataclass

from cramming.checks import one_of
from cramming.objectives.base import Objective
from cramming.objectives.causal import CausalTokens
from cramming.objectives.masked import MaskedTokens

OBJECTIVES: dict[str, type[Objective]] = {"masked": MaskedTokens, "causal": CausalTokens}


@dataclass(frozen=True)
class ObjectiveConfig:
    """What is predicted in pretraining, and so what model comes of it."""

    kind: str = "masked"  # masked: BERT's, tokens left out of a text; causal: each next token, a decoder

    def __post_init__(self) -> None:
        one_of("objective.kind", self.kind, OBJECTIVES)
