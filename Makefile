# Targets for people and for CI; `make` alone lists them. Nothing here is needed to use the package.
# pip's own settings (index, proxy, certificates, caches) are those of the environment.

# constraints.txt was made for this Python; another one would need other versions.
PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3.11)
TRAINERS ?= 4
CONFIG ?= configs/shop.yaml
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
EXTRAS := $(VENV)/extras

.DEFAULT_GOAL := help
.PHONY: help setup train study-demo test test-machines kill-table bench bench-quick lint format clean

help:  ## List the targets
	@echo "make TARGET [ARGS=...]"
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' $(MAKEFILE_LIST) | while IFS='|' read -r name text; do printf '  %-13s %s\n' "$$name" "$$text"; done
	@echo "Examples: make train ARGS=\"train.epochs=3 run.dir=runs/try\"    make test ARGS=\"-k config -x\""

setup: $(STAMP)  ## Make .venv with the pinned packages and this one (3 to 10 minutes the first time, then instant)

# The stamp is written last. Without it .venv is half made, by an interrupted setup or by something else, and is made anew;
# with an outdated one it is whole, and only what changed is installed.
$(STAMP): setup.py constraints.txt pyproject.toml
	@if ! [ -e $@ ]; then \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || \
	    { echo "setup: Python 3.11 is needed and $(PYTHON) is not it; name one: make setup PYTHON=/path/to/python3.11" >&2; exit 1; }; \
	  rm -rf $(VENV); \
	  $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	    echo "setup: $(PYTHON) cannot make a virtual environment; on Debian or Ubuntu: apt-get install python3.11-venv" >&2; exit 1; }; \
	fi
	@rm -f $@
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[test]' || \
	  { echo "setup: pip failed, see above; after mending the cause run 'make setup' again" >&2; exit 1; }
	@touch $@

# Encoders of texts and pictures: tested always, installed by a user who wants them.
$(EXTRAS): $(STAMP)
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[test,text,image]'
	@touch $@

train: $(STAMP)  ## Train on the made-up shop with TRAINERS=4 processes, then write recommendations
	$(BIN)/torchrun --nproc_per_node=$(TRAINERS) launch/train.py --config $(CONFIG) train.resume=true $(ARGS)
	$(BIN)/python launch/recommend.py --config $(CONFIG) $(ARGS)

study-demo: $(STAMP)  ## Compare four variants of BM3 on the made-up shop, and write the page of it (4 minutes)
	$(BIN)/python launch/study.py --config configs/study_demo.yaml $(ARGS)
	$(BIN)/python launch/report.py runs/studies/demo

test: $(EXTRAS)  ## Run every test
	$(BIN)/python -m pytest $(ARGS)

test-machines: $(STAMP)  ## Run the tests of several machines and pods, in network namespaces (as root)
	$(BIN)/python -m pytest tests/machines tests/k8s $(ARGS)

kill-table: $(STAMP)  ## Kill everything at every moment and write the table to kill-table.md (an hour, as root)
	BM3_KILL_ALL=1 BM3_KILL_TABLE=$(CURDIR)/kill-table.md $(BIN)/python -m pytest tests/machines/test_failures.py $(ARGS)

bench: $(STAMP)  ## Measure everything (45 minutes, 24 GB of memory); BABY=DIR with Amazon Baby's files; see docs/BENCHMARKS.md
	$(BIN)/python -m benchmarks $(if $(BABY),--baby $(BABY)) $(ARGS)

bench-quick: $(STAMP)  ## Measure a tenth of the size once (5 minutes)
	$(BIN)/python -m benchmarks --quick $(if $(BABY),--baby $(BABY)) $(ARGS)

lint: $(STAMP)  ## Check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## Mend what lint says about formatting and import order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## Remove .venv and every cache; data, parts and runs stay
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
