# `make` lists the targets. Each sets up .venv itself when it is missing or older than the requirements.

PYTHON  ?=
WORKERS ?= 2
READY    = .venv/.installed
RUN      = .venv/bin/python

# Two workers share the cores: a thread pool each as large as the machine would only get in its own way.
CORES   := $(shell nproc 2>/dev/null || getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
THREADS := $(shell t=$$(( $(CORES) / $(WORKERS) )); [ $$t -ge 1 ] && echo $$t || echo 1)
SHARED   = OMP_NUM_THREADS=$(THREADS) MKL_NUM_THREADS=$(THREADS)
PYTEST   = $(SHARED) $(RUN) -m pytest

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test check docs notebooks readme export slow gpu hooks clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

demo: $(READY) ## Train, track, version, reload and look at a digit classifier
	.venv/bin/flame-vision demo

test: check ## Checks, every notebook executed, pytest
	$(SHARED) $(RUN) .ci/notebooks.py test --workers $(WORKERS)
	$(PYTEST) -n $(WORKERS) --dist worksteal tests

check: $(READY) ## Export drift, unclean notebooks, stale README, floors, house style, lint
	$(RUN) .ci/sync.py check
	$(RUN) -m ruff check flame_vision tests .ci setup.py
	$(PYTEST) -q tests/test_floors.py tests/test_house.py

docs: $(READY) ## The site in _docs: by Quarto where installed, else plain HTML pages
	$(RUN) .ci/docs.py

notebooks: $(READY) ## Execute in place, save outputs, clean, export [NB=nbs/blocks/104_conv.ipynb FLAGS="slow"]
	$(RUN) .ci/sync.py export
	$(SHARED) $(RUN) .ci/notebooks.py save --workers $(WORKERS) --flags "$(FLAGS)" $(NB)
	$(RUN) .ci/sync.py export readme

readme: $(READY) ## README.md from nbs/index.ipynb
	$(RUN) .ci/sync.py readme

export: $(READY) ## flame_vision/ from nbs/, and the notebooks cleaned
	$(RUN) .ci/sync.py export

slow: $(READY) ## The notebook cells and tests marked `slow`
	$(RUN) .ci/notebooks.py test --workers 1 --flags slow --only slow
	$(RUN) -m pytest -m slow tests || [ $$? -eq 5 ]

gpu: $(READY) ## The notebook cells and tests marked `gpu`; fails where there is none
	@$(RUN) -c "import sys, torch; sys.exit(None if torch.cuda.is_available() else 'gpu: torch sees no GPU here')"
	$(RUN) .ci/notebooks.py test --workers 1 --flags "gpu slow" --only gpu
	$(RUN) -m pytest -m gpu --slow tests || [ $$? -eq 5 ]

hooks: $(READY) ## Git's merge driver and hook for notebooks
	.ci/hooks.sh

clean: ## Remove what was generated, but .venv
	rm -rf _proc _docs build dist *.egg-info .pytest_cache .ruff_cache .hypothesis nbs/nbdev.yml nbs/sidebar.yml
	find nbs flame_vision tests .ci -name __pycache__ -prune -exec rm -rf {} +
	find nbs -name .ipynb_checkpoints -prune -exec rm -rf {} +

$(READY): settings.ini setup.py pyproject.toml
	@.ci/setup.sh $(PYTHON)
