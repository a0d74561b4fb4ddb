# `make demo` and `make test` set up what they need in .venv; `pip install .` does without make.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-docs test-all test-browser chromium lint bench notebooks clean

demo: .venv/installed
	$(BIN)/thalweg run minimal-mlp --out out/minimal-mlp
	@echo "Open out/minimal-mlp/report.html in a browser."

# The tests begin dozens of processes. Where Python may not keep what it has compiled of JAX and PyTorch, each
# compiles them anew, for seconds.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder
# Tests compile thousands of programs, and run each for a moment: it is enough to compile them quickly.
# `make test OPTIMIZED=1` runs what users run, in nearly twice the time.
# XLA ends at a flag that it does not know; the second went with JAX 0.11.
KNOWN = XLA_FLAGS=$(flag) $(BIN)/python -c 'import jax; jax.devices()' 2>/dev/null && echo $(flag)
QUICK := --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false \
	--xla_cpu_parallel_codegen_split_count=1
FLAGS = $(eval FLAGS := $(strip $(foreach flag,$(QUICK),$(shell $(KNOWN)))))$(FLAGS)
QUICKLY = $(if $(OPTIMIZED),,$(if $(FLAGS),XLA_FLAGS="$(XLA_FLAGS) $(FLAGS)"))

test: .venv/tests-installed
	$(QUICKLY) $(PYTEST) -m "not docs"

test-docs: .venv/tests-installed
	$(QUICKLY) $(PYTEST) -m docs

test-all: test test-docs test-browser

test-browser: .venv/tests-installed chromium
	$(QUICKLY) $(PYTEST) tests/browser

# Debian's and Ubuntu's Chromium, where there is none and this user may install it.
SUDO := $(shell test "$$(id -u)" = 0 || echo sudo -n)
chromium:
	@for name in chromium chromium-browser google-chrome google-chrome-stable; do \
		command -v $$name >/dev/null && exit 0; done; \
	echo "Installing Chromium for the reports' tests"; \
	($(SUDO) apt-get update && $(SUDO) apt-get install -y chromium) >/dev/null 2>&1 || { \
		echo "make test-browser needs Chromium on the PATH: apt-get install chromium, or Google Chrome." >&2; \
		exit 1; }

lint: .venv/tests-installed
	$(BIN)/ruff format --check src tests benchmarks docs/*.py notebooks
	$(BIN)/ruff check src tests benchmarks docs/*.py notebooks
	$(BIN)/pyright

# DEVICE=gpu measures an NVIDIA GPU: JAX and PyTorch are then installed for it, beside what there is.
DEVICE ?= cpu
bench: .venv-bench/$(if $(filter gpu,$(DEVICE)),gpu,installed)
	.venv-bench/bin/python -m benchmarks --device $(DEVICE)

.venv-bench/gpu: .venv-bench/installed
	.venv-bench/bin/pip install --quiet --upgrade 'jax[cuda13]' torch
	touch $@

.venv/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[all]'
	touch $@

# The packages that the benchmarks are run against have an environment of their own.
.venv-bench/installed: pyproject.toml benchmarks/requirements.txt
	test -x .venv-bench/bin/python || $(PYTHON) -m venv .venv-bench
	.venv-bench/bin/pip install --quiet --editable '.[test]' --requirement benchmarks/requirements.txt
	.venv-bench/bin/pip install --quiet --no-deps landscaper==1.3.1
	touch $@

# All that the library needs is among it. Python compiles what is imported, of the gigabyte that is installed.
.venv/tests-installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-compile --editable '.[test,dev]'
	touch .venv/installed $@

notebooks: .venv/tests-installed
	mkdir -p out/notebooks/solutions
	cd notebooks && for f in *.py solutions/*.py; do \
		../$(BIN)/jupytext --quiet --to ipynb --execute --output ../out/notebooks/$${f%.py}.ipynb $$f || exit 1; done

clean:
	rm -rf .venv .venv-bench out build
