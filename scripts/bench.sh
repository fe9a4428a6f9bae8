#!/bin/sh
# Every benchmark in turn, each printing its own table.
#   scripts/bench.sh BUILD_FOLDER
set -eu
build=$1
for program in "$build"/bench/bench_*; do
    [ -f "$program" ] && [ -x "$program" ] || continue
    printf '\n==== %s\n' "$(basename "$program")"
    "$program"
done
printf '\n==== lplb bench\n'
"$build/lplb" bench
