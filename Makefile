# Commands of the project; each makes its own environment first. No logic here: what they do stands in scripts/ and configs/.
PYTHON ?= python3
EXP ?= quickstart
PY := .venv/bin/python
comma := ,
space := $(subst ,, )
list = $(subst $(space),$(comma),$(strip $(1)))
PICK = experiment=$(EXP) $(if $(TREES),ffn.trees=$(TREES)) $(if $(DEPTH),ffn.depth=$(DEPTH)) $(if $(SEED),seed=$(SEED)) $(ARGS)
SWEEP = experiment=$(EXP) $(if $(TREES),ffn.trees=$(call list,$(TREES)),$(if $(DEPTH),+sweep=family)) \
  $(if $(DEPTH),ffn.depth=$(call list,$(DEPTH))) $(if $(SEED),seed=$(call list,$(SEED))) $(ARGS)
LAUNCHED = --launcher $(LAUNCHER) $(if $(JOBS),--jobs $(JOBS)) $(foreach each,$(LAUNCH),--launch $(each))
MANY = $(if $(LAUNCHER),$(LAUNCHED),--jobs $(or $(JOBS),1)) $(if $(RETRY),--retry) $(if $(LIST),--list)

# Set-up writes the bytecode of what commands and tests import, beside the compiler; of all packages it takes as long as
# the rest of set-up, and nobody imports nine tenths of them.
WARM = accelerate, datasets, evaluate, hydra, hypothesis, matplotlib.pyplot, pytest, scipy.stats, sklearn.metrics, \
  torch._dynamo, transformers.models.bert.modeling_bert, wandb

.DEFAULT_GOAL := help
.PHONY: help setup prepare verify pretrain glue tables figures sweep status micro images convert distill regions embed search bench test test-all lint clean

help:  ## this text
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1|/' | column -t -s '|'
	@echo '  Variables: EXP=$(EXP) TREES= DEPTH= SEED= ARGS="any.hydra=override"   (sweep: DEPTH="3 5 7" TREES="1 4" SEED="0 1" ARGS="train.lr=1e-3,2e-3")'
	@echo '  sweep, micro: JOBS=2 runs at a time; LIST=1 tells what is missing; LAUNCHER=joblib, submitit (SLURM) or ray,'
	@echo '  with LAUNCH="timeout_min=600 slurm_partition=gpu", starts the runs. The same command goes on, and tries again what ended'
	@echo '  with an error; what has a record of its failure (a loss that diverged) with RETRY=1. DEPTH alone: trees follow.'

setup: .venv/.complete  ## environment in .venv, from requirements.lock

# A checkout that was copied or moved together with its .venv would run the old place's code.
ifneq ($(shell cat .venv/.complete 2>/dev/null),$(CURDIR))
.PHONY: .venv/.complete
endif

.venv/.complete: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python >= 3.11 is needed, e.g. make PYTHON=python3.12 setup" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv --clear .venv
	$(PY) -m pip install --quiet --disable-pip-version-check --no-compile -r requirements.lock
	$(PY) -m pip install --quiet --disable-pip-version-check --no-compile --no-build-isolation --no-deps -e .
	-$(PY) -m fff.kernels & env -u PYTHONDONTWRITEBYTECODE $(PY) -c 'import $(WARM)'; wait $$!
	@echo '$(CURDIR)' > $@

prepare: setup  ## text -> tokenizer and token shards
	$(PY) scripts/prepare.py $(PICK)

verify: setup  ## read prepared data as a whole and compare every hash: make verify ARGS="FOLDER or s3://bucket/FOLDER"
	$(PY) scripts/verify.py $(ARGS)

pretrain: setup  ## tokens -> pretrained model and record (continues and recognises its own runs)
	$(PY) scripts/pretrain.py $(PICK)

glue: setup  ## finetune and evaluate the model that the same settings pretrained
	$(PY) scripts/glue.py $(PICK)

tables: setup  ## results/runs -> results/tables
	$(PY) scripts/tables.py

figures: setup  ## results/runs and results/bench -> results/figures, PNG and SVG
	$(PY) scripts/figures.py

sweep: setup  ## pretrain over DEPTH, TREES, SEED and any key what is missing, then the tables
	$(PY) scripts/sweep.py $(MANY) $(SWEEP)

status: setup  ## what became of the sweeps, here and on other machines: finished, running, queued, failed, missing, hours left
	$(PY) scripts/status.py $(ARGS)

micro: setup  ## what is a tree worth? trains the missing rows of configs/rows/micro.yaml, then tables and figures (JOBS=2)
	$(PY) scripts/micro.py $(MANY) $(ARGS)

images: setup  ## the first paper's experiment on scikit-learn's digits (or ARGS="images=mnist"), then the tables
	$(PY) scripts/images.py $(ARGS)
	$(PY) scripts/tables.py

convert: setup  ## the authors' checkpoint -> a model folder: make convert ARGS="CHECKPOINT OUT"
	$(PY) scripts/convert.py $(ARGS)

distill: setup  ## trees in a trained model, and the controls: make distill MODEL=ID TO="leaf:5x192+96" ARGS="distill.text=[a.txt]"
	$(PY) scripts/distill.py $(if $(MODEL),"distill.model=$(MODEL)") $(if $(TO),"distill.to=$(TO)") $(if $(SEED),distill.seed=$(SEED)) $(ARGS)

regions: setup  ## a page of where a checkpoint sends a text's tokens: make regions ARGS="CHECKPOINT TEXT --out page.html"
	$(PY) scripts/regions.py $(ARGS)

embed: setup  ## each line of a text -> a vector: make embed MODEL=RUN TEXT=lines.txt ARGS="--out vectors"
	$(PY) scripts/embed.py $(MODEL) $(TEXT) $(ARGS)

search: setup  ## passages by meaning: make search MODEL=RUN TEXT="files or folders", then a query a line
	$(PY) scripts/search.py $(MODEL) $(TEXT) $(ARGS)

bench: setup  ## layer timings on this machine, checked first
	$(PY) scripts/bench.py $(ARGS)

test: setup  ## the test suite, under 10 minutes on 2 cores
	$(PY) -m pytest -n 2 $(ARGS)

test-all: setup  ## the slow ones too
	$(PY) -m pytest -n 2 -m "slow or not slow" $(ARGS)

lint: setup  ## ruff, mypy and clang-format
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/clang-format --dry-run --Werror fff/kernels/cpu/cpp/*

clean:  ## remove caches; never outputs or results
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
