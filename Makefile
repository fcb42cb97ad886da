# make demo, make test: each does all of the set-up on a fresh machine with Python 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin
export HF_HUB_DISABLE_TELEMETRY = 1
export TOKENIZERS_PARALLELISM = false

.PHONY: setup demo test lint types layers check learning doctor-bench clean

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test,lint,recipes]"
	touch $@

demo: setup
	$(BIN)/trimtab run recipes/sandbox-ppo.yaml

test: setup
	$(BIN)/python -m pytest -n 2 tests src

lint: setup
	$(BIN)/ruff check src tests recipes benchmarks
	$(BIN)/ruff format --check src tests recipes benchmarks

types: setup
	$(BIN)/basedpyright

layers: setup
	$(BIN)/lint-imports

check: lint types layers test

# Every online method on real training, three seeds; a stopped run goes on.
learning: setup
	$(BIN)/python -m benchmarks.learning --out runs/learning

# The doctor on planted faults, healthy runs and hard negatives; a stopped benchmark goes on.
doctor-bench: setup
	$(BIN)/python -m benchmarks.doctor --seeds 10-29 --report 10-29 --out runs/doctor-bench --docs docs

clean:
	rm -rf .venv runs
