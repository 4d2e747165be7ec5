"""Fast feedforward layers. Needs torch alone."""

from fff.path import PathFFF

__all__ = ["PathFFF"]
