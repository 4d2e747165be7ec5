"""Checks and times a whole GPU machine in one bounded run. Not the benchmarks of a quiet one (bench)."""
