#!/bin/sh
# Trains a small mixture-of-experts model on 8 ranks with balancing, and replays its own routing;
# then what balancing would bring on a recorded run of gpt-oss-20b (data/gpt-oss-20b/PROVENANCE.md),
# as 8 ranks with 2 redundant expert slots each would have served it.
#   scripts/demo.sh PATH_OF_LPLB
set -eu
lplb=$1
cd "$(dirname "$0")/.."
report=demo-report
mkdir -p "$report"

# say COMMAND...: the command and what it prints
say() {
    echo "$@"
    echo
    "$@" || return
    echo
}

pages=
if [ ! -x "$(dirname "$lplb")/lplb-train" ]; then
    echo "No training: $(dirname "$lplb")/lplb-train was not built (it needs MPI and OpenBLAS)."
    echo
elif say "$lplb" train --ranks 8 --config examples/demo.yaml \
    --record-routing "$report/routing.npz"; then
    say "$lplb" replay "$report/routing.npz" --ranks 8 --redundant 2 --batch-tokens 2048 \
        --policy none --policy eplb --policy eplb+exact --policy lplb \
        --policy search+exact --policy ideal --report "$report/trained"
    pages="$PWD/$report/trained/report.html and "
else
    echo "No training: it does not run here, for the reason above."
    echo
fi
for trace in data/gpt-oss-20b/*.npz; do
    say "$lplb" replay "$trace" --ranks 8 --redundant 2 --batch-tokens 512 --policy none \
        --policy eplb --policy eplb+exact --policy topology+ipm:published --policy lplb \
        --policy search+exact --policy ideal --report "$report"
done
echo "Open $pages$PWD/$report/report.html in a browser."
