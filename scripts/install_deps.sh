#!/bin/sh
# Installs what a group of commands needs, only what is missing; says nothing when nothing is.
#   scripts/install_deps.sh build [test] [train] [text] [python] [torch] [bench] [lint] [fuzz]
# What counts is whether the tool or library is there, not the package: on other systems than
# Debian and Ubuntu install it by the system's own means and this script is content.
set -eu

have_tool() { command -v "$1" >/dev/null 2>&1; }
have_library() { have_tool pkg-config && pkg-config --exists "$1"; }

missing=
need() { # need PACKAGE CHECK ARGUMENT
    "$2" "$3" || missing="$missing $1"
}
# The C library's headers come with build-essential, not with gcc.
have_compiler() {
    have_tool cc && have_tool c++ && echo "#include <stdio.h>" | cc -E - >/dev/null 2>&1
}
# Debian's packages serve Debian's interpreter, whatever else is first in PATH.
have_module() { "${PYTHON:-/usr/bin/python3}" -c "import $1" >/dev/null 2>&1; }

have_file() { [ -e "$1" ]; }
have_pod() { ls /usr/share/perl/*/pod/perl.pod >/dev/null 2>&1; }

for group in "${@:-build}"; do
    case "$group" in
    build)
        need build-essential have_compiler ""
        need cmake have_tool cmake
        need ninja-build have_tool ninja
        need pkg-config have_tool pkg-config
        need libjansson-dev have_library jansson
        need libzip-dev have_library libzip
        need libyaml-dev have_library yaml-0.1
        need libcmocka-dev have_library cmocka
        ;;
    test) need python3 have_tool python3 ;;
    train)
        need libopenblas-dev have_library openblas
        need libopenmpi-dev have_tool mpicc
        need openmpi-bin have_tool mpirun
        # bf16 is optional: asked for only where its package has this name
        ! have_tool apt-get || need libdnnl-dev have_file /usr/include/oneapi/dnnl/dnnl.h
        ;;
    python)
        need python3-numpy have_module numpy
        need python3-pytest have_module pytest
        ;;
    text) # what the trainer's text sources read, about 30 MB
        need bible-kjv have_tool bible
        need bible-kjv-text have_file /usr/lib/bible.data
        need r-cran-janeaustenr have_file /usr/lib/R/site-library/janeaustenr/data/Rdata.rdb
        need fortunes have_file /usr/share/games/fortunes/art
        need dict-foldoc have_file /usr/share/dictd/foldoc.dict.dz
        need perl-doc have_pod ""
        ;;
    torch) need python3-torch have_module torch ;;
    bench) need coinor-libclp-dev have_library clp ;;
    lint)
        need clang-tidy have_tool clang-tidy
        need clang-format-14 have_tool clang-format-14
        ;;
    fuzz) need clang have_tool clang ;;
    *)
        echo "install_deps.sh: no group '$group' (build, test, train, text, python, torch, bench," \
            "lint, fuzz)" >&2
        exit 2
        ;;
    esac
done
[ -n "$missing" ] || exit 0

if ! have_tool apt-get; then
    echo "Missing; please install by your system's own means (Debian names):$missing" >&2
    exit 1
fi
if [ "$(id -u)" = 0 ]; then
    as_root=
elif have_tool sudo && { sudo -n true 2>/dev/null || [ -t 0 ]; }; then
    as_root=sudo
else
    echo "Missing, and neither root nor sudo to install it. Ask for:" >&2
    echo "  apt-get install --no-install-recommends$missing" >&2
    exit 1
fi
echo "Installing:$missing"
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# $missing and $as_root are lists of plain words, to be split.
if ! { $as_root apt-get update -q && $as_root env DEBIAN_FRONTEND=noninteractive \
       apt-get install -q -y --no-install-recommends $missing; } >"$log" 2>&1 </dev/null; then
    tail -n 20 "$log" >&2
    echo "install_deps.sh: apt-get failed; its last lines are above" >&2
    exit 1
fi
