#!/usr/bin/env bash
# The experiment gpu_10min for five feedforward layers, also where commands are short and there is no network or Hydra.
#
#   scripts/gpu_10min.sh prepare /text/a.txt.xz /text/b.txt.xz ...   text -> outputs/data, outputs/orders (with Hydra)
#   scripts/gpu_10min.sh run SECONDS OUT [none 1x11 32x6 ...]        continue the runs for so long; results go to OUT
#
# The layers: none, the trees 1x11 and 32x6, 1x11 with the repair that REPAIR sets (its overrides), dense 3072. Between
# the two commands only outputs/data/gpu_10min-* and outputs/orders need travel. `run` takes all that was prepared, or
# the layers that are named by their tags; it is repeated until it says that all are finished: it ends each run with a
# checkpoint, from which the next one continues.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
REPAIR=${REPAIR:-ffn.shared=96}
NO_TREE="ffn.trees=null ffn.depth=null"
LAYERS=("ffn=none $NO_TREE" "ffn.depth=11" "ffn.trees=32 ffn.depth=6" "ffn.depth=11 $REPAIR" "ffn=dense $NO_TREE")

prepare() {
  local files layer
  files="data.files=[$(IFS=,; echo "$*")]"
  for layer in "${LAYERS[@]}"; do
    # shellcheck disable=SC2086 # each word of a layer is an override
    "$PYTHON" scripts/prepare.py experiment=gpu_10min "$files" $layer ${ARGS:-}
  done
  du -sm outputs/data/gpu_10min-* outputs/orders
}

# Seconds left of the first argument, since the script began.
left() { echo $(($1 - SECONDS)); }

run() {
  local seconds=$1 out=$2 layer order name open=0
  shift 2
  local layers=("$@")
  [ $# -gt 0 ] || layers=("*")
  mkdir -p "$out"
  for layer in "${layers[@]}"; do
    # shellcheck disable=SC2231 # all layers are a pattern
    for order in outputs/orders/gpu_10min-$layer-s*.json; do
      if [ "$(left "$seconds")" -lt 60 ]; then
        open=1
        continue
      fi
      # A run that is stopped needs a while for its checkpoint.
      timeout --signal=TERM --kill-after=35 $(($(left "$seconds") - 40)) \
        "$PYTHON" scripts/pretrain_plain.py "$order" || open=1
      name=$(basename "$order" .json)
      [ ! -f "outputs/runs/$name/metrics.jsonl" ] || cp "outputs/runs/$name/metrics.jsonl" "$out/$name.metrics.jsonl"
      [ ! -f "results/runs/$name.json" ] || cp "results/runs/$name.json" "$out/$name.json"
    done
  done
  if [ "$open" = 0 ]; then echo "all finished"; else echo "not finished: run the same command again"; fi
}

case "${1:-}" in
  prepare | run) "$@" ;;
  *)
    sed -n '2,10s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
