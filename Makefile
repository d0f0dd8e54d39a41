# Needs Python 3.11 or later with pip, and make; everything else goes into .venv.

PYTHON ?= python3
ARGS ?=
PYTEST_ARGS ?=
WORKERS ?= 2

VENV := .venv
RUN := $(VENV)/bin/python -m
PYTEST = OMP_NUM_THREADS=1 $(RUN) pytest -n $(WORKERS) --dist worksteal --durations=15
STAMP := $(VENV)/.complete

# Isolated builds read the constraints from the environment: older pip the first name, newer pip the second.
export PIP_CONSTRAINT := constraints.txt
export PIP_BUILD_CONSTRAINT := constraints.txt

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help env toy vae zoo speed faults test lint types every tests slow docs format clean

help:  ## list the commands
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|' 2>/dev/null \
		|| sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1: \2/p' $(MAKEFILE_LIST)

env: $(STAMP)  ## build the environment .venv (the others do it where needed; PYTHON=... chooses the interpreter)

toy: $(STAMP)  ## run the toy posterior benchmark (ARGS="..." goes to it)
	$(RUN) benchmarks.toy_posterior $(ARGS)

vae: $(STAMP)  ## run the VAE benchmark (ARGS="..." goes to it)
	$(RUN) benchmarks.vae $(ARGS)

zoo: $(STAMP)  ## measure guides on a zoo of models (ARGS="..." goes to it)
	$(RUN) benchmarks.zoo $(ARGS)

speed: $(STAMP)  ## measure the engines beside NumPyro, PyMC and C++ (ARGS="..." goes to it; pip install -e '.[peers]')
	$(RUN) benchmarks.speed $(ARGS)

faults: $(STAMP)  ## try what can go wrong: damaged files, odd outputs, planted code, bad numbers (ARGS="..." goes to it)
	$(RUN) benchmarks.faults $(ARGS)

test: lint types every  ## run lint, types and all tests, as continuous integration does

lint: $(STAMP)  ## check style and format
	$(RUN) ruff check .
	$(RUN) ruff format --check .

types: $(STAMP)  ## check types
	$(RUN) mypy

every: $(STAMP)  ## run all tests (WORKERS=2 processes share them; PYTEST_ARGS="..." goes to pytest)
	$(PYTEST) $(PYTEST_ARGS)

tests: $(STAMP)  ## run the tests but the slow ones
	$(PYTEST) -m "not slow" $(PYTEST_ARGS)

slow: $(STAMP)  ## run the slow tests alone
	$(PYTEST) -m slow $(PYTEST_ARGS)

docs: $(STAMP)  ## build the documentation's site in docs/_build/html (ARGS="-D nb_execution_mode=off" runs no code)
	OMP_NUM_THREADS=1 $(VENV)/bin/python docs/site/build.py $(ARGS)

format: $(STAMP)  ## put the code into the common format and mend what lint can
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

clean:  ## remove the environment, caches and built packages (results/ stays)
	rm -rf $(VENV) docs/_build dist build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Built anew whenever what it holds may have changed. The stamp goes first and comes last, so a half-built
# environment is never taken for a whole one.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed, not " + sys.version)'
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(RUN) pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@
