"""Provider `triton`: the kernels, the host code that launches them, and the operators they offer to torch."""
