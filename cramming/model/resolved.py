"""What a configuration's feedforward layers come to: trees, neurons, leaves. Not how they are built (fff.layers)."""

from typing import Any

from cramming.model.config import FFNConfig


def resolved(ffn: FFNConfig, layers: int) -> dict[str, Any]:
    """The specification of each layer as records carry it, so that no table derives it anew.

    Beside the layer's own keys: `neurons_trained` and `neurons_used` (for a token) of one layer, `layers`, and `leaves`
    of all layers together (0 for layers without trees).
    """
    settings = ffn.settings
    found = settings.specification()
    leaves = found.get("trees", 1) * 2 ** found["depth"] if "depth" in found else 0
    return {
        **{key: value for key, value in found.items() if key not in ("execution", "provider")},
        "layers": layers,
        "neurons_trained": settings.neurons_trained,
        "neurons_used": settings.neurons_used,
        "leaves": layers * leaves,
    }
