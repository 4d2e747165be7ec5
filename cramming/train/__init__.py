"""Pretraining: the loop, its hooks, checkpoints, and the run that they belong to. Not the model."""
