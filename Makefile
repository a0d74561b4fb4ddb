# `make demo` and `make test` set up what they need in .venv; `pip install .` does without make.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint bench notebooks clean

demo: .venv/installed
	$(BIN)/thalweg run minimal-mlp --out out/minimal-mlp
	@echo "Open out/minimal-mlp/report.html in a browser."

test: .venv/tests-installed
	$(BIN)/python -m pytest -n 2 --dist loadgroup

lint: .venv/tests-installed
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/pyright

bench: .venv/tests-installed
	$(BIN)/python -m benchmarks

.venv/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[all]'
	touch $@

.venv/tests-installed: pyproject.toml .venv/installed
	$(BIN)/pip install --quiet --editable '.[test,dev]'
	touch $@

notebooks: .venv/tests-installed
	mkdir -p out/notebooks/solutions
	cd notebooks && for f in *.py solutions/*.py; do \
		../$(BIN)/jupytext --quiet --to ipynb --execute --output ../out/notebooks/$${f%.py}.ipynb $$f || exit 1; done

clean:
	rm -rf .venv out build
