"""Fast feedforward layers. Needs torch alone."""

from fff.layers.leaf import LeafFFF
from fff.layers.path import PathFFF

__all__ = ["LeafFFF", "PathFFF"]

__version__ = "0.1.0"
