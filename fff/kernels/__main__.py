"""Build the CPU kernels ahead of their first use: `python -m fff.kernels`."""

import sys

from fff.kernels.cpu.build import BuildError, cache_folder, load

try:
    load()
    print(f"fff: the CPU kernels are in {cache_folder()}")
except BuildError as error:
    sys.exit(f"fff: no CPU kernels, plain torch will do their work: {error}")
