# `make demo` and `make test` work on a machine that has Python 3.10 or newer and nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
IMAGE ?=
ARGS ?=
# For torch without CUDA on Linux: make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=

.PHONY: demo test test-host-pins lint train bench-quality bench-speed clean

demo: $(VENV)/.demo
	$(BIN)/python -m apt_ext demo $(if $(IMAGE),"$(IMAGE)") $(ARGS)

# The whole suite with its branch coverage, a process for each core and a file for each process; or the part that ARGS names without:
# make test ARGS=tests/core
test: lint
	$(if $(ARGS),,OMP_NUM_THREADS=1 )$(BIN)/python -m pytest $(or $(ARGS),-n auto --dist loadfile --cov --durations=15)

# Core and adapter with the versions that the WebUI pins, in an environment of its own (torch 2.1.2 brings 5 GB along).
test-host-pins: $(VENV)-host-pins/.made
	$(VENV)-host-pins/bin/python -m pytest $(or $(ARGS),tests/core tests/golden tests/webui tests/host)

$(VENV)-host-pins/.made: requirements/host-pins.txt
	$(PYTHON) -m venv $(VENV)-host-pins
	$(VENV)-host-pins/bin/pip install -r requirements/host-pins.txt
	$(VENV)-host-pins/bin/pip install --no-deps k-diffusion==0.1.1.post1
	touch $@

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

train: $(VENV)/.demo
	$(BIN)/pip install -r requirements/train.txt
	$(BIN)/python -m apt_ext.demo.train --out build/model $(ARGS)

bench-quality: $(VENV)/.bench
	$(BIN)/python -m bench.quality $(ARGS)

bench-speed: $(VENV)/.bench
	$(BIN)/python -m bench.speed $(ARGS)

$(VENV)/.demo: requirements/demo.txt requirements/alone.txt
	$(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX),$(BIN)/pip install --index-url $(TORCH_INDEX) $(shell grep ^torch== requirements/demo.txt))
	$(BIN)/pip install -r requirements/demo.txt
	$(BIN)/pip install --no-deps -r requirements/alone.txt
	touch $@

$(VENV)/.bench: $(VENV)/.demo requirements/bench.txt
	$(BIN)/pip install -r requirements/bench.txt
	touch $@

$(VENV)/.dev: $(VENV)/.demo requirements/dev.txt requirements/bench.txt requirements/checkpoints.txt
	$(BIN)/pip install -r requirements/dev.txt
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-host-pins out build
