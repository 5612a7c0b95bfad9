# Plain make: every target works on a fresh clone. PYTHON is the interpreter (3.11 or newer) that a new .venv is made from.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The tests of a file share what they set up.
TWO_AT_A_TIME := --numprocesses 2 --dist loadfile

# The stamps are keyed by the content of pyproject.toml, so that a change of it, and nothing else, installs again.
KEY := $(shell cksum < pyproject.toml | cut -d ' ' -f 1)
INSTALLED := $(VENV)/installed-$(KEY)
INSTALLED_DEV := $(VENV)/installed-dev-$(KEY)

.DEFAULT_GOAL := help
.PHONY: help compare smoke test check format clean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## */\t/' | sort | awk -F '\t' '{ printf "make %-9s %s\n", $$1, $$2 }'

compare: $(INSTALLED)  ## the four families head to head (preset quick), then the report; run again to continue
	$(BIN)/archlab compare --config quick

smoke: $(INSTALLED)  ## the same path with tiny models, in about a minute
	$(BIN)/archlab compare --config smoke

test: $(INSTALLED_DEV)  ## all tests
	$(BIN)/python -m pytest $(TWO_AT_A_TIME)

check: $(INSTALLED_DEV)  ## format, lint, types and tests: what CI runs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest $(TWO_AT_A_TIME)

format: $(INSTALLED_DEV)  ## format and sort imports in place
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

clean:  ## remove .venv and caches; runs/ stays
	rm -rf $(VENV) build dist ./*.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(INSTALLED): | $(BIN)/python
	$(BIN)/python -m pip install --editable .
	rm -f $(VENV)/installed-*
	touch $@

$(INSTALLED_DEV): | $(BIN)/python
	$(BIN)/python -m pip install --editable '.[dev]'
	rm -f $(VENV)/installed-*
	touch $@ $(INSTALLED)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
