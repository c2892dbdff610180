# Every target sets itself up: a machine with Python 3.11 or newer and make is enough.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := -m pip --disable-pip-version-check --no-input install --quiet --require-virtualenv
PIP := $(BIN)/python $(INSTALL)
# A stamp says that a step was done with the files as they are; it is done again when one of them changes.
RUN := $(VENV)/.run
TEST := $(VENV)/.test
BROWSER := $(VENV)/.browser
# What runs on Kafka has packages and versions of its own, so it has an environment of its own.
CLUSTER_VENV ?= .venv-cluster
CLUSTER := $(CLUSTER_VENV)/.cluster
ARGS ?=
# Tests run side by side; each worker may start a whole system of its own.
WORKERS ?= 2

.PHONY: help demo test test-long test-cluster bench docs lock format clean

help:  ## list the targets
	@grep -hE '^[a-z-]+: .*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/make \1\t\2/' | expand -t 18

demo: $(RUN)  ## a live campaign from signed webhooks on this machine; open the address it prints
	$(BIN)/midflight demo $(ARGS)

test: $(TEST) $(BROWSER)  ## all tests but the long ones; ARGS="-k door" narrows
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

test-long: $(TEST) $(BROWSER)  ## the long tests: crashes, floods, millions of rows
	$(BIN)/python -m pytest -m long -o timeout=3600 $(ARGS)

test-cluster: $(CLUSTER)  ## the tests that need a real Kafka and a real Postgres; both are started on loopback
	@.ci/cluster $(CLUSTER_VENV)/bin/python
	$(CLUSTER_VENV)/bin/python -m pytest tests/cluster -m cluster $(ARGS)

bench: $(TEST)  ## measure this machine; writes bench/results.json and docs/performance.md
	$(BIN)/python -m bench $(ARGS)

docs: $(RUN)  ## write the generated pages of docs/ again
	$(BIN)/midflight docs

format: $(TEST)  ## order imports and lay out code
	$(BIN)/ruff check --fix --quiet . && $(BIN)/ruff format --quiet .

clean:  ## remove what the targets above installed
	rm -rf $(VENV) $(CLUSTER_VENV) build/kafka .venv-peers .pytest_cache .ruff_cache .hypothesis

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

$(CLUSTER): requirements-cluster.lock pyproject.toml
	@.ci/venv $(PYTHON) $(CLUSTER_VENV)
	@echo "installing what requirements-cluster.lock names"
	@$(CLUSTER_VENV)/bin/python $(INSTALL) --require-hashes -r requirements-cluster.lock
	@$(CLUSTER_VENV)/bin/python $(INSTALL) --no-deps --no-build-isolation --no-index -e .
	@touch $@

# The third lock keeps the versions of the second but for those that the cluster's packages cannot have.
lock: | $(BIN)/python  ## choose the newest allowed versions and write the locks
	@$(PIP) "uv >=0.6"
	$(BIN)/uv pip compile --quiet --upgrade --universal --generate-hashes --python-version 3.11 --custom-compile-command "make lock" \
		--group build pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile --quiet --upgrade --universal --generate-hashes --python-version 3.11 --custom-compile-command "make lock" \
		--extra sql --extra sftp --group build --group test -c requirements.lock pyproject.toml -o requirements-test.lock
	cp requirements-test.lock requirements-cluster.lock
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --custom-compile-command "make lock" \
		--extra cluster --group build --group test pyproject.toml -o requirements-cluster.lock
