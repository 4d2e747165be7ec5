"""Processes and devices: the one door to accelerate and torch.distributed. Not the training (train)."""
