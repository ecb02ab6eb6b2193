# make demo: data, training, evaluation and report, from nothing, in a quarter of an hour on two cores.
# make libero: the official LIBERO recipe in small sizes, from demonstrations to an evaluation.
# make test: what changes with daily work, in some twenty-five minutes on two cores.
# make test-all: what takes longer, too; an hour and more.
# make test-whole: whole paths, which take many minutes each.
# Each makes its own environment in .venv first.

PYTHON ?= python3
RUNS ?= runs
BIN := .venv/bin
DATASET := $(RUNS)/rlds/metaworld_faucet/1.0.0
RUN := $(RUNS)/quickstart

LIBERO := $(RUNS)/libero
LIBERO_CONFIG := configs/libero.py:tiny
LIBERO_DATASET := $(LIBERO)/rlds/libero_goal_no_noops/1.0.0
LIBERO_DEMONSTRATIONS ?= 40
LIBERO_AUTOENCODER_STEPS ?= 600
LIBERO_TRAIN ?=
LIBERO_EVALUATE ?= --episodes=30

.PHONY: demo libero test test-all test-whole lint clean opengl
.DELETE_ON_ERROR:

# Each training step on a CPU takes 200 MB and gives them back. In large pages (glibc 2.35 and newer)
# the kernel has 300 times fewer pages to fill with zeros, and a step takes a tenth less time.
demo libero: export GLIBC_TUNABLES = glibc.malloc.hugetlb=1
demo: $(RUN)/evaluation/report.html
	@echo "open $<"

# The stamps say which extras are installed. The public client of openpi asks for NumPy 1 and works
# with NumPy 2: it is installed without its dependencies, which are there.
.venv/demo: setup.cfg constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[sim,tfds]'
	touch $@

.venv/test: .venv/demo
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[sim,libero,tfds,lerobot,beam,aot,wandb,serve,gcs,parity,dev]'
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps openpi-client
	touch $@

# MuJoCo draws without a display through EGL, a system library. As root on Debian it is installed
# here; elsewhere the message says what to install.
opengl: .venv/demo
	@$(BIN)/python -m imagewam_jax.evaluation.simulators.opengl || { \
	  [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
	  apt-get update -qq && \
	  apt-get install -y -qq libegl1 libopengl0 libgl1 libgl1-mesa-dri libglib2.0-0 >/dev/null && \
	  $(BIN)/python -m imagewam_jax.evaluation.simulators.opengl; }

$(DATASET)/dataset_info.json: | .venv/demo opengl
	$(BIN)/python data/metaworld_faucet/collect.py --output $(RUNS)/raw --episodes-per-task 100 --workers 2
	$(BIN)/python data/metaworld_faucet/build.py --raw $(RUNS)/raw --output $(RUNS)/rlds

$(RUN)/trained: $(DATASET)/dataset_info.json configs/quickstart.py
	$(BIN)/imagewam train --config=configs/quickstart.py --workdir=$(RUN) --resume \
	  --config.data.directory=$(DATASET)
	touch $@

$(RUN)/evaluation/report.html: $(RUN)/trained | opengl
	$(BIN)/imagewam evaluate --checkpoint=$(RUN)

libero: $(LIBERO)/run/evaluation/report.html
	@echo "open $<"

.venv/libero: .venv/demo
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[sim,libero,tfds,text]'
	touch $@

# Tasks 1 and 8 put the same bowl from the same starts on the stove or on the plate.
$(LIBERO_DATASET)/dataset_info.json: | .venv/libero opengl
	$(BIN)/python data/libero/collect.py --output $(LIBERO)/raw --tasks 1,8 --starts wide \
	  --episodes-per-task $(LIBERO_DEMONSTRATIONS) --workers 2
	$(BIN)/python data/libero/build.py --raw $(LIBERO)/raw --output $(LIBERO)/rlds

$(LIBERO)/released.made: $(LIBERO_DATASET)/dataset_info.json
	$(BIN)/python tiny_networks/make.py --config $(LIBERO_CONFIG) --to $(LIBERO)/released \
	  --autoencoder-steps $(LIBERO_AUTOENCODER_STEPS) --config.data.directory=$(LIBERO_DATASET)
	touch $@

# `imagewam convert` refuses a folder with another checkpoint: what an interrupted run left is removed.
$(LIBERO)/weights.converted: $(LIBERO)/released.made
	rm -rf $(LIBERO)/weights
	$(BIN)/imagewam convert $(LIBERO)/released/FLUX.2-tiny --to $(LIBERO)/weights/klein-tiny \
	  --expert-init --set expert_dim=64
	$(BIN)/imagewam convert $(LIBERO)/released/ae.safetensors --to $(LIBERO)/weights/autoencoder
	$(BIN)/imagewam convert $(LIBERO)/released/Qwen3-tiny --to $(LIBERO)/weights/qwen3-tiny
	touch $@

$(LIBERO)/text.safetensors: $(LIBERO)/weights.converted
	$(BIN)/imagewam encode-text --config=$(LIBERO_CONFIG) --output=$@ \
	  --config.data.directory=$(LIBERO_DATASET) \
	  --config.text.weights=$(LIBERO)/weights/qwen3-tiny

# In float32, since most CPUs compute with bfloat16 more slowly.
$(LIBERO)/run.trained: $(LIBERO)/text.safetensors
	$(BIN)/imagewam train --config=$(LIBERO_CONFIG) --workdir=$(LIBERO)/run --resume \
	  --config.data.directory=$(LIBERO_DATASET) \
	  --config.train.initial_weights=$(LIBERO)/weights/klein-tiny \
	  --config.autoencoder.weights=$(LIBERO)/weights/autoencoder \
	  --config.text.table=$(LIBERO)/text.safetensors \
	  --config.train.compute_dtype=float32 $(LIBERO_TRAIN)
	touch $@

$(LIBERO)/run/evaluation/report.html: $(LIBERO)/run.trained | opengl
	$(BIN)/imagewam evaluate --checkpoint=$(LIBERO)/run --resume $(LIBERO_EVALUATE)

PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: .venv/test opengl
	$(PYTEST) -m "not slow and not whole"

test-all: .venv/test opengl
	$(PYTEST) -m "not whole"

test-whole: .venv/test opengl
	$(PYTEST) -m whole

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(RUNS)
