# The verbs of this house. Each stands alone: what it needs is set up first.
.DEFAULT_GOAL := help
SHELL := bash
BIN := .venv/bin
# Nothing younger than a week is locked: a bad release is usually withdrawn by then.
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	--no-emit-index-url --no-annotate --exclude-newer "$$(date -u -d '7 days ago' +%F)" --upgrade

.PHONY: help setup demo test test-system test-all soak bench fmt check lock clean

help:
	@echo 'make setup  virtual environment and real servers, from the locks'
	@echo 'make demo   the whole failback on this machine'
	@echo 'make test   make check, and all tests but the slowest'
	@echo 'make test-system  the slowest: faults of servers, network, disk and hosts under load'
	@echo 'make soak   capture killed hundreds of times under load; tens of thousands of histories restored, 500 into a real server'
	@echo 'make bench  measurements'
	@echo 'make fmt    format and mend what can be mended'
	@echo 'make check  lint, types, layers'
	@echo 'make lock   new pins, none younger than a week'
	@echo 'make clean  remove what setup and tests made'

setup:
	@tools/setup.sh

demo: setup
	$(BIN)/d5agent drill

test: check
	$(BIN)/pytest -m "not system" $(ARGS)

test-system:
	@tools/setup.sh --with-container
	$(BIN)/pytest -m system $(ARGS)

test-all: test test-system

soak: setup
	$(BIN)/python -m tests.soak $(SOAK_ARGS)
	HYPOTHESIS_PROFILE=soak $(BIN)/pytest tests/property tests/integration/test_restore_real_histories.py --timeout=3600 $(ARGS)

bench: setup
	@set -e; for script in bench/*.py; do [ ! -e "$$script" ] || $(BIN)/python "$$script"; done

fmt: setup
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

lock: setup
	$(LOCK) pyproject.toml -o requirements.lock
	$(LOCK) pyproject.toml --group test --group lint --group drill --group build -o requirements-dev.lock
	$(LOCK) tools/s3-server.in -o requirements-s3.lock

clean:
	rm -rf .venv .tools build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis \
		.coverage htmlcov
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
