# The commands of the README; CMake does the work. BUILD names the build folder.
BUILD ?= build

.PHONY: all build test clean
all: build

build:
	@cmake -S . -B $(BUILD) -G Ninja >/dev/null
	@cmake --build $(BUILD)

test: build
	@ctest --test-dir $(BUILD) --output-on-failure

clean:
	rm -rf build build-*
