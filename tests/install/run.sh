#!/bin/sh
# Installs the build under a scratch prefix and builds the example against nothing else, by
# pkg-config and by find_package; both programs must run and plan optimally.
#   run.sh SOURCE BUILD CC
set -eu
source=$1 build=$2 cc=$3
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
prefix=$scratch/prefix

cmake --build "$build" --target lplb_man >/dev/null
cmake --install "$build" --prefix "$prefix" >/dev/null
cp -r "$source/examples/plan_one_batch" "$scratch/example"
cd "$scratch/example"

PKG_CONFIG_PATH=$(dirname "$(find "$prefix" -name lplb.pc)")
export PKG_CONFIG_PATH
libdir=$(pkg-config --variable=libdir lplb)
# Word splitting of pkg-config's flags is meant.
"$cc" -std=c11 -Wall -Wextra -Werror plan_one_batch.c $(pkg-config --cflags --libs lplb) \
    -Wl,-rpath,"$libdir" -o by_pkg_config
./by_pkg_config | tee by_pkg_config.txt
grep -q '^optimal' by_pkg_config.txt

cmake -S . -B out -DCMAKE_C_COMPILER="$cc" -DCMAKE_PREFIX_PATH="$prefix" >/dev/null
cmake --build out >/dev/null
out/plan_one_batch | diff - by_pkg_config.txt

# Every command has its page.
"$prefix/bin/lplb" --help | sed -n 's/^  \([a-z]*\)  .*/\1/p' | while read -r command; do
    grep -q "^lplb-$command .- " "$prefix/share/man/man1/lplb-$command.1"
done

# The command runs from where it was installed, and the library carries its version.
"$prefix/bin/lplb" --version
ls "$libdir"/liblplb.so.[0-9]*.[0-9]*.[0-9]* >/dev/null
