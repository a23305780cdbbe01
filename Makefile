# Each target works in a fresh clone with nothing prepared: Python 3.11 with venv, git, make and a C compiler.
# The environment of the tests and linters is made on first use; PRIMUS_PYTHON or an active virtual environment that
# already has everything is used instead.

in_dev = @python=$$(./primus-cli env python dev) && PYTHONPATH="$$PWD/src" PRIMUS_PYTHON=$$python

.PHONY: help quickstart test lint docs bench parity matrix lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

quickstart: ## train a small Llama on the CPU for a few minutes
	@./primus-cli train pretrain --config examples/quickstart.yaml

test: ## every test, two at a time, with coverage; T=PATH for some of them
	$(in_dev) $$python -m pytest -n 2 --cov --cov-report=term:skip-covered $(T)

lint: ## ruff, mypy --strict, the import order, file sizes
	$(in_dev) $$python -m ruff check .
	$(in_dev) $$python -m ruff format --check .
	$(in_dev) $$python -m mypy
	$(in_dev) $$python -c 'from importlinter.cli import lint_imports_command as lint; lint()'
	$(in_dev) $$python docs/check.py --sizes

docs: ## write the generated pages again, check every link
	$(in_dev) ./primus-cli config reference --format markdown > docs/configuration/reference.md
	$(in_dev) ./primus-cli config reference --format json-schema > docs/configuration/experiment.schema.json
	$(in_dev) $$python docs/check.py --links

bench: ## every benchmark: a small table each; B=NAME for one of them
	$(in_dev) sh -c 'for file in benchmarks/$(or $(B),*).py; do echo "== $$file"; "$$PRIMUS_PYTHON" "$$file" || exit; done'

parity: ## train the same experiments on every engine, version and layout; the table of docs/numerics.md
	$(in_dev) PYTHONPATH="$$PWD/src:$$PWD/tests/support" OMP_NUM_THREADS=1 $$python tests/parity/table.py

matrix: ## every fault in every place on every engine; the table of docs/resilience.md
	$(in_dev) OMP_NUM_THREADS=1 $$python -m pytest -q tests/faults --matrix docs/resilience.md

lock: ## pin requirements/*.in anew, with pip's own configuration
	$(in_dev) $$python requirements/lock.py

clean: ## remove what tests and tools leave in the checkout; environments and runs stay
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage .coverage.*
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
