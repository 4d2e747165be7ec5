"""Sweeps: runs side by side, on this machine and others, until all have ended. Not which they are (cramming.plan)."""
