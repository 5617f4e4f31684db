# `make demo` and `make test` work on a fresh clone: they make .venv, build, and run.
PYTHON ?= python3
# The version that the tests run against; any torch >= 2.11 works. It is installed before anything
# that depends on it, so that pip takes the build that your pip configuration offers.
TORCH ?= torch==2.13.0

VENV := .venv
PY := $(VENV)/bin/python
# The editable install keeps its objects here, so that one touched kernel is one compilation.
BUILD := build/native
NATIVE := CMakeLists.txt $(shell find cmake csrc -type f)
CXX_FILES := $(shell find csrc tests/cpp tests/cuda tests/cutlass bench -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
# Modules are compiled when they are imported first, which most of them never are.
PIP_INSTALL := $(PY) -m pip install --quiet --no-compile
EDITABLE := $(PIP_INSTALL) --no-build-isolation --config-settings=build-dir=$(BUILD) -e

export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: demo test examples bench lint style format wheel asan tsan cpp cross gpu-build gpu-check native clean
.DELETE_ON_ERROR:

demo: $(VENV)/.demo native
	$(PY) examples/minilm.py

test: $(VENV)/.dev native
	$(PY) -m pytest -q -n auto --maxprocesses 4 --dist loadfile tests

examples: $(VENV)/.examples native
	$(PY) examples/digits.py --save
	$(PY) examples/flights.py --save
	$(PY) examples/language_model.py --save
	$(PY) examples/sentences.py --save

bench: $(VENV)/.bench native
	$(PY) bench/linear.py

lint: style
	cmake --preset dev >/dev/null
	cmake --build --preset dev

style: $(VENV)/.dev
	ruff check .
	ruff format --check .
	mypy
	clang-format --dry-run --Werror $(CXX_FILES)

format: $(VENV)/.dev
	ruff check --fix .
	ruff format .
	clang-format -i $(CXX_FILES)

# Rebuilds what changed and puts it into the editable install.
native: $(BUILD)/.installed

$(BUILD)/.installed: $(NATIVE) | $(VENV)/.installed
	cmake --build $(BUILD)
	cmake --install $(BUILD) --prefix $$($(PY) -c 'import sysconfig; print(sysconfig.get_path("platlib"))') >/dev/null
	touch $@

# A wheel, checked, installed beside torch alone, and tried there.
wheel: $(VENV)/.dev
	rm -rf dist build/wheel-env build/wheel-raw
	$(PY) -m pip wheel --quiet --no-build-isolation --no-deps --config-settings=build-dir=build/wheel -w build/wheel-raw .
	auditwheel repair --exclude 'libtorch*' -w dist build/wheel-raw/fastinfer-*.whl
	auditwheel show dist/fastinfer-*.whl
	$(PYTHON) -m venv build/wheel-env
	build/wheel-env/bin/python -m pip install --quiet '$(TORCH)'
	build/wheel-env/bin/python -m pip install --quiet dist/fastinfer-*.whl
	cd build && wheel-env/bin/python ../scripts/check_wheel.py

# The Python tests on a library built with AddressSanitizer and UndefinedBehaviorSanitizer.
asan: $(VENV)/.dev
	cmake --preset asan >/dev/null
	cmake --build --preset asan
	scripts/asan.sh

# The threaded driver under ThreadSanitizer, on std::thread: OpenMP runtimes give false positives.
tsan: $(VENV)/.tools
	cmake --preset tsan >/dev/null
	cmake --build --preset tsan
	build/tsan/tests/cpp/fastinfer_tests linear
	build/tsan/tests/cpp/fastinfer_tests forms
	build/tsan/tests/cpp/fastinfer_tests pool
	build/tsan/tests/cpp/fastinfer_tests pieces

# The C++ tests, with kernels of their own build: neither torch nor Python.
cpp: $(VENV)/.tools
	cmake --preset cpp >/dev/null
	cmake --build --preset cpp

# The same on CPUs that this one is not.
cross: cpp
	cmake --preset aarch64 >/dev/null
	cmake --build --preset aarch64
	scripts/cross.sh

# Everything CUDA, CUTLASS included, compiled without a GPU; gpu-check on a machine with one takes it
# as PREBUILT.
gpu-build: $(VENV)/.torch
	$(PIP_INSTALL) --no-deps 'nvidia-cutlass==4.2.0.0'
	cmake -S . -B build/gpu -G Ninja -DCMAKE_BUILD_TYPE=Release -DFASTINFER_CUDA=ON \
	  -DPython_EXECUTABLE=$(CURDIR)/$(PY) >/dev/null
	cmake --build build/gpu --target fastinfer_cuda
	ls -l build/gpu/csrc/ops/libfastinfer_cuda.so

# Tests and measures on a GPU, with that machine's own python3 and torch.
gpu-check:
	PREBUILT=$(PREBUILT) scripts/gpu_check.sh $(OUT)

$(VENV)/.tools:
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) 'scikit-build-core>=0.10' 'pybind11>=3' cmake ninja
	touch $@

$(VENV)/.torch: $(VENV)/.tools
	$(PIP_INSTALL) '$(TORCH)'
	touch $@

$(VENV)/.demo: pyproject.toml | $(VENV)/.torch
	$(EDITABLE) '.[demo]'
	touch $@ $(VENV)/.installed

$(VENV)/.dev: pyproject.toml | $(VENV)/.torch
	$(EDITABLE) '.[dev,examples,prune,search]'
	touch $@ $(VENV)/.installed

$(VENV)/.examples: pyproject.toml | $(VENV)/.torch
	$(EDITABLE) '.[examples]'
	touch $@ $(VENV)/.installed

$(VENV)/.bench: pyproject.toml | $(VENV)/.torch
	$(EDITABLE) '.[bench]'
	touch $@ $(VENV)/.installed

$(VENV)/.installed: | $(VENV)/.torch
	$(EDITABLE) .
	touch $@

clean:
	rm -rf build dist $(VENV)
