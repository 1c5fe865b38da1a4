# `make demo` runs the main job on data that it makes itself. `make test` runs the quick tests, `make test-all` also
# those with many processes, faults, compilers and a browser, and `make test-slurm` those that need a SLURM, which
# they start (as root). `make fuzz` reads changed files of every kind that comes from outside.
# `make campaign` (as root) kills commands, fills their disks and more; ARGS='--tries 5' is a short one.
# All set up .venv first, which a second run reuses. `make wheelhouse` gathers what a host without internet access needs.
PYTHON ?= python3
VENV := .venv
AUDIT := .audit
STAMP := $(VENV)/.ready
export MPLBACKEND := Agg
PYTEST := OMP_NUM_THREADS=1 $(VENV)/bin/pytest

.PHONY: demo test test-slow test-all test-slurm fuzz campaign wheelhouse audit sbom lint types clean

demo: $(STAMP)
	$(VENV)/bin/ferdist demo

test: $(STAMP)
	@echo "The quick tests: about 5 minutes on two idle cores."
	$(PYTEST) --ignore=tests/slurm -n 2 -m 'not slow' --cov --cov-report=term --cov-report=xml:.coverage.xml $(ARGS)

test-slow: $(STAMP)
	scripts/browser-packages
	@echo "Tests of many processes, faults, compilers and a browser: about 10 minutes on two idle cores."
	$(PYTEST) --ignore=tests/slurm -n 2 --dist loadgroup -m slow $(ARGS)

test-all: test test-slow

test-slurm: $(STAMP)
	scripts/slurm-packages
	@echo "Tests on two real SLURMs of this host: 10 to 14 minutes on two idle cores."
	$(PYTEST) tests/slurm -n 2 $(ARGS)

fuzz: $(STAMP)
	@echo "160,000 changed files of every kind that comes from outside: about an hour on an idle core."
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m tests.fuzz $(ARGS)

campaign: $(STAMP)
	@echo "Faults made to each command; it goes on where it was stopped. About a day on an idle core."
	$(VENV)/bin/python -m tests.faults.campaign $(ARGS)

wheelhouse:
	PYTHON=$(PYTHON) scripts/wheelhouse $(ARGS)

# Fails too if the advisories cannot be read. ARGS='--vulnerability-service osv --osv-url URL' reads them elsewhere.
audit: $(AUDIT)/.ready
	scripts/audit $(AUDIT)/bin/pip-audit $(ARGS)

# What is installed in .venv, as CycloneDX.
sbom: $(STAMP) $(AUDIT)/.ready
	$(AUDIT)/bin/cyclonedx-py environment --output-reproducible --output-file sbom.json $(VENV)

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports

types: $(STAMP)
	$(VENV)/bin/mypy

$(STAMP): setup.cfg pyproject.toml constraints.txt scripts/system-packages
	PYTHON=$(PYTHON) scripts/system-packages
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --constraint constraints.txt --editable '.[test]'
	touch $(STAMP)

# An environment of their own: the two bring some fifty packages that ferdist does not need.
$(AUDIT)/.ready: constraints.txt
	$(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/python -m pip install --quiet --constraint constraints.txt cyclonedx-bom pip-audit
	touch $@

clean:
	rm -rf $(VENV) $(AUDIT) sbom.json build *.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage*
