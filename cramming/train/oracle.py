"""What a trained dense model loses with its most active neurons alone. Not how a layer leaves the others out (fff)."""

from torch import nn

from cramming.errors import UserError
from cramming.train.parts import Parts
from cramming.train.root import PretrainRoot
from cramming.train.validate import Validation
from fff.layers.dense import DenseFF, oracle


def check_oracle(root: PretrainRoot, layer: nn.Module | None) -> None:
    """Refuse numbers of neurons that the feedforward layers do not have (UserError)."""
    for neurons in root.train.oracle:
        found = f"train.oracle names {neurons}, and"
        if not isinstance(layer, DenseFF):
            raise UserError(f"{found} ffn={root.ffn.kind} is no dense layer; set train.oracle=[].")
        if not 1 <= neurons <= layer.neurons:
            raise UserError(f"{found} ffn={root.ffn.tag} has {layer.neurons} neurons; name from 1 to as many.")


def oracle_metric(neurons: int) -> str:
    """Name of the loss in a record's metrics, "oracle_9" for 9 neurons of each token."""
    return f"oracle_{neurons}"


def oracle_losses(parts: Parts, validation: Validation) -> dict[str, float]:
    """A record's metrics (`oracle_metric`): validation loss (nats) of the plain model; every process takes part."""
    found = {}
    for neurons in parts.config.oracle:
        with parts.world.autocast(), oracle(parts.model, neurons):
            found[oracle_metric(neurons)] = validation.run(parts.model, parts.world)["loss"]
    return found
