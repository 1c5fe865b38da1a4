# `make demo` runs the main job on data that it makes itself; `make test` runs the tests; `make test-slurm` runs
# those that need a SLURM, on one that it starts for them (as root).
# All set up .venv first; a second run finds it as it should be and goes on at once. `make wheelhouse` gathers what a
# host without internet needs.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.ready
export MPLBACKEND := Agg

.PHONY: demo test test-slurm wheelhouse lint types clean

demo: $(STAMP)
	$(VENV)/bin/ferdist demo

test: $(STAMP)
	OMP_NUM_THREADS=1 $(VENV)/bin/pytest --ignore=tests/slurm -n 2 --dist loadfile --cov --cov-report=term --cov-report=xml:.coverage.xml $(ARGS)

test-slurm: $(STAMP)
	scripts/slurm-packages
	OMP_NUM_THREADS=1 $(VENV)/bin/python slurm/onehost.py run -- $(VENV)/bin/pytest tests/slurm $(ARGS)

wheelhouse:
	PYTHON=$(PYTHON) scripts/wheelhouse $(ARGS)

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(STAMP)
	$(VENV)/bin/mypy

$(STAMP): setup.cfg pyproject.toml constraints.txt scripts/system-packages
	PYTHON=$(PYTHON) scripts/system-packages
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --constraint constraints.txt --editable '.[test]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage*
