# `make run` does the main job, `make test` checks everything. Both set up .venv first, once.

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt
PYTHON ?= python3
TESTS ?= tests
WORKERS ?= 2
SEED ?= $(shell od -An -N4 -tu4 /dev/urandom | tr -d ' ')
SEED := $(SEED)

.PHONY: help run test check format docs parity bench clean
.NOTPARALLEL:
.DELETE_ON_ERROR:

help: ## list these targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20

run: $(VENV)/.runtime ## convert, plan and stream a real model through two small devices, and print what it reached
	@exec $(BIN)/teengine demo

test: check ## check, then run the tests: make test [TESTS=tests/unit] [SEED=1] [WORKERS=2]
	@$(BIN)/python -m pytest $(TESTS) -n $(WORKERS) --dist loadfile --hypothesis-seed=$(SEED) || { \
	    status=$$?; \
	    echo "The seed was $(SEED). To repeat: make test SEED=$(SEED) TESTS='$(TESTS)'" >&2; \
	    exit $$status; \
	}

check: $(VENV)/.development ## format, lint, types and import contracts, changing nothing
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/basedpyright
	@$(BIN)/lint-imports --no-logo --no-cache

format: $(VENV)/.development ## put the code into its one form
	@$(BIN)/ruff check --quiet --fix-only .
	@$(BIN)/ruff format .

docs: $(VENV)/.runtime ## write the pages of docs/ that are made from the code
	@$(BIN)/python -m tests.house.configuration_page > docs/configuration.md
	@$(BIN)/python -m tests.house.protocol_page > docs/protocol.md

parity: $(VENV)/.development ## compare greedy tokens with transformers' own, however the model is cut and streamed
	@$(BIN)/python -m benchmarks.parity

bench: $(VENV)/.runtime ## tokens/s and share of the bound at 100 %, 50 % and 0 % resident
	@$(BIN)/python -m benchmarks.streaming

clean: ## remove what the targets above made
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The first Python of at least 3.11 that can make environments; Debian ships one that cannot.
$(BIN)/python:
	@for python in $(PYTHON) python3.14 python3.13 python3.12 python3.11 /usr/bin/python3; do \
	    if $$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	        echo "Setting up $(VENV) with $$($$python --version). This takes a few minutes, once."; \
	        exec $$python -m venv $(VENV); \
	    fi; \
	done; \
	echo 'error: this needs Python 3.11 or newer with venv; run: sudo apt-get install python3 python3-venv' >&2; \
	exit 1

# torch is asked for first and by its exact version, so that a CPU build that pip has at hand is taken for it.
$(VENV)/.runtime: constraints.txt pyproject.toml | $(BIN)/python
	@$(PIP) --upgrade pip
	@$(PIP) 'torch==2.13.0'
	@$(PIP) editables hatchling
	@$(PIP) --no-build-isolation --editable .
	@touch $@

$(VENV)/.development: $(VENV)/.runtime
	@$(PIP) --group dev
	@touch $@
