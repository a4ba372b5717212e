# Targets for a machine with Python, pip and make. Each sets up what it needs; a second run is quick.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Test processes at a time, one thread each; tests of one file stay together, as they share what is slow to make.
JOBS ?= 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder
READY := $(VENV)/.ready

.PHONY: help setup quickstart bench gpu-check test test-long test-fast test-network test-oldest check check-bare format clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(READY): pyproject.toml requirements/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile \
		--constraint requirements/constraints.txt --editable '.[image,robustness,export,dev]'
	touch $(READY)

setup: $(READY)  ## make the virtual environment and install everything into it

quickstart: $(READY)  ## the main job: three arms on real images, a table and a page
	$(BIN)/lmgraft quickstart --out runs/quickstart

bench: $(READY)  ## what a frozen block costs: time and memory, a table and charts; minutes
	$(BIN)/lmgraft bench --grid quick --out runs/bench

gpu-check: $(READY)  ## whether it is right and cheap on this GPU: a page and JSON; at most six minutes
	$(BIN)/python benchmarks/gpu_check.py --out runs/gpu_check

test: $(READY)  ## every kind of test that needs no network
	$(PYTEST) -m "not network and not long"

test-long: $(READY)  ## what `make test` leaves out: sweeps over every case, checks of minutes
	$(PYTEST) -m "long and not network"

test-fast: $(READY)  ## tests without the slow whole-program checks
	$(PYTEST) -m "not slow and not long and not network"

test-network: $(READY)  ## the few tests that fetch real weights and images
	$(BIN)/python -m pytest -m network

# The lowest versions that pyproject.toml declares, as uv resolves them (it comes from the package index); their warnings
# are theirs. EXTRAS=image,transformers,export takes the higher minimum of what needs transformers 5.
EXTRAS ?= image,medical
OLDEST := build/oldest
OLDEST_TESTS := tests/test_versions.py tests/forms/test_forms.py tests/test_names.py tests/test_checkpoint.py \
	tests/test_graft.py tests/test_hosts.py tests/test_save.py tests/test_export.py tests/test_borrowed.py \
	tests/test_families.py tests/runs/test_check_data.py tests/runs/test_training.py tests/runs/test_cli.py
test-oldest:  ## a short test of every kind under the oldest versions of what lmgraft needs
	$(PYTHON) -m venv --clear $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(OLDEST)/bin/uv pip install --quiet --python $(OLDEST)/bin/python --resolution lowest-direct \
		--editable '.[$(EXTRAS),test]'
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -n $(JOBS) --dist loadfile -o filterwarnings= -W ignore \
		-m "not slow and not long and not network" $(OLDEST_TESTS)

check: $(READY)  ## lint, format, types and layering
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check-bare:  ## build the wheel, install it with its core dependencies alone, import and use it
	rm -rf build/bare
	$(PYTHON) -m venv build/bare
	build/bare/bin/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir build/bare/wheel .
	build/bare/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint requirements/constraints.txt build/bare/wheel/*.whl
	build/bare/bin/python tests/bare.py

format: $(READY)  ## format the code and mend what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the virtual environment and caches; runs are kept
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build dist src/*.egg-info
