# Tasks of a developer; every one is a command that can be typed as well.
PYTHON ?= python

.PHONY: setup check format test test-all ci

setup: ## install for development, with commit hooks
	$(PYTHON) -m pip install -e ".[dev]"
	pre-commit install

check: ## lint, format and types, nothing changed
	ruff check .
	ruff format --check .
	pyright

format: ## mend what can be mended by itself
	ruff check --fix .
	ruff format .

test: ## the usual tests, two files at a time
	$(PYTHON) -m pytest -n 2

test-all: ## the slow tests as well
	$(PYTHON) -m pytest -m "slow or not slow"

ci: ## everything in a fresh virtual environment, as the server does
	.ci/run
