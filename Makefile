# Every target does all its own set-up; a second call starts at once.

VENV := .venv
BIN := $(VENV)/bin
DONE := $(VENV)/installed

# Of auto-gptq only the solver is used; without this its build asks for torch, and for a CUDA compiler.
export BUILD_CUDA_EXT := 0

# The first Python 3.11 or 3.12 that can make an environment.
FIND_PYTHON = for python in python3.11 python3.12 python3 python; do \
	"$$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' \
	2>/dev/null && command -v "$$python" && break; done

.PHONY: install demo report-example mini-cell mini-report test test-gpu test-slow test-faults test-cluster test-slurm test-kubernetes test-suites test-machines test-autoscaling test-monitoring test-ballistic test-package test-soak check docs pictures format clean

install: $(DONE)

$(DONE): pyproject.toml constraints.txt
	@python="$$($(FIND_PYTHON))"; \
	if [ -z "$$python" ]; then \
		echo "raysweep needs Python 3.11 or 3.12 with its venv module, and found neither."; \
		echo "Install one (on Debian or Ubuntu: apt install python3.11 python3.11-venv), then run make again."; \
		exit 1; \
	fi; \
	echo "installing into $(VENV) with $$python"; \
	"$$python" -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@
	@echo "installed. Next: source $(VENV)/bin/activate, then raysweep doctor"

demo: $(DONE)
	@$(BIN)/raysweep run search_spaces/demo.yaml

# A full report of 108 simulated cells, in a minute.
report-example: $(DONE)
	@$(BIN)/python -m raysweep.analysis.example runs/report-example
	@$(BIN)/raysweep analyze runs/report-example/simulated.yaml --store runs/report-example/store \
		--output runs/report-example/report

# One cell of the miniature study again, every number of it compared with the committed one: make mini-cell CELL=<id>
mini-cell: $(DONE)
	@$(BIN)/raysweep reproduce results/mini "$(CELL)"

# The study's tables and figures from its committed rows.
mini-report: $(DONE)
	@$(BIN)/raysweep analyze results/mini --output results/mini/report
	@$(BIN)/raysweep analyze results/mini --where 'steps >= 2048' --output results/mini/long

# Whole sweeps alone, since Ray's workers give way to everything else. Then two processes, a file at a time: tests of one file
# share sweeps.
test: $(DONE)
	@$(BIN)/python -m pytest tests/sweep/test_sweep.py
	@$(BIN)/python -m pytest --ignore tests/sweep/test_sweep.py --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-gpu: $(DONE)
	@$(BIN)/python -m pytest -m gpu -rs

test-slow: $(DONE)
	@$(BIN)/python -m pytest -m slow

test-faults: $(DONE)
	@$(BIN)/python -m pytest -s -m faults

# Root, for the pretend hosts; what Debian has for them and for Prometheus is installed where it can be.
test-cluster test-autoscaling test-monitoring: $(DONE)
	@for program in sshd rsync ip curl prometheus; do command -v $$program >/dev/null || missing=1; done; \
	if [ -n "$$missing" ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq && apt-get install -y -qq --no-install-recommends \
			openssh-server rsync iproute2 procps curl prometheus >/dev/null; \
	fi
	@$(BIN)/python -m pytest -s -m $(@:test-%=%)

test-slurm: $(DONE)
	@command -v slurmctld >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -qq && \
		apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client munge iproute2 openssh-server procps >/dev/null; }
	@$(BIN)/python -m pytest -s -m slurm

test-kubernetes: $(DONE)
	@command -v debootstrap >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -qq && \
		apt-get install -y -qq --no-install-recommends debootstrap iproute2 openssh-server rsync procps >/dev/null; }
	@$(BIN)/python -m pytest -s -m kubernetes

test-suites: $(DONE)
	@$(BIN)/python -m pytest -m suites

test-machines: $(DONE)
	@$(BIN)/python -m pytest -m machines

test-package: $(DONE)
	@$(BIN)/python -m pytest -s -m package

test-soak: $(DONE)
	@$(BIN)/python -m pytest -s -m soak

test-ballistic: $(DONE)
	@$(BIN)/python -m pytest -s -m ballistic

check: $(DONE)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

# The pictures of the documentation, of a real run: ten minutes, and Chromium must be there.
pictures: $(DONE)
	@$(BIN)/python docs/make_pictures.py

# The site, in runs/site; `.venv/bin/mkdocs serve` shows it while it is written.
docs: $(DONE)
	@$(BIN)/python docs/make_reference.py
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "open runs/site/index.html"

format: $(DONE)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:
	rm -rf $(VENV) *.egg-info .pytest_cache .mypy_cache .ruff_cache
