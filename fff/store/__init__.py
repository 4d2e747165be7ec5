"""PathFFF whose rows lie on a disk: written a block at a time, opened as a map of the files. For inference alone.

A token reads T * (D + 1) rows of each of two files, and nothing else of them; what was read stays in the system's cache
of the disk, which the system takes back when it needs the memory.
"""

from fff.store.files import write, write_blocks
from fff.store.layer import StoredPath, node_visits, open

__all__ = ["StoredPath", "node_visits", "open", "write", "write_blocks"]
