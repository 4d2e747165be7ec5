"""Build the CPU kernels ahead of their first use: `python -m fff.kernels`."""

import sys

from fff.kernels.cpu.build import BuildError, library, load

try:
    load()
    print(f"fff: the CPU kernels are in {str(library().parent)!a}")
except BuildError as error:
    sys.exit(f"fff: no CPU kernels, plain torch will do their work: {error}")
