PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
BENCHMARKS := loaders train_step memory_format data_wait start step_overhead \
	prepare scaling determinism defaults profile time_to_accuracy

.PHONY: help setup demo test test-faults benchmark ablation lint clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-11s %s\n", $$1, $$2 }' Makefile

setup: $(READY)  ## create .venv with all requirements (PYTHON=python3.12 to choose the interpreter)

$(READY): requirements.txt requirements-dev.txt constraints.txt scripts/setup.sh
	@PYTHON="$(PYTHON)" sh scripts/setup.sh
	@touch $@

demo: setup  ## train, evaluate and write a submission on drawn shapes: no download, minutes on a CPU
	$(BIN)/accelerate launch train.py --recipe recipes/demo.yaml --name demo
	$(BIN)/python evaluate.py runs/demo
	$(BIN)/python -m data.shapes datasets/shapes
	$(BIN)/python submit.py runs/demo --images datasets/shapes/test --out runs/demo/submission.csv

# OMP_WAIT_POLICY: threads that wait would spin, on cores that other tests could use.
test: setup  ## run the tests, some side by side
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist worksteal

test-faults: setup  ## the fault tests in full: 25 kills, every combination of settings for resumed runs
	KILLS=25 ALL_CASES=1 $(BIN)/python -m pytest tests/faults tests/test_ranks.py

benchmark: setup  ## measure everything: tables, and JSON in benchmarks/results (FLAGS=--quick: a rehearsal)
	@$(MAKE) --no-print-directory --jobs=1 --keep-going $(addprefix benchmark-,$(BENCHMARKS))

benchmark-%: setup
	$(BIN)/python -m benchmarks.$* $(FLAGS)

ablation: setup  ## what each training technique adds: hours (FLAGS="--only 'EMA 0.99'": that alone)
	$(BIN)/python -m benchmarks.ablation $(FLAGS)

lint: setup  ## ruff and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy resnet data training train.py evaluate.py submit.py reproduce.py benchmarks

clean:  ## remove what the demo wrote, and the tools' caches; .venv and other runs stay
	rm -rf runs/demo datasets/shapes $(dir $(shell grep -ls '"source": "shapes"' cache/*/meta.json))
	rm -rf .mypy_cache .pytest_cache .ruff_cache
