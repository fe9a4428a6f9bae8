#!/bin/sh
# What balancing would bring on a recorded run of gpt-oss-20b (data/gpt-oss-20b/PROVENANCE.md), as 8
# ranks with 2 redundant expert slots each would have served it.
#   scripts/demo.sh PATH_OF_LPLB
set -eu
lplb=$1
cd "$(dirname "$0")/.."
report=demo-report
set -- --ranks 8 --redundant 2 --batch-tokens 512 --policy none --policy eplb --policy eplb+exact \
    --policy topology+ipm:published --policy lplb --policy search+exact --policy ideal \
    --report "$report"
for trace in data/gpt-oss-20b/*.npz; do
    echo "lplb replay $trace $*"
    echo
    "$lplb" replay "$trace" "$@"
    echo
done
echo "Open $PWD/$report/report.html in a browser."
