# The front door. `make help` lists what there is.
#
#   make extract IMAGES=photos/ CACHE=photos.h5 BACKBONE=torchvision/resnet50
#   make fit-head CACHE=photos.h5

PYTHON   ?= python3
IMAGES   ?= data/digits
CACHE    ?= data/digits.h5
BACKBONE ?= efficientnet_lite0
RUN      ?= $(basename $(CACHE))-head
TUNED    ?= $(basename $(CACHE))-tuned
ARGS     ?=

BIN       := .venv/bin
INSTALLED := .venv/.installed
DEV       := .venv/.installed-dev
PIP       := $(BIN)/pip --quiet --disable-pip-version-check install --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help install extract fit-head finetune lint format test test-slow test-faults test-browser coverage bench docs clean
.DELETE_ON_ERROR:

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

install: $(INSTALLED) ## Create .venv and install the package

extract: $(INSTALLED) $(if $(filter data/digits,$(IMAGES)),data/digits) ## Embed IMAGES into CACHE with BACKBONE (default: scikit-learn's digits)
	@mkdir -p "$$(dirname '$(CACHE)')"
	$(BIN)/pipeline extract '$(IMAGES)' -o '$(CACHE)' --backbone $(BACKBONE) $(ARGS)

fit-head: $(INSTALLED) ## Fit a head on CACHE and report in RUN
	$(BIN)/pipeline fit-head '$(CACHE)' -o '$(RUN)' $(ARGS)

finetune: $(INSTALLED) ## Train the network behind CACHE from the head in RUN on, into TUNED
	$(PIP) --editable '.[finetune]'
	$(BIN)/pipeline finetune '$(CACHE)' '$(RUN)' -o '$(TUNED)' $(ARGS)

data/digits: | $(INSTALLED)
	@mkdir -p data
	$(BIN)/python scripts/make_images.py digits $@

lint: $(DEV) ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(DEV) ## Mend style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: $(DEV) ## Run the tests that are quick
	$(BIN)/python -m pytest $(ARGS)

test-slow: $(DEV) ## Run the slow tests
	$(BIN)/python -m pytest -m slow $(ARGS)

test-faults: $(DEV) data/pillow-images ## Run the long fault-injection sweeps, 25 minutes (Debian: apt-get install strace)
	PILLOW_IMAGES=data/pillow-images $(BIN)/python -m pytest -m faults $(ARGS)

data/pillow-images: | $(INSTALLED)
	@mkdir -p data
	$(BIN)/python scripts/fetch_pillow_images.py $@

test-browser: $(DEV) ## Look at the pages in headless Chromium (Debian: apt-get install chromium)
	$(PIP) --editable '.[dev,browser]'
	$(BIN)/python -m pytest -m browser $(ARGS)

coverage: $(DEV) ## Run the quick tests under branch coverage
	$(BIN)/python -m pytest --cov --cov-report=term-missing:skip-covered $(ARGS)

bench: $(INSTALLED) ## Measure extraction and the cache (docs/performance.md)
	$(BIN)/python scripts/bench_extract.py
	$(BIN)/python scripts/bench_cache.py

docs: $(DEV) ## Write the command reference and build the site; any warning fails it
	$(PIP) --editable '.[dev,docs]'
	$(BIN)/python scripts/make_cli_reference.py
	$(BIN)/python -m sphinx -b html -W --keep-going -q docs site $(ARGS)

clean: ## Remove what make made, but for data and the environment
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) --editable .
	@touch $@

$(DEV): $(INSTALLED)
	$(PIP) --editable '.[dev]'
	@touch $@
