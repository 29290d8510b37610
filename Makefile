# The one-line verbs of the project. All of them use one virtual environment, made on demand:
# about 6 GB with the default torch. Another Python: make test PYTHON=python3.12
PYTHON ?= python3
VENV ?= .venv
PEERS ?= .venv-peers
RUN := $(VENV)/bin/python -m
PARALLEL := -n 2 --dist loadgroup
PIPELINE ?= experiments/configs/pocket/pipeline.yaml

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all lint bench bench-own bench-gpu bench-peers

help:
	@echo "make install      a virtual environment in $(VENV), about 6 GB and 3 minutes"
	@echo "make demo         data, all stages and the report of the pocket: a quarter of an hour on two cores"
	@echo "make test         the default tests: two minutes; make test-all: the slow ones too"
	@echo "make lint         ruff"
	@echo "make bench        our code against peers and limits: half an hour alone on the machine"
	@echo "make bench-own    from a folder of pictures to a metric, three times: five minutes, after make demo"
	@echo "make bench-peers  against sentence-transformers and faiss, in an environment of its own"
	@echo "make bench-gpu    training, memory, generation and judging on one GPU"
install:   $(VENV)/.installed
demo:      install ; $(RUN) experiments.pipeline $(PIPELINE)
test:      install ; $(RUN) pytest $(PARALLEL)
test-all:  install ; $(RUN) pytest $(PARALLEL) -m ""
lint:      install ; $(RUN) ruff check . && $(RUN) ruff format --check .
bench:     install ; $(RUN) experiments.bench
bench-own: install ; $(RUN) experiments.bench.first_metric
bench-gpu: install ; $(RUN) experiments.bench_gpu
bench-peers: $(PEERS)/.installed ; $(PEERS)/bin/python -m experiments.bench_peers

# One pip command, so that the resolver picks a torch and a torchvision that fit each other.
$(VENV)/.installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	echo '*' > $(VENV)/.gitignore
	$(VENV)/bin/pip install --disable-pip-version-check -e '.[dev]'
	touch $@

$(PEERS)/.installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(PEERS)
	echo '*' > $(PEERS)/.gitignore
	$(PEERS)/bin/pip install --disable-pip-version-check -e '.[pocket]' sentence-transformers faiss-cpu
	touch $@
