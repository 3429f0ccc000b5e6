# The commands that people run. CI runs exactly these.
# PYTHON=/path/to/python chooses the interpreter; the default is the newest of PYTHONS on PATH that can create environments.
# TORCH=cpu|cuda chooses the build of torch; by default pip chooses.
PYTHONS := python3.13 python3.12 python3.11
PYTHON ?= $(shell for python in $(PYTHONS); do "$$python" -c 'import ensurepip, venv' 2>/dev/null && echo "$$python" && break; done)
BIN := .venv/bin
TORCH ?=
CASE ?=
SEED ?= 0
PART ?= 0/1
TORCH_cpu := torch==2.13.0+cpu
TORCH_cuda := torch===2.13.0
TORCH_ := torch==2.13.0

.PHONY: setup demo test test-fast check docs up wheel bench bench-fashion soak clean

setup: .venv/installed .remint/prefect/prefect.db ## the environment and the databases

.venv/installed: constraints.txt pyproject.toml examples/pixelcnn/pyproject.toml examples/diversity/pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: none of $(PYTHONS) is on PATH with its module venv: install one (Debian, Ubuntu: apt install python3-venv), or give PYTHON=/path/to/python"; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { echo "error: $(PYTHON) is not a Python from 3.11 to 3.13: give PYTHON=/path/to/one"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade-strategy only-if-needed "$(TORCH_$(TORCH))" -c constraints.txt
	$(BIN)/python -m pip install --quiet --editable ".[dev]" -c constraints.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable examples/pixelcnn --editable examples/diversity
	touch $@

.remint/prefect/prefect.db: | .venv/installed
	$(BIN)/remint init

demo: setup ## version, train, judge, register and promote a VAE, a GAN and a flow on real digits
	$(BIN)/remint run digits-vae digits-gan digits-flow

check: .venv/installed docs ## formatting, lint, types, import contracts, the documentation site
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/plain_english.py

docs: .venv/installed ## the documentation site, into site/; a broken link or name fails it
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

test: setup check ## all checks, and all tests except the long ones
	$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder

test-fast: .venv/installed ## unit and property tests except the slow ones
	$(BIN)/pytest -n 2 -m "not slow" tests/unit tests/property

up: setup ## Prefect server, MLflow server and worker in this terminal
	$(BIN)/remint up

wheel: .venv/installed ## dist/remint-VERSION-py3-none-any.whl, to install a registered model elsewhere
	rm -rf build dist
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	rm -rf build

bench: setup ## the README's claims, measured
	$(BIN)/python benchmarks/demo.py
	$(BIN)/python -m benchmarks.throughput
	$(BIN)/python -m benchmarks.scaling
	$(BIN)/python -m benchmarks.scaling launchers
	$(BIN)/python benchmarks/frechet.py
	$(BIN)/python -m benchmarks.digits
	$(BIN)/python -m benchmarks.matching
	$(BIN)/python -m benchmarks.tables
	$(BIN)/python -m benchmarks.imputation
	$(BIN)/python -m benchmarks.modes
	$(BIN)/python -m benchmarks.anomaly
	$(BIN)/python -m benchmarks.calibration
	$(BIN)/python -m benchmarks.evaluation
	$(BIN)/python -m benchmarks.validation
	$(BIN)/python -m benchmarks.gate
	$(BIN)/python -m benchmarks.gate_over_time
	$(BIN)/python -m benchmarks.drift_alarms
	$(BIN)/python -m benchmarks.data --large
	$(BIN)/python -m benchmarks.feed
	$(BIN)/python -m benchmarks.formats
	$(BIN)/python -m benchmarks.use
	$(BIN)/python -m benchmarks.serving
	$(BIN)/python -m benchmarks.console
	$(BIN)/python -m benchmarks.registry

bench-fashion: setup ## Fashion-MNIST; docs/results.md has the seconds of each family
	$(BIN)/python -m benchmarks.fashion

soak: setup ## the long tests and every counted case in full; CASE=7 one case, SEED=3 its seed, PART=1/4 a quarter of it; resumes after a stop
	$(BIN)/pytest --soak $(if $(CASE),--case $(CASE)) --seed $(SEED) --part $(PART) tests
	$(BIN)/python -m tests.support.trials

clean: ## remove the environment and everything that runs created
	rm -rf .venv .remint outs site build dist
