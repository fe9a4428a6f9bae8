# The commands of the README; CMake does the work.
#   make demo                train a small model, replay its routing and the bundled trace
#   make test                build and run every test
#   make install PREFIX=...  /usr/local by default
BUILD  ?= build
PREFIX ?= /usr/local
JOBS   ?= $(shell nproc 2>/dev/null || echo 2)

CONFIGURE = cmake -S . -G Ninja
DEPS      = scripts/install_deps.sh
# Tests stop a hang themselves (TIMEOUT in tests/CMakeLists.txt).
CTEST     = ctest -j$(JOBS) --output-on-failure --no-tests=error

.PHONY: all deps build demo test test-asan test-tsan test-faults check-online test-python test-gpu \
        test-gpu-sanitize gpu-programs fuzz bench bench-gpu bench-node format lint install clean
all: build

deps:
	@$(DEPS) build test train

$(BUILD)/build.ninja:
	@$(DEPS) build
	@$(CONFIGURE) -B $(BUILD) >/dev/null

build: $(BUILD)/build.ninja
	@cmake --build $(BUILD) -j $(JOBS)

# Configured anew for MPI and OpenBLAS; where they cannot be had, the demo replays only.
demo: $(BUILD)/build.ninja
	@$(DEPS) train text || echo "make demo: no trainer without these; only the replay follows"
	@$(CONFIGURE) -B $(BUILD) >/dev/null
	@cmake --build $(BUILD) -j $(JOBS) --target lplb_cli \
	    $$(grep -q '^build lplb-train:' $(BUILD)/build.ninja && echo lplb-train)
	@scripts/demo.sh $(BUILD)/lplb

# Configured anew, for `deps` may have brought what an earlier build had to do without.
test: deps
	@$(CONFIGURE) -B $(BUILD) >/dev/null
	@cmake --build $(BUILD) -j $(JOBS)
	@cd $(BUILD) && $(CTEST)

# Address and undefined-behaviour sanitizers, everything; fuzz targets replay their corpora.
test-asan: deps
	@$(CONFIGURE) -B $(BUILD)-asan -DCMAKE_BUILD_TYPE=RelWithDebInfo -DLPLB_BENCH=OFF \
	    -DLPLB_SANITIZE=address,undefined >/dev/null
	@cmake --build $(BUILD)-asan -j $(JOBS)
	@cd $(BUILD)-asan && $(CTEST)

# The thread sanitizer, on the tests that use threads.
test-tsan: deps
	@$(CONFIGURE) -B $(BUILD)-tsan -DCMAKE_BUILD_TYPE=RelWithDebInfo -DLPLB_BENCH=OFF \
	    -DLPLB_FUZZ=OFF -DLPLB_SANITIZE=thread >/dev/null
	@cmake --build $(BUILD)-tsan -j $(JOBS) --target threaded_tests
	@cd $(BUILD)-tsan && $(CTEST) -L threads

# A million steps of faults with each way of being late, over the manager's core and over the
# manager with its threads: about five minutes on two cores.
test-faults: build
	@LPLB_FAULT_STEPS=1000000 $(BUILD)/tests/test_runtime_faults
	@LPLB_FAULT_STEPS=1000000 $(BUILD)/tests/test_runtime_shell

# What docs/runtime.md says of the manager against EPLB, on the recorded traces in LPLB_DATA, all of
# gpt-oss and four layers of the drift: about two minutes on two cores; LAYERS=0 takes all, ten.
LAYERS ?= 4
check-online: build
	@scripts/check_online.py --layers $(LAYERS) $(BUILD) $(LPLB_DATA)

# The Python package, with numpy alone and with torch (Debian's, 636 MB installed).
test-python: build
	@$(DEPS) python torch
	@scripts/test_python.sh $(BUILD)

# On this machine's GPU; nvcc is needed. The tests' case tables are the CPU's.
gpu-programs: $(BUILD)/build.ninja
	@$(CONFIGURE) -B $(BUILD) -DLPLB_CUDA=ON >/dev/null
	@cmake --build $(BUILD) -j $(JOBS) --target gpu_tests bench_cuda

test-gpu: gpu-programs
	@scripts/gpu/test.sh $(BUILD)/tests/cuda

test-gpu-sanitize: gpu-programs
	@scripts/gpu/test.sh $(BUILD)/tests/cuda sanitize

bench-gpu: gpu-programs
	@$(BUILD)/bench/cuda/bench_cuda

# Coverage-guided, with clang's libFuzzer.
fuzz:
	@$(DEPS) build fuzz
	@CC=clang $(CONFIGURE) -B $(BUILD)-fuzz -DCMAKE_BUILD_TYPE=RelWithDebInfo -DLPLB_BENCH=OFF \
	    -DLPLB_TESTS=OFF -DLPLB_LIBFUZZER=ON -DLPLB_SANITIZE=address,undefined >/dev/null
	@cmake --build $(BUILD)-fuzz -j $(JOBS)
	@cd $(BUILD)-fuzz && $(CTEST)

bench:
	@$(DEPS) build bench
	@$(CONFIGURE) -B $(BUILD) >/dev/null
	@cmake --build $(BUILD) -j $(JOBS)
	@scripts/bench.sh $(BUILD)

# One node, every rank a process (bench/python/bench_node.py). With LPLB_LIBRARY nothing is built.
RANKS  ?= 8
PYTHON ?= python3
bench-node:
	@test -n "$$LPLB_LIBRARY" || { $(DEPS) build && $(CONFIGURE) -B $(BUILD) >/dev/null && \
	    cmake --build $(BUILD) -j $(JOBS) --target python; }
	@LPLB_LIBRARY=$${LPLB_LIBRARY:-$(BUILD)/liblplb.so} PYTHONPATH=python \
	    $(PYTHON) bench/python/bench_node.py --ranks $(RANKS)

format:
	@$(DEPS) lint
	@git ls-files '*.c' '*.h' | xargs clang-format-14 -i

lint: $(BUILD)/build.ninja
	@$(DEPS) lint test
	@scripts/lint.sh $(BUILD)

install:
	@$(DEPS) build
	@$(CONFIGURE) -B $(BUILD) -DCMAKE_INSTALL_PREFIX=$(abspath $(PREFIX)) >/dev/null
	@cmake --build $(BUILD) -j $(JOBS) --target all lplb_man
	@cmake --install $(BUILD) >/dev/null
	@echo "Installed under $(abspath $(PREFIX))"

clean:
	rm -rf $(BUILD) $(BUILD)-asan $(BUILD)-tsan $(BUILD)-fuzz demo-report
