# Everything runs in .venv, which the first target to need it makes. Only Python 3.10 or newer has to be there.
# Another Python: make PYTHON=python3.12. Another source of packages: pip's own settings (PIP_INDEX_URL, pip.conf).

PYTHON ?= python3
VENV   := .venv
STAMP  := $(VENV)/.installed
RUN    := $(VENV)/bin/python -m

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint bench soak coverage clean

help: ## show this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 12

setup: $(STAMP) ## make .venv and install the package into it, with all tools

demo: $(STAMP) ## train a small transformer; save it with torch.save, then with asyncsave
	$(RUN) benchmarks.demo

test: $(STAMP) ## run the test suite
	$(RUN) pytest

lint: $(STAMP) ## check style (ruff) and types (mypy)
	$(RUN) ruff check
	$(RUN) ruff format --check
	$(RUN) mypy

bench: $(STAMP) ## measure against torch.save, DCP and the bare disk; to compare runs (--benchmark-compare): docs/benchmarks.md
	$(RUN) pytest -c benchmarks/pytest.ini benchmarks --benchmark-json=benchmarks.json

soak: $(STAMP) ## run the tests that take many minutes
	$(RUN) pytest -m soak --timeout=0

coverage: $(STAMP) ## run the test suite and show what it does not reach
	$(RUN) pytest --cov --cov-report=term

clean: ## remove everything that these targets make
	rm -rf $(VENV) build dist benchmarks.json .coverage .coverage.* .benchmarks .hypothesis .demo-*
	rm -rf .mypy_cache .pytest_cache .ruff_cache
	find asyncsave benchmarks tests -name __pycache__ -prune -exec rm -rf {} +

# The stamp is written last: a set-up that was interrupted starts again.
$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || \
	    { echo "There is no $(PYTHON). Install Python 3.10 or newer, or name it: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit( \
	    "asyncsave needs Python 3.10 or newer; %s is %d.%d. Name another: make PYTHON=/path/to/python3" \
	    % ((sys.executable,) + tuple(sys.version_info[:2])))'
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV); the first time this takes minutes, most of them for torch ..."
	$(RUN) pip install --quiet --disable-pip-version-check -e '.[dev]' -c constraints.txt
	@touch $@
