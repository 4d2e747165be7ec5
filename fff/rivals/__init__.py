"""Other conditional layers, which trees are compared with, under the same protocol. Not trees."""
