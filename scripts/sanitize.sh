#!/usr/bin/env bash
# The C++ of provider cpu under the address and undefined-behaviour sanitizers, through its own tests. Slow; needs gcc.
# PYTHON is the interpreter, by default the one in .venv.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export FFF_CXXFLAGS="-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all"
"$python" -m fff.kernels > /dev/null 2>&1 || true  # compile first, without them, which would slow the compiler
export LD_PRELOAD="$(c++ -print-file-name=libasan.so):$(c++ -print-file-name=libubsan.so)"
export ASAN_OPTIONS=detect_leaks=0  # Python's own are many
exec "$python" -m pytest -q -p no:cacheprovider -n 0 tests/fff/test_cpu_checks.py tests/fff/test_cpu.py \
  tests/fff/test_cpu_leaf.py tests/fff/test_int8.py tests/fff/test_int8_linear.py -m "not slow" \
  -k "refused or taken or assigned or definition or activation or company or bits or leading or named or master or exact or extreme or alone or skewed or gather or refuses or reads or beside or shape"
