#!/bin/sh
# The tests of the Python package on the library in BUILD: with numpy alone, then, where torch can
# be imported, everything (gloo over four processes included), then some on an installed wheel.
#   scripts/test_python.sh BUILD     PYTHON names the interpreter, Debian's by default
set -eu
build=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."
python=${PYTHON:-/usr/bin/python3}
LPLB_LIBRARY=$build/liblplb.so
export LPLB_LIBRARY PYTHONDONTWRITEBYTECODE=1
log=$(mktemp)
trap 'rm -rf "$log" "$log.wheel"' EXIT

run() { # run WHAT [TESTS]: pytest's summary is in the log, its exit code in $status
    echo "---- $1"
    shift
    status=0
    "$python" -m pytest -p no:cacheprovider "${@:-tests/python}" >"$log.out" 2>&1 || status=$?
    cat "$log.out"
    tail -n 1 "$log.out" >>"$log"
    rm -f "$log.out"
    [ $status = 0 ] || failed=1
}
failed=0
LPLB_TEST_TORCH=0 run "numpy alone ($("$python" -V), numpy $("$python" -c '
import numpy; print(numpy.__version__)'))"
if version=$("$python" -c 'import torch; print(torch.__version__)' 2>/dev/null); then
    run "torch $version"
else
    echo "---- torch is not there: its tests were left out"
fi
scripts/wheel.sh "$log.wheel" "$python" --config-settings build-dir="$build/wheel" \
    --config-settings cmake.build-type=Debug --config-settings cmake.define.LPLB_CUDA=OFF ||
    failed=1
if [ -d "$log.wheel/site" ]; then
    unset LPLB_LIBRARY
    LPLB_TEST_INSTALLED=1 PYTHONPATH=$log.wheel/site run "the wheel, installed" \
        tests/python/test_wheel.py tests/python/test_planner.py tests/python/test_convert.py
fi
# In the words of ctest, for whoever counts.
awk -v failed=$failed '
    { for (i = 2; i <= NF; i++) {
          if ($i ~ /^passed/) good += $(i - 1)
          if ($i ~ /^(failed|error)/) bad += $(i - 1) } }
    END { if (failed && !bad) bad = 1
          printf "%d tests failed out of %d\n", bad, good + bad }' "$log"
exit $failed
