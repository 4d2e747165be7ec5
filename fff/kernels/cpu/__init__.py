"""Provider `cpu`: the C++ (cpp/), its build, and the operators it offers to torch."""
