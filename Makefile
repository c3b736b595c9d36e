# Everything here works from a fresh clone with Python 3.11 and make; `make env` comes first in each.
# Options go through ARGS: make demo ARGS="name=mine", make test ARGS="tests/unit -k wire".

THIS_MAKEFILE := $(MAKEFILE_LIST)
export THIS_MAKEFILE PYTHON
# Another environment that happens to be active must not leak into ours.
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV CONDA_PREFIX
# `cd` would print where it went.
unexport CDPATH
# Without bytecode every process compiles what it imports again, for a minute and more.
unexport PYTHONDONTWRITEBYTECODE

# The folder of this file, also with spaces in its path and when make was started elsewhere with -f.
ROOT = f="$${THIS_MAKEFILE\# }" && cd "$$(dirname "$$f")"
RUN = $(ROOT) && PATH="$$PWD/.venv/bin:$$PATH"

.PHONY: help env test demo bench doctor lint format lock clean
.DEFAULT_GOAL := help

help:
	@echo "make env     the environment, at .venv"
	@echo "make test    the whole test suite"
	@echo "make demo    the main job: rlsys align preset=scenes"
	@echo "make bench   the benchmarks"
	@echo "make doctor  check this machine piece by piece"
	@echo "make lint    ruff, without changing anything; make format changes"
	@echo "make lock    remake requirements/*.txt from pyproject.toml"
	@echo "make clean   remove .venv and caches of this checkout (not runs/)"

env:
	@$(ROOT) && sh requirements/env.sh

test: env
	@$(RUN) python -m pytest $(ARGS)

demo: env
	@$(RUN) rlsys align preset=scenes $(ARGS)

bench: env
	@$(RUN) python -m benchmarks $(ARGS)

doctor: env
	@$(RUN) rlsys doctor $(ARGS)

lint: env
	@$(RUN) ruff check . && $(RUN) ruff format --check .

format: env
	@$(RUN) ruff check --fix . && $(RUN) ruff format .

lock:
	@$(ROOT) && sh requirements/env.sh requirements/lock.py $(ARGS)

clean:
	@$(ROOT) && rm -rf .venv .pytest_cache .ruff_cache .hypothesis build *.egg-info
	@$(ROOT) && find . -name __pycache__ -type d -prune -exec rm -rf {} +
