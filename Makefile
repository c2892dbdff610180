# Every target sets itself up: a machine with Python 3.11 or newer and make is enough.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input install --quiet --require-virtualenv
# A stamp says that a step was done with the files as they are; it is done again when one of them changes.
RUN := $(VENV)/.run
TEST := $(VENV)/.test
BROWSER := $(VENV)/.browser
ARGS ?=
# Tests run side by side; each worker may start a whole system of its own.
WORKERS ?= 2

.PHONY: help demo test test-long bench docs lock format clean

help:  ## list the targets
	@grep -hE '^[a-z-]+: .*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/make \1\t\2/' | expand -t 18

demo: $(RUN)  ## a live campaign from signed webhooks on this machine; open the address it prints
	$(BIN)/midflight demo $(ARGS)

test: $(TEST) $(BROWSER)  ## all tests but the long ones; ARGS="-k door" narrows
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

test-long: $(TEST) $(BROWSER)  ## the long tests: crashes, floods, millions of rows
	$(BIN)/python -m pytest -m long -o timeout=3600 $(ARGS)

bench: $(TEST)  ## measure this machine; writes bench/results.json and docs/performance.md
	$(BIN)/python -m bench $(ARGS)

docs: $(RUN)  ## write the generated pages of docs/ again
	$(BIN)/midflight docs

format: $(TEST)  ## order imports and lay out code
	$(BIN)/ruff check --fix --quiet . && $(BIN)/ruff format --quiet .

clean:  ## remove what the targets above installed
	rm -rf $(VENV) .venv-peers .pytest_cache .ruff_cache .hypothesis

# -- set-up ------------------------------------------------------------------------------------------------------------

$(BIN)/python:
	@.ci/venv $(PYTHON) $(VENV)

# flit and midflight itself come without an index: the lock has brought all they need.
$(RUN): requirements.lock pyproject.toml | $(BIN)/python
	@echo "installing what requirements.lock names"
	@$(PIP) --require-hashes -r requirements.lock
	@$(PIP) --no-deps --no-build-isolation --no-index -e .
	@echo "compiling the hot loops, once"
	@$(BIN)/midflight compile
	@touch $@

$(TEST): requirements-test.lock pyproject.toml | $(BIN)/python
	@echo "installing what requirements-test.lock names"
	@$(PIP) --require-hashes -r requirements-test.lock
	@$(PIP) --no-deps --no-build-isolation --no-index -e .
	@echo "compiling the hot loops, once"
	@$(BIN)/midflight compile
	@touch $@ $(RUN)

$(BROWSER): .ci/browser | $(TEST)
	@.ci/browser $(BIN)/python
	@touch $@

lock: | $(BIN)/python  ## choose the newest allowed versions and write both locks
	@$(PIP) "uv >=0.6"
	$(BIN)/uv pip compile --quiet --upgrade --universal --generate-hashes --python-version 3.11 --custom-compile-command "make lock" \
		--group build pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile --quiet --upgrade --universal --generate-hashes --python-version 3.11 --custom-compile-command "make lock" \
		--all-extras --group build --group test -c requirements.lock pyproject.toml -o requirements-test.lock
