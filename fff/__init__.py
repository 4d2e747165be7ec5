"""Fast feedforward layers. Needs torch alone."""

from fff.leaf import LeafFFF
from fff.path import PathFFF

__all__ = ["LeafFFF", "PathFFF"]
