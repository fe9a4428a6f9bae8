#!/bin/sh
# The GPU tests on this machine's GPU, or a part of them under compute-sanitizer.
#   scripts/gpu/test.sh FOLDER              all, from the programs in FOLDER
#   scripts/gpu/test.sh FOLDER sanitize     memcheck, racecheck, initcheck; a minute on an H200
# Ends with "N passed, N failed", exit 1 if any failed. A program that dies counts as one failure.
set -u
folder=$1 kind=${2:-all}
log=$(mktemp)
trap 'rm -f "$log"' EXIT
passed=0 failed=0

run() { # run COMMAND...: adds up what its last line says
    echo "---- $*"
    "$@" >"$log" 2>&1
    status=$?
    cat "$log"
    counted=$(sed -n 's/^\([0-9]*\) tests, \([0-9]*\) failed$/\1 \2/p' "$log" | tail -n 1)
    ran=${counted% *} bad=${counted#* }
    if [ $status != 0 ] && [ "${bad:-0}" = 0 ]; then bad=1 ran=$((${ran:-0} + 1)); fi
    passed=$((passed + ran - bad)) failed=$((failed + bad))
}

if [ "$kind" = sanitize ]; then
    export LPLB_GPU_EFFORT="${LPLB_GPU_EFFORT:-1}"
    for tool in memcheck racecheck initcheck; do
        for test in exact_cases tolerance_cases; do
            run compute-sanitizer --tool $tool --error-exitcode 1 "$folder/test_gpu_plan" $test
        done
        for test in run_sizes run_types run_sources run_sms pieces number_of_ids shares bad \
            capture update async; do
            run compute-sanitizer --tool $tool --error-exitcode 1 "$folder/test_gpu_step" $test
        done
        run compute-sanitizer --tool $tool --error-exitcode 1 "$folder/test_gpu_cache"
        run compute-sanitizer --tool $tool --error-exitcode 1 "$folder/test_gpu_lean"
        for test in converged_cases steps; do
            run compute-sanitizer --tool $tool --error-exitcode 1 "$folder/test_gpu_ipm" $test
        done
        run compute-sanitizer --tool $tool --error-exitcode 1 "$folder/test_gpu_local" locality
    done
else
    for program in "$folder"/test_gpu_*; do run "$program"; done
fi
echo "$passed passed, $failed failed"
[ $failed = 0 ]
