#!/usr/bin/env bash
# The C++ of provider cpu under the address and undefined-behaviour sanitizers, through its own tests. Slow; needs gcc.
set -euo pipefail
cd "$(dirname "$0")/.."
export FFF_CXXFLAGS="-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all"
export LD_PRELOAD="$(c++ -print-file-name=libasan.so):$(c++ -print-file-name=libubsan.so)"
export ASAN_OPTIONS=detect_leaks=0  # Python's own are many
exec .venv/bin/python -m pytest -q -p no:cacheprovider tests/fff/test_cpu.py \
  -k "definition or activation or company or bits or leading or named or master"
