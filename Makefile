# Commands for a fresh machine with Python 3.11, make and git: `make train`, `make test`.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.ready
ARGS ?=

.PHONY: help setup train test faults soak lint wheel-test docs lock clean
.DEFAULT_GOAL := help

help: ## Show this
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(STAMP) ## Create .venv with exactly the packages of requirements.lock

# --compile-bytecode: each rank of a run starts in a third of the time
$(STAMP): requirements.lock pyproject.toml
	@echo "installing the packages of requirements.lock into .venv: 6 GB on disk, some minutes the first time"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip sync --python $(BIN)/python --compile-bytecode --require-hashes requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	touch $(STAMP)

train: setup ## Pretrain on CIFAR-10 and probe: the quick start (ARGS="task=random seed=1")
	$(BIN)/python train.py experiment=quick_start $(ARGS)

test: setup ## Run the fast tests (ARGS="-m slow" for the rest)
	$(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

faults: setup ## Kill runs, fill disks, and check that nothing is lost (20 minutes)
	$(BIN)/python -m pytest -m slow tests/faults $(ARGS)

soak: setup ## Train short epochs for an hour; check memory and descriptors (ARGS="--minutes 5")
	$(BIN)/python -m tests.faults.soak $(ARGS)

lint: setup ## Check style, types and the examples in docstrings
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --doctest-modules ssl_lightning -q

wheel-test: setup ## Build the wheel and run it in an environment of its own (2 minutes)
	.ci/wheel $(BIN)

docs: .venv-docs/.ready ## Build the documentation into site/, in an environment of its own
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build

.venv-docs/.ready: docs/requirements.lock
	test -x .venv-docs/bin/python || $(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r docs/requirements.lock
	touch $@

lock: setup ## Pin the newest allowed packages into requirements.lock
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --extra dev --extra export \
		--generate-hashes --no-emit-index-url --custom-compile-command "make lock" pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--custom-compile-command "make lock" docs/requirements.in -o docs/requirements.lock

clean: ## Remove .venv and caches; outputs and data stay
	rm -rf .venv .venv-docs site build dist .pytest_cache .mypy_cache .ruff_cache *.egg-info
