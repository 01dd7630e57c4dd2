# `make simulate` runs the main job, `make test` the tests; both set up .venv first, once.
PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/.installed
OUT ?= runs/simulate-$(shell date +%Y%m%d-%H%M%S)

.PHONY: help install simulate compare test crash-test container-test nightly lint format protos clean

help: ## Show this help.
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(INSTALLED) ## Fill .venv with all that simulation, tests and lint need.

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: Expected Python 3.11 or later as $(PYTHON). Name one: make PYTHON=python3.12"; exit 2; }
	@echo "==> Making $(VENV)"
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@echo "==> Installing PyTorch (the largest part: some minutes on a first run)"
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check 'torch==2.13.0'
	@echo "==> Installing Arion and its tools"
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

simulate: install ## Simulate a federation of four invented institutions (about 3 minutes).
	@echo "==> Simulating a federation in $(OUT)"
	@$(VENV)/bin/arion simulate --out $(OUT)
	@echo "==> Checking its ledgers"
	@$(VENV)/bin/arion privacy ledger verify $(OUT)

compare: install ## Compare all arms on the invented text.
	@$(VENV)/bin/arion simulate --compare --out $(OUT)

test: install ## Run the tests (under 15 minutes on 2 cores).
	@echo "==> Running the tests"
	@$(VENV)/bin/python -m pytest -m "not slow" -n 2 --dist loadfile

crash-test: install ## Walk the whole crash matrix (9 minutes; wants strace, for a part PostgreSQL).
	@$(VENV)/bin/python -m pytest -s -rs tests/crash

container-test: ## Build the images and run a federation on them (docker or podman; exit code 77: neither works).
	@docker/test.sh

nightly: install ## Run the long tests too.
	@$(VENV)/bin/python -m pytest

lint: install ## Check style, types and import directions.
	@echo "==> Style"
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@echo "==> Types"
	@$(VENV)/bin/mypy
	@echo "==> Import directions"
	@$(VENV)/bin/lint-imports

format: install ## Format the code.
	@$(VENV)/bin/ruff check --fix .
	@$(VENV)/bin/ruff format .

protos: install ## Generate the protobuf stubs anew.
	@sh protos/generate.sh

clean: ## Remove the environment and caches; runs stay.
	@rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
