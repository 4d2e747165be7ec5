"""Where raw text comes from, a file per kind of source. Not what becomes of it (cramming.data)."""
