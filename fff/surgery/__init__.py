"""Trees in anybody's model: find its feedforward blocks, replace them, save and load the result. No training."""

from fff.surgery.blocks import Block, Found, Left
from fff.surgery.find import find_feedforward
from fff.surgery.folder import load, save
from fff.surgery.replace import Report, rebuild, replace_feedforward

__all__ = ["Block", "Found", "Left", "Report", "find_feedforward", "load", "rebuild", "replace_feedforward", "save"]
