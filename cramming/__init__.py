"""The pipeline: text, tokens, pretraining, finetuning, tables. The layers themselves are in fff."""

import os

# A thread of libgomp that waits for others spins, so that a busy neighbour takes far more than its share of the cores:
# on two cores with one neighbour pretraining kept 25 % of its speed, with this bound 47 %, for 3 % of it on a quiet
# machine (results/bench/busy.json). libgomp reads it when torch loads; whoever set it or the policy is obeyed.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
