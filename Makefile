# The commands that people run. CI runs exactly these.
# TORCH=cpu|cuda chooses the build of torch where the machine offers both; left out, pip takes what it finds.
PYTHON ?= python3.11
BIN := .venv/bin
TORCH ?=
CASE ?=
SEED ?= 0
PART ?= 0/1
TORCH_cpu := torch==2.13.0+cpu
TORCH_cuda := torch===2.13.0
TORCH_ := torch==2.13.0

.PHONY: setup demo test test-fast check up bench bench-fashion soak clean

setup: .venv/installed .remint/prefect/prefect.db ## the environment and the databases

.venv/installed: constraints.txt pyproject.toml examples/pixelcnn/pyproject.toml examples/diversity/pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is not on PATH: install Python 3.11, or give PYTHON=/path/to/python3.11"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade-strategy only-if-needed "$(TORCH_$(TORCH))" -c constraints.txt
	$(BIN)/python -m pip install --quiet --editable ".[dev]" -c constraints.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable examples/pixelcnn --editable examples/diversity
	touch $@

.remint/prefect/prefect.db: | .venv/installed
	$(BIN)/remint init

demo: setup ## version, train, judge, register and promote a VAE, a GAN and a flow on real digits
	$(BIN)/remint run digits-vae digits-gan digits-flow

check: .venv/installed ## formatting, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: setup check ## all checks and all tests but the long ones
	$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder

test-fast: .venv/installed ## unit and property tests, but the slow ones
	$(BIN)/pytest -n 2 -m "not slow" tests/unit tests/property

up: setup ## Prefect server, MLflow server and worker in this terminal
	$(BIN)/remint up

bench: setup ## the README's claims, measured
	$(BIN)/python benchmarks/demo.py
	$(BIN)/python benchmarks/throughput.py
	$(BIN)/python benchmarks/frechet.py
	$(BIN)/python -m benchmarks.digits
	$(BIN)/python -m benchmarks.tables
	$(BIN)/python -m benchmarks.modes
	$(BIN)/python -m benchmarks.gate
	$(BIN)/python -m benchmarks.registry

bench-fashion: setup ## Fashion-MNIST, half an hour a family
	$(BIN)/python -m benchmarks.fashion

soak: setup ## the long tests and every counted case in full; CASE=7 one case, SEED=3 its seed, PART=1/4 a fourth of it; it goes on where it was stopped
	$(BIN)/pytest --soak $(if $(CASE),--case $(CASE)) --seed $(SEED) --part $(PART) tests
	$(BIN)/python -m tests.support.trials

clean: ## the environment and everything that runs left behind
	rm -rf .venv .remint outs
