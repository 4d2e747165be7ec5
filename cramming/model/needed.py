"""What the models need of the package `fff`. In one place, because a copied model folder may be loaded without it."""

try:
    from fff.feedforward import settings_from
    from fff.layers.base import Feedforward
    from fff.unsaved import Unsaved
except ImportError as error:
    raise ImportError(
        "This model's feedforward layers are in the package fff-cramming, whose module is `fff`. Install it from a "
        "checkout of its project (pip install -e PATH), and not `fff` from the package index: that is something else."
    ) from error

__all__ = ["Feedforward", "Unsaved", "settings_from"]
