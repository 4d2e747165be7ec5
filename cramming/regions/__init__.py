"""A page of where a checkpoint sends the tokens of a text. Not the edits themselves (fff.regions)."""
