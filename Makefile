# Every target sets itself up in .venv; nothing outside this folder is touched.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
BIN := .venv/bin
JOBS ?= 2
PYTEST := python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder
INSTALL := $(BIN)/python -m pip install --progress-bar on --constraint lock.txt --editable .

.PHONY: setup demo pictures test test-all test-gpu test-ray test-newest test-lowest lock check lint types imports format docs dist clean help

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

.venv/.run: pyproject.toml lock.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed and none was found; set PYTHON=/path/to/python"; exit 1; }
	@echo "Installing what a sweep needs into .venv."
	@echo "  Download: about 0.5 GB. On Linux about 3.3 GB, because torch from PyPI brings CUDA. Twice that on disk."
	@echo "  Time: about 2 minutes on a fast network. This happens once for each lock.txt; pip shows its progress below."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(INSTALL)
	@touch $@

.venv/.ready: .venv/.run
	@echo "Installing the development tools into .venv (download: about 0.2 GB)."
	$(INSTALL) --group dev
	@touch $@

setup: .venv/.ready  ## make .venv with everything in it, development tools too

demo: .venv/.run  ## the quickstart sweep, end to end: table, scaling curve, report (7 to 10 minutes on 2 cores)
	$(BIN)/sweeps run examples/quickstart.toml

pictures: setup  ## the figures of docs/images, from the tables under docs/results
	$(BIN)/python -m tools.pictures

check: setup  ## style, types and the import order, side by side
	@$(MAKE) --no-print-directory --jobs=3 lint types imports

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

imports: setup
	$(BIN)/lint-imports

test: check  ## checks and all but the slow tests, in JOBS processes (2)
	$(BIN)/$(PYTEST)

test-all: check  ## slow tests too
	$(BIN)/$(PYTEST) -m 'slow or not slow'

test-gpu: setup  ## those that need a CUDA device
	$(BIN)/python -m pytest -m gpu tests/gpu

test-ray: setup  ## those with Ray in them, on another release, which stays installed: RAY=2.56
	$(BIN)/python -m pip install --quiet 'ray[tune,train]==$(RAY).*'
	$(BIN)/$(PYTEST) tests/sweeps/cluster tests/sweeps/lanes tests/sweeps/engine

test-newest: RESOLUTION := highest
test-newest:  ## all but the slow tests, on the newest versions that pyproject.toml allows, in .venv/test-newest

test-lowest: RESOLUTION := lowest-direct
test-lowest:  ## the same on the oldest versions (of our own requirements, not of theirs), in .venv/test-lowest

# Old libraries give warnings that newer ones no longer give. So warnings are errors only on the newest versions.
# Without `datasets<5`, uv chooses a new datasets among the oldest versions, because it wants a newer fsspec.
test-newest test-lowest: $(BIN)/uv
	$(BIN)/uv venv --quiet --allow-existing --python $(PYTHON) .venv/$@
	$(BIN)/uv pip install --python .venv/$@ --upgrade --resolution $(RESOLUTION) --editable . --group dev \
		$(if $(filter %-lowest,$@),'datasets<5')
	.venv/$@/bin/$(PYTEST) $(if $(filter %-lowest,$@),-W default)

$(BIN)/uv:
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade 'uv>=0.8'

# One resolution for every Python and platform. UV_CONSTRAINT=FILE holds packages back, as for any command of uv.
lock: $(BIN)/uv  ## lock.txt anew, with the newest versions that pyproject.toml allows; says what changed
	@cp lock.txt .venv/lock-before.txt
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --all-extras --group dev --group docs \
		--no-annotate --no-header --output-file lock.txt pyproject.toml
	@$(BIN)/python -m tools.lock .venv/lock-before.txt lock.txt

dist:  ## the sdist and the wheel, in dist/, checked as the package index checks them
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet 'build>=1.2' 'twine>=6'
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

.venv/.docs: .venv/.ready
	$(INSTALL) --group docs
	@touch $@

docs: .venv/.docs  ## the pages of docs/ and the Python interface as a site, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove what the targets made, but results/
	rm -rf .venv site .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
