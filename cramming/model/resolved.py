"""What a configuration's feedforward layers come to: trees, neurons, leaves. Not how they are built (fff.layers)."""

from typing import Any

from cramming.model.config import FFNConfig
from fff.topology import trained_neurons, used_neurons


def resolved(ffn: FFNConfig, layers: int) -> dict[str, Any]:
    """The specification of each layer as records carry it, so that no table derives it anew.

    Beside the layer's own keys: `neurons_trained` and `neurons_used` (for a token) of one layer, `layers`, and `leaves`
    of all layers together (0 for layers without trees).
    """
    found = ffn.specification()
    trained, used, leaves = 0, 0, 0
    match found["kind"]:
        case "dense":
            trained = used = found["width"]
        case "path":
            trees, depth = found["trees"], found["depth"]
            trained, used, leaves = trained_neurons(trees, depth), used_neurons(trees, depth), trees * 2**depth
        case "leaf":
            width, master, leaves = found["leaf_width"], found["master_width"], 2 ** found["depth"]
            trained, used = width * leaves + master, width + master
    chosen = {key: value for key, value in found.items() if key not in ("execution", "provider")}
    return {**chosen, "layers": layers, "neurons_trained": trained, "neurons_used": used, "leaves": layers * leaves}
