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

# A test file runs in one process, so that its fixtures are made once; the files are shared out.
PARALLEL  := -n auto --dist loadfile
# What `make check` leaves out: tests that load a network, start an engine or many processes, run a whole stage, or fit
# for seconds.
HEAVY     := analysis/test_explain.py analysis/test_projection.py analysis/test_search.py backbones cache/test_verify.py \
             cli/test_cli.py core/test_outputs.py core/test_shards.py core/test_slurm.py decoding/test_gpu.py \
             decoding/test_pool.py embedding engines faults fitting/test_pooling.py heads/test_classic.py \
             heads/test_linear.py heads/test_logistic.py heads/test_small.py heads/test_tuned.py labelling scouting \
             sources/test_opening.py sources/test_retries.py sources/test_same_images.py stages/test_calls.py \
             stages/test_doctor.py stages/test_extract.py stages/test_extract_faults.py stages/test_finetune.py \
             stages/test_fit_head.py stages/test_predict.py stages/test_scout.py test_docs.py test_startup.py training
# What computes embeddings, and so depends on the processor.
ENGINES   := tests/engines tests/embedding tests/backbones tests/training tests/decoding/test_gpu.py \
             tests/stages/test_extract.py tests/stages/test_predict.py
UV        := .venvs/uv/bin/uv
# tests/avx2/sitecustomize.py says what these do.
AVX2      := PYTHONPATH=tests/avx2 ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 OPENBLAS_CORETYPE=Haswell

.DEFAULT_GOAL := help
.PHONY: help install extract fit-head finetune check lint format test test-avx2 test-slow test-faults \
	test-browser test-lowest test-newest coverage bench docs clean
.DELETE_ON_ERROR:

help: ## List the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

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

check: lint ## Check style and types and run the quick tests, in under a minute
	$(BIN)/python -m pytest $(PARALLEL) $(addprefix --ignore=tests/,$(HEAVY)) $(ARGS)

lint: $(DEV) ## Check style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(DEV) ## Correct style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: $(DEV) ## Run all tests but the slow ones
	$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

test-avx2: $(DEV) ## Run the tests of engines and extraction without AVX-512 and bfloat16 (on x86)
	$(AVX2) $(BIN)/python tests/avx2/check.py
	$(AVX2) $(BIN)/python -m pytest $(PARALLEL) $(ENGINES) $(ARGS)

test-slow: $(DEV) ## Run the slow tests
	$(BIN)/python -m pytest $(PARALLEL) -m slow $(ARGS)

test-faults: $(DEV) data/pillow-images ## Run the long fault-injection sweeps, 25 minutes (Debian: apt-get install strace)
	PILLOW_IMAGES=data/pillow-images $(BIN)/python -m pytest -m faults $(ARGS)

data/pillow-images: | $(INSTALLED)
	@mkdir -p data
	$(BIN)/python scripts/fetch_pillow_images.py $@

test-browser: $(DEV) ## Look at the pages in headless Chromium (Debian: apt-get install chromium)
	$(PIP) --editable '.[dev,browser]'
	$(BIN)/python -m pytest -m browser $(ARGS)

# A version of Python, or the path of an interpreter.
test-lowest: AT ?= 3.11
test-newest: AT ?= 3.13

test-lowest: $(UV) ## Run the tests with the lowest versions that pyproject.toml allows (AT=3.11)
	$(UV) venv --quiet --clear --python $(AT) .venvs/lowest
	$(UV) pip install --quiet --python .venvs/lowest --resolution lowest-direct --editable '.[dev]'
	.venvs/lowest/bin/python -m pytest $(PARALLEL) $(ARGS)

test-newest: $(UV) ## Run the tests with the newest versions there are, whatever constraints.txt says (AT=3.13)
	$(UV) venv --quiet --clear --python $(AT) .venvs/newest
	$(UV) pip install --quiet --python .venvs/newest --upgrade --editable '.[dev]'
	.venvs/newest/bin/python -m pytest $(PARALLEL) $(ARGS)

$(UV):
	$(PYTHON) -m venv .venvs/uv
	.venvs/uv/bin/pip --quiet --disable-pip-version-check install uv

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
