# make demo: data, training, evaluation and report, from nothing, in a quarter of an hour on two cores.
# make test: what changes with daily work, in about ten minutes on two idle cores.
# make test-all: the whole test suite.
# Each makes its own environment in .venv first.

PYTHON ?= python3
RUNS ?= runs
BIN := .venv/bin
DATASET := $(RUNS)/rlds/metaworld_faucet/1.0.0
RUN := $(RUNS)/quickstart

.PHONY: demo test test-all lint clean opengl
.DELETE_ON_ERROR:

# Each training step on a CPU takes 200 MB and gives them back. In large pages (glibc 2.35 and newer)
# the kernel has 300 times fewer pages to fill with zeros, and a step takes a tenth less time.
demo: export GLIBC_TUNABLES = glibc.malloc.hugetlb=1
demo: $(RUN)/evaluation/report.html
	@echo "open $<"

# The stamps say which extras are installed.
.venv/demo: setup.cfg constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[sim,tfds]'
	touch $@

.venv/test: .venv/demo
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[sim,libero,tfds,lerobot,beam,aot,wandb,serve,parity,dev]'
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

PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: .venv/test opengl
	$(PYTEST) -m "not slow"

test-all: .venv/test opengl
	$(PYTEST)

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(RUNS)
