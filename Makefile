# make run    install what is missing, then start Understudy and print its address
# make test   install what is missing, then run the tests (slow and GPU tests apart)
# make check  what CI runs: ruff, mypy strict, tests

PYTHON ?= python3.11
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
SDIST  := $(VENV)/llama_cpp_python-0.3.36.tar.gz
ARGS   ?=
# gcc drops stores that AMX needs and llama.cpp's quantised models then crash, see engine/amx.py
AMX_FLAGS := -fno-tree-dse -fno-dse

.PHONY: run demo test test-all test-gpu check lint clean
.DELETE_ON_ERROR:

run: $(VENV)/ready
	@$(BIN)/understudy serve $(ARGS)

demo: $(VENV)/ready
	@$(BIN)/understudy demo $(ARGS)

test: $(VENV)/ready-dev
	@$(BIN)/python -m pytest -m "not slow and not gpu" $(ARGS)

test-all: $(VENV)/ready-dev
	@$(BIN)/python -m pytest -m "not gpu" $(ARGS)

test-gpu: $(VENV)/ready-dev
	@$(BIN)/python -m pytest -m gpu $(ARGS)

lint: $(VENV)/ready-dev
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

check: lint test

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache

$(VENV)/bin/python:
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed ($(PYTHON) was not found). Set PYTHON=/path/to/python3.11"; exit 1; }
	@echo "[1/5] Making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)

# torch alone and first: another package's open range would otherwise choose a far larger build
$(VENV)/torch: $(VENV)/bin/python requirements.txt
	@echo "[2/5] Installing PyTorch (about a minute)"
	@$(PIP) $$(grep '^torch==' requirements.txt)
	@touch $@

$(VENV)/llama: $(VENV)/torch
	@command -v c++ >/dev/null || { echo "A C++ compiler is needed to build llama-cpp-python (Debian: apt install g++)."; exit 1; }
	@echo "[3/5] Compiling llama-cpp-python for this machine (4 to 8 minutes on two cores, once)"
	@! c++ $(AMX_FLAGS) -E -x c++ /dev/null >/dev/null 2>&1 || export CXXFLAGS="$$CXXFLAGS $(AMX_FLAGS)"; \
	 $(PIP) $$(grep '^llama-cpp-python==' requirements.txt) >$(VENV)/llama.log 2>&1 & pid=$$!; n=0; \
	 while kill -0 $$pid 2>/dev/null; do sleep 1; n=$$((n+1)); [ $$((n % 30)) -ne 0 ] || echo "      … still compiling, $$n s"; done; \
	 wait $$pid || { tail -n 30 $(VENV)/llama.log; echo "Compiling llama-cpp-python failed; the lines above say why."; exit 1; }
	@touch $@

# the converters from Hugging Face weights to GGUF come with llama-cpp-python's source, not with its wheel
$(VENV)/converter: $(VENV)/llama $(VENV)/packages finetune/converter.py
	@echo "[5/5] Unpacking the GGUF converters"
	@test -f $(SDIST) || $(BIN)/python -m pip --disable-pip-version-check download --quiet --no-deps --no-binary llama-cpp-python \
	 -d $(VENV) $$(grep '^llama-cpp-python==' requirements.txt)
	@$(BIN)/python -m finetune.converter $(SDIST)
	@touch $@

$(VENV)/packages: $(VENV)/llama requirements.txt requirements-train.txt constraints.txt pyproject.toml
	@echo "[4/5] Installing the app and CPU training (one to two minutes)"
	@$(PIP) -r requirements-train.txt
	@touch $@

$(VENV)/ready: $(VENV)/packages $(VENV)/converter
	@touch $@

$(VENV)/ready-dev: $(VENV)/ready requirements-dev.txt
	@echo "Installing what the tests need"
	@$(PIP) -r requirements-dev.txt
	@touch $@
