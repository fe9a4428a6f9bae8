#!/bin/sh
# The memory of a run as the documented formula has it: the largest rank's peak less what program
# and libraries take, within 10 %, for dense and expert layers, one rank and several, with copies
# that move and with checkpoints.
#   memory.sh PATH_OF_LPLB
set -u
lplb=$1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder" || exit 1
failed=0

i=0
while [ $i -lt 4000 ]; do
    echo "line $i of a text that is long enough to learn from: $((i * i % 97)) and so on."
    i=$((i + 1))
done >text.txt

# field NAME: a whole number of the JSON document in ./json
field() { sed -n "s/.*\"$1\":\([0-9]*\).*/\1/p" json; }

# compare WHAT ARGUMENTS...: leaves the planned bytes without the base in $planned
compare() {
    what=$1
    shift
    "$lplb" train --text text.txt --steps 3 --warmup-steps 1 --json "$@" >json ||
        { echo "$what: failed"; failed=1; return; }
    planned=$(($(field memory_planned) - $(field memory_base)))
    peak=$(($(field memory_peak) - $(field memory_base)))
    [ "$peak" -gt 50000000 ] && [ $((planned * 10)) -ge $((peak * 9)) ] &&
        [ $((planned * 10)) -le $((peak * 11)) ] ||
        { echo "$what: $planned bytes by formula, $peak measured"; failed=1; }
}

dense="--layers 4 --width 256 --heads 4 --kv-heads 2 --context 256 --experts 1 --topk 1
    --expert-width 512 --shared-width 256 --dense-layers 3 --dense-width 768 --aux none
    --global-batch 4 --micro-batch 4"
experts="--layers 2 --width 192 --heads 4 --context 256 --experts 16 --topk 4 --expert-width 192"

compare "one rank, experts" $experts --global-batch 8 --micro-batch 4
compare "four ranks, copies, moves, checkpoint" $experts --ranks 4 --global-batch 16 \
    --micro-batch 4 --mode eplb --redundant 2 --rebalance-every 2 --checkpoint ck
if "$lplb" train --text text.txt --dtype bf16 --plan-memory >/dev/null 2>&1; then
    compare "one rank, experts, bf16" $experts --global-batch 8 --micro-batch 4 --dtype bf16
    compare "one rank, dense, bf16" $dense --dtype bf16
    compare "four ranks, copies, moves, bf16" $experts --ranks 4 --global-batch 16 \
        --micro-batch 4 --mode eplb --redundant 2 --rebalance-every 2 --dtype bf16
fi
compare "one rank, dense" $dense
# With one expert routing is even, so the plan made beforehand is the one of the run.
"$lplb" train --text text.txt $dense --plan-memory --json >json || failed=1
before=$(($(field rank_bytes) - $(field base)))
[ "$before" = "$planned" ] || { echo "planned $before bytes before, $planned after"; failed=1; }
"$lplb" train --text text.txt $dense --plan-memory >table || failed=1
grep -q "^AdamW's moments" table || { cat table; failed=1; }
exit $failed
