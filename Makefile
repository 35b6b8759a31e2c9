# The targets of README; `make help` lists them. Everything is installed into $(VENV), nothing outside this folder.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

# Where there are builds of PyTorch without CUDA, gigabytes smaller: make test TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
INSTALL = $(BIN)/pip install --disable-pip-version-check $(addprefix --extra-index-url ,$(TORCH_INDEX)) --editable

# make caption IMAGE=~/me.jpg
IMAGE ?= demo/examples
# make train DATA=... WORLD=... ENCODER=... ARGS="--optimization.epochs 3"; the defaults are on the Hub unless ../shared has them
DATA ?= $(or $(wildcard ../shared/flickr8k),jxie/flickr8k)
WORLD ?= ../shared/world
ENCODER ?= $(or $(wildcard ../shared/encoders/tf_efficientnet_lite0),timm/tf_efficientnet_lite0.in1k)

# Left out of test-fast: browsers, fuzzing, whole commands, graphs, Java
SLOW_TESTS = web hub test_bad_images.py test_captioner.py test_checkpoint_limits.py test_doors.py test_faults.py \
	test_fuzz.py test_readme.py test_remote_code.py test_threads.py cli/test_caption_output.py cli/test_cli.py \
	cli/test_score.py cli/test_train.py evaluation/test_meteor.py inference/test_export.py test_scoring_run.py \
	training/test_processes.py training/test_run.py

.PHONY: help caption test test-fast compat e2e lint docs train train-flickr8k card demo bench clean
.DEFAULT_GOAL = help

help:  ## list these targets
	@sed -n 's/^\([a-z0-9-]*\):.*##/  make \1 \t/p' Makefile | expand -t 18

caption: $(VENV)/.installed  ## caption the example photos, or IMAGE=photo.jpg, with the shipped checkpoint
	@HF_HUB_OFFLINE=1 $(BIN)/gru-captioner caption "$(IMAGE)"

# Number of test processes, each with one torch thread
PROCESSES ?= auto
PYTEST = HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(PROCESSES) --dist loadfile

test: $(VENV)/.installed-dev $(VENV)/.browser  ## run every test, the slow ones too
	$(PYTEST)

test-fast: $(VENV)/.installed-dev  ## run the tests that take seconds: no web page, fuzzing or slow tests; under two minutes
	$(PYTEST) -m "not slow" $(addprefix --ignore=tests/,$(SLOW_TESTS))

compat: $(VENV)/.installed-dev  ## test against several releases of transformers, RELEASES="5.0.0 newest", in .compat/
	OMP_NUM_THREADS=1 $(BIN)/python tests/support/compat.py $(RELEASES)

e2e: $(VENV)/.installed-dev $(VENV)/.browser  ## end-to-end test on synthetic photos, with runs that are killed and resumed
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python tests/support/e2e.py

docs: $(VENV)/.installed-dev $(VENV)/.installed-docs  ## build the documentation into site/; a broken link fails
	rm -rf .site && mkdir .site
	cp --parents *.md docs/*.md docs/*.jpg docs/card/* demo/*.md demo/examples/*.md benchmarks/results/* .site/
	$(BIN)/mkdocs build --strict

lint: $(VENV)/.installed-dev  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Accelerate would use a single core.
THREADS = $(or $(OMP_NUM_THREADS),$(shell getconf _NPROCESSORS_ONLN))

# Trains one stage, of a recipe whose sources are replaced by those of this machine
define stage
	sed -e 's#jxie/flickr8k#$(DATA)#' -e 's#\.\./shared/world#$(WORLD)#' -e 's#timm/tf_efficientnet_lite0.in1k#$(ENCODER)#' \
		configs/$(1).yaml > runs/$(1).yaml
	$(BIN)/accelerate launch --num_cpu_threads_per_process $(THREADS) scripts/train.py --config runs/$(1).yaml $(ARGS)
endef
BORROW = $(BIN)/gru-captioner borrow --images "$(WORLD)/labelled" --captions "$(WORLD)/text" "$(WORLD)/captioned" \
	--synonyms configs/synonyms/coco.yaml

train: $(VENV)/.installed-train  ## train the shipped checkpoint from photos, in ten stages, into runs/
	@test -d "$(WORLD)/labelled" || { echo "make train needs photos with labels and with captions, and captions with labels:" \
		"WORLD=folder with captioned, labelled and text. For Flickr8k alone: make train-flickr8k" >&2; exit 1; }
	$(MAKE) train-flickr8k
	test -d runs/borrowed || $(BORROW) --output runs/borrowed --per-image 5
	test -d runs/borrowed-more || $(BORROW) --output runs/borrowed-more --per-image 10 --candidates 60
	$(call stage,world)
	$(call stage,world-captions)
	$(call stage,world-scst)
	$(call stage,world-scst-again)
	$(call stage,world-scst-256)
	$(call stage,world-scst-256-again)
	$(call stage,world-scst-256-last)

train-flickr8k: $(VENV)/.installed-train  ## the first three stages alone, which know Flickr8k's photos
	mkdir -p runs
	$(call stage,flickr8k)
	$(call stage,fine-tune-encoder)
	$(call stage,scst)

card: $(VENV)/.installed-dev  ## write model_card.md again from the shipped checkpoint and its records
	@HF_HUB_OFFLINE=1 $(BIN)/gru-captioner card hf_gru_captioner/pretrained --output model_card.md \
		--image-folder docs/card --title "A GRU captioner for plain CPUs" --license cc-by-nc-4.0 \
		--datasets jxie/flickr8k --terms docs/terms.md --images demo/examples/*.jpg

demo: $(VENV)/.installed-demo  ## open a page in the browser to caption photos in
	@$(BIN)/gru-captioner demo

bench: $(VENV)/.installed-dev  ## measure what a caption costs beside other captioners, into benchmarks/results/
	@HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/bench.py $(ARGS)

clean:  ## remove the virtual environment and the caches of the tools
	rm -rf $(VENV) .compat .site site .pytest_cache .ruff_cache .mypy_cache

$(VENV)/bin/pip:
	@$(PYTHON) -m venv $(VENV)
	@# the pip that comes with Python 3.11 takes a minute to choose versions that newer ones choose in twenty seconds
	-@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip >&2

# Captioning needs no extra. pip's progress goes to stderr, only captions to stdout.
$(VENV)/.installed: $(VENV)/bin/pip pyproject.toml
	@echo "installing what captioning needs into $(VENV)" >&2
	@$(INSTALL) . >&2
	@touch $@

$(VENV)/.installed-%: $(VENV)/bin/pip pyproject.toml
	@echo "installing what captioning needs and the extra $* into $(VENV)" >&2
	@$(INSTALL) ".[$*]" >&2
	@touch $@ $(VENV)/.installed

# The page is tested in Chromium: that of the system, or apt's, or Playwright's own
$(VENV)/.browser: $(VENV)/.installed-dev
	@command -v chromium chromium-browser google-chrome >/dev/null || \
		{ [ "$$(id -u)" = 0 ] && apt-get -qq update && apt-get -qq install -y --no-install-recommends chromium >/dev/null; } || \
		$(BIN)/playwright install chromium || \
		{ echo "make test needs a browser: install the package chromium, then run it again" >&2; exit 1; }
	@touch $@
