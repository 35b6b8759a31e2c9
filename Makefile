# The targets of README; `make help` lists them. Everything is installed into $(VENV), nothing outside this folder.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

# make caption IMAGE=~/me.jpg
IMAGE ?= demo/examples
# make train DATA=... ENCODER=... ARGS="--optimization.epochs 3"; the defaults are on the Hub unless ../shared has them
DATA ?= $(or $(wildcard ../shared/flickr8k),jxie/flickr8k)
ENCODER ?= $(or $(wildcard ../shared/encoders/tf_efficientnet_lite0),timm/tf_efficientnet_lite0.in1k)

# What test-fast leaves to test: browsers, fuzzing, whole commands, graphs, Java
SLOW_TESTS = web hub test_bad_images.py test_captioner.py test_checkpoint_limits.py test_doors.py test_faults.py \
	test_fuzz.py test_readme.py test_remote_code.py test_threads.py cli/test_caption_output.py cli/test_cli.py \
	cli/test_score.py cli/test_train.py evaluation/test_meteor.py inference/test_export.py test_scoring_run.py \
	training/test_processes.py training/test_run.py

.PHONY: help caption test test-fast compat e2e lint docs train card demo bench clean
.DEFAULT_GOAL = help

help:  ## list these targets
	@sed -n 's/^\([a-z0-9-]*\):.*##/  make \1 \t/p' Makefile | expand -t 18

caption: $(VENV)/.installed  ## caption the example photos, or IMAGE=photo.jpg, with the shipped checkpoint
	@HF_HUB_OFFLINE=1 $(BIN)/gru-captioner caption "$(IMAGE)"

# Processes that test side by side, each with one thread of torch
PROCESSES ?= auto
PYTEST = HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(PROCESSES) --dist loadfile

test: $(VENV)/.installed-dev $(VENV)/.browser  ## run every test, the slow ones too
	$(PYTEST)

test-fast: $(VENV)/.installed-dev  ## run what takes seconds, without the page, fuzzing and the slow ones; under two minutes
	$(PYTEST) -m "not slow" $(addprefix --ignore=tests/,$(SLOW_TESTS))

compat: $(VENV)/.installed-dev  ## test against several releases of transformers, RELEASES="5.0.0 newest", in .compat/
	OMP_NUM_THREADS=1 $(BIN)/python tests/support/compat.py $(RELEASES)

e2e: $(VENV)/.installed-dev $(VENV)/.browser  ## live a captioner's whole life once, with kills, on drawn photos
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python tests/support/e2e.py

docs: $(VENV)/.installed-docs  ## build the documentation into site/; a broken link fails
	rm -rf .site && mkdir .site
	cp --parents *.md docs/*.md docs/*.jpg docs/card/* demo/*.md demo/examples/*.md benchmarks/results/* .site/
	$(BIN)/mkdocs build --strict

lint: $(VENV)/.installed-dev  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

train: $(VENV)/.installed-dev  ## train the shipped checkpoint from photos, in three stages, into runs/
	$(BIN)/accelerate launch --cpu scripts/train.py --config configs/flickr8k.yaml \
		--data.source "$(DATA)" --model.encoder "$(ENCODER)" $(ARGS)
	$(BIN)/accelerate launch --cpu scripts/train.py --config configs/fine-tune-encoder.yaml --data.source "$(DATA)" $(ARGS)
	$(BIN)/accelerate launch --cpu scripts/train.py --config configs/scst.yaml --data.source "$(DATA)" $(ARGS)

card: $(VENV)/.installed-dev  ## write model_card.md again from the shipped checkpoint and its records
	@HF_HUB_OFFLINE=1 $(BIN)/gru-captioner card hf_gru_captioner/pretrained --output model_card.md \
		--image-folder docs/card --title "A GRU captioner for plain CPUs" --license cc-by-nc-4.0 \
		--datasets jxie/flickr8k --terms docs/flickr8k.md --images demo/examples/*.jpg

demo: $(VENV)/.installed-dev  ## open a page in the browser to caption photos in
	@$(BIN)/gru-captioner demo

bench: $(VENV)/.installed-dev  ## measure what a caption costs beside other captioners, into benchmarks/results/
	@HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/bench.py $(ARGS)

clean:  ## remove the virtual environment and the caches of the tools
	rm -rf $(VENV) .compat .site site .pytest_cache .ruff_cache .mypy_cache

$(VENV)/bin/pip:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/pip pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

# The page is tested in Chromium: that of the system, or apt's, or Playwright's own
$(VENV)/.browser: $(VENV)/.installed-dev
	@command -v chromium chromium-browser google-chrome >/dev/null || \
		{ [ "$$(id -u)" = 0 ] && apt-get -qq update && apt-get -qq install -y --no-install-recommends chromium >/dev/null; } || \
		$(BIN)/playwright install chromium || \
		{ echo "make test needs a browser: install the package chromium, then run it again" >&2; exit 1; }
	@touch $@

$(VENV)/.installed-dev: $(VENV)/bin/pip pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[dev]"
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: $(VENV)/.installed-dev
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[docs]"
	@touch $@
