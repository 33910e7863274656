# make run | test | parity | lint | native | native-test | native-sanitize | fuzz | bench | bench-peers | clean
# Everything lives in .venv and build/; nothing but python3 >= 3.11, make, git and a C++ compiler is needed.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules
export PATH := $(CURDIR)/.venv/bin:$(PATH)

JOBS ?= 2
CASES ?= 100000
ARGS ?=
PROMPT ?= What is the capital of France?
NATIVE_SOURCES := $(shell find native -name '*.cpp' -o -name '*.hpp')

.PHONY: help
help:
	@sed -n '1,2s/^# //p' Makefile

# --- the environment -------------------------------------------------------------------------------------------
.venv/.run: requirements/run.txt tools/venv.sh
	@tools/venv.sh run

.venv/.dev: requirements/dev.txt .venv/.run
	@tools/venv.sh dev

.venv/.parity: requirements/parity.txt .venv/.run
	@tools/venv.sh parity

.venv/.native: $(NATIVE_SOURCES) CMakeLists.txt pyproject.toml | .venv/.run
	@tools/build_native.sh
	@touch $@

.PHONY: native
native: .venv/.native

# --- use -------------------------------------------------------------------------------------------------------
.PHONY: run
run: .venv/.native
	@.venv/bin/treadle run smollm2 --pull --numerics exact --temperature 0 --max-tokens 64 "$(PROMPT)"

.PHONY: bench
bench: .venv/.native
	.venv/bin/treadle bench smollm2 --threads $(JOBS) $(ARGS)

.PHONY: bench-peers
bench-peers: .venv/.native
	.venv/bin/python bench/peers/run.py --threads $(JOBS) $(ARGS)

# --- checks ----------------------------------------------------------------------------------------------------
.PHONY: test
test: .venv/.native .venv/.dev
	.venv/bin/python -m pytest $(TESTS)

.PHONY: parity
parity: .venv/.native .venv/.parity
	.venv/bin/treadle parity $(ARGS)

.PHONY: lint
lint: export PYTHONPATH := $(CURDIR)/src
lint: .venv/.dev
	ruff check src tests tools bench examples
	ruff format --check src tests tools bench examples
	mypy
	lint-imports
	deptry src
	python tools/check_native_includes.py
	python tools/check_vocabulary.py
	python tools/check_windows.py
	clang-format --dry-run --Werror $(NATIVE_SOURCES)

.PHONY: format
format: .venv/.dev
	ruff check --fix --quiet src tests tools bench examples || true
	ruff format --quiet src tests tools bench examples
	clang-format -i $(NATIVE_SOURCES)

# $(call native_build,build folder,build type,sanitizers,more,target): configure and build native/tests
define native_build
	cmake -S . -B $(1) -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/.venv/bin/ninja -DCMAKE_BUILD_TYPE=$(2) \
	    -DTREADLE_BUILD_PYTHON=OFF -DTREADLE_BUILD_TESTS=ON -DTREADLE_SANITIZE=$(3) $(4) >/dev/null
	cmake --build $(1) -j $(JOBS) $(if $(5),--target $(5))
endef

# The same, and run them.
define native_tests
	$(call native_build,$(1),$(2),$(3),$(4))
	ctest --test-dir $(1) --output-on-failure --no-tests=error
endef

.PHONY: native-test
native-test: .venv/.run
	$(call native_tests,build/native,Release,)

.PHONY: native-sanitize
native-sanitize: .venv/.run
	$(call native_tests,build/native-asan,Release,address$(COMMA)undefined)

.PHONY: native-tsan
native-tsan: .venv/.run
	$(call native_tests,build/native-tsan,Release,thread)

# Random programs, steps and cancellations on several pools: make native-stress SECONDS=600 SANITIZE=thread
SECONDS ?= 60
SANITIZE ?= address,undefined
.PHONY: native-stress
native-stress: FOLDER = build/native-$(if $(findstring thread,$(SANITIZE)),tsan,asan)
native-stress: .venv/.run
	$(call native_build,$(FOLDER),Release,$(SANITIZE),,stress_program)
	$(FOLDER)/stress_program $(SECONDS)

# Cross-compiled for AArch64 and run under emulation. The emulated CPU has every extension that a kernel table uses: the
# tests go through all tables, and what takes one alone takes the best.
.PHONY: native-qemu
native-qemu: export TREADLE_ISA = i8mm
native-qemu: .venv/.run
	@command -v aarch64-linux-gnu-g++ >/dev/null && command -v qemu-aarch64 >/dev/null || { \
	    echo "native-qemu needs aarch64-linux-gnu-g++ and qemu-aarch64" \
	        "(Debian: apt-get install g++-aarch64-linux-gnu qemu-user)" >&2; exit 1; }
	$(call native_tests,build/native-qemu,Release,,-DCMAKE_TOOLCHAIN_FILE=$(CURDIR)/tools/aarch64.cmake)

COMMA := ,

.PHONY: fuzz
fuzz: .venv/.native .venv/.dev
	.venv/bin/python -m tests.formats.fuzz --cases $(CASES)

.PHONY: clean
clean:
	rm -rf build .venv .venv.partial .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
