# Targets create .venv once and reuse it; they run again only what changed. All paths are relative, so a checkout may
# lie anywhere, also below a folder with a space in its name.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
TEST := $(PY) -m pytest -n auto --maxprocesses 8 --dist worksteal
RUN := runs/vp_digits_labels
export PYTHONDONTWRITEBYTECODE :=
DEMO := $(PY) main.py --config configs/vp_digits_labels.py --workdir $(RUN)

.PHONY: help setup demo test faults lint bench docs clean

help:
	@echo "make demo   set up, train on scikit-learn's digits, sample, score, compare samplers, print the table (6 to 15 minutes on 2 cores)"
	@echo "make test   set up and run the tests"
	@echo "make faults stop, kill and starve real runs (20 minutes on 2 cores)"
	@echo "make lint   ruff and mypy"
	@echo "make bench  measure against other ways, side by side; writes benchmarks/results/"
	@echo "make docs   run every example of README.md and docs/"
	@echo "make clean  remove .venv, caches and the demo's run"

setup: $(VENV)/installed

$(VENV)/installed: requirements.lock
	@echo "Creating $(VENV) and installing requirements.lock ..."
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || \
	    { echo "Python 3.11 or newer is needed; call make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@touch $@

demo: setup
	@echo "1/5 Training a U-Net on 1,437 digits, with and without their labels (goes on where it stopped) ..."
	@$(DEMO) --mode train
	@echo "2/5 Sampling any digit in 20 evaluations, by the SDE in 500, and by the adaptive ODE; then each digit, guided ..."
	@$(DEMO) --mode sample --sampler auto --steps 20 --num_samples 100
	@$(DEMO) --mode sample --sampler euler_maruyama --steps 500 --num_samples 100
	@$(DEMO) --mode sample --sampler ode --num_samples 100
	@$(DEMO) --mode sample --sampler auto --steps 20 --num_samples 100 --label all --guidance 2
	@echo "3/5 Bits/dim of the 360 held-out digits, without and with their labels ..."
	@$(DEMO) --mode likelihood --method exponential
	@$(DEMO) --mode likelihood --method exponential --label true
	@echo "4/5 Which sampler, with how many evaluations? ..."
	@$(DEMO) --mode compare --samplers auto,ddim,euler_maruyama --budgets 5,10,20,50 --num_samples 256
	@echo "5/5 What $(RUN) now holds; open its comparison in a browser:"
	@$(DEMO) --mode report

test: setup
	@echo "Running the tests, as on a processor with avx2 ..."
	@SCOREFIELD_MACHINE=avx2 $(TEST) -m "not slow"
	@for machine in bf16 amx; do \
	    echo "Running those that depend on it, as on one with $$machine ..."; \
	    SCOREFIELD_MACHINE=$$machine $(TEST) -m "machine and not slow" || exit 1; \
	done

faults: setup
	@echo "Stopping, killing and starving real runs ..."
	@$(PY) -m pytest -n 2 --dist worksteal tests/faults tests/training/test_broken_steps.py tests/training/test_keeping.py
	@echo "Running what make test leaves out ..."
	@$(PY) -m pytest -n 2 --dist worksteal -m slow --ignore tests/faults

lint: setup
	@echo "Running ruff and mypy ..."
	@$(PY) -m ruff check .
	@$(PY) .ci/typecheck.py

bench: setup
	@echo "Training configs/vp_digits.py, unless that is done, and measuring; results go to benchmarks/results/ ..."
	@$(PY) main.py --config configs/vp_digits.py --mode train
	@$(PY) -m benchmarks.problems
	@$(PY) -m benchmarks.accuracy
	@$(PY) -m benchmarks.tuning
	@$(PY) -m benchmarks.students
	@$(PY) -m benchmarks.couplings
	@$(PY) -m benchmarks.bridges
	@$(PY) -m benchmarks.restoring
	@$(PY) -m benchmarks.samplers
	@$(PY) -m benchmarks.likelihood
	@$(PY) -m benchmarks.train_step
	@$(PY) -m benchmarks.two_processes
	@$(PY) -m benchmarks.unet
	@$(PY) -m benchmarks.dit speed

docs: setup
	@echo "Running the examples of README.md and docs/ ..."
	@$(PY) -m pytest tests/test_docs.py

clean:
	@echo "Removing $(VENV), caches and $(RUN) ..."
	@rm -rf $(VENV) $(RUN) .pytest_cache .mypy_cache .ruff_cache .hypothesis
