#!/bin/sh
# lplb train from outside: exit codes, one line of error from one rank, a run, a resumed run, a
# trace that lplb replay reads.
#   program.sh PATH_OF_LPLB
set -u
lplb=$1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder" || exit 1
failed=0

# The lines of err; Open MPI 5 cannot be told to leave its own notices out.
case "$(mpirun --version 2>&1)" in
*"Open MPI) 4"*) lines() { wc -l <err; } ;;
*) lines() { grep -c '^lplb' err; } ;;
esac

# expect CODE WORDS ARGUMENTS...: that exit code, and one line on stderr that has the words.
expect() {
    code=$1 words=$2
    shift 2
    "$lplb" train "$@" >out 2>err
    got=$?
    if [ $got != "$code" ] || [ "$(lines)" != 1 ] || ! grep -q -- "$words" err; then
        echo "lplb train $*: exit $got instead of $code, or not one line with '$words':"
        cat err
        failed=1
    fi
}

i=0
while [ $i -lt 400 ]; do
    echo "line $i of a text that is long enough to learn from: $((i * i % 97)) and so on."
    i=$((i + 1))
done >text.txt
small="--text text.txt --layers 2 --width 32 --heads 2 --kv-heads 2 --context 32 --experts 8
    --expert-width 32 --global-batch 8 --micro-batch 2 --warmup-steps 2"

expect 2 "no option 'wrong'" --wrong 3
expect 2 "must be a whole number" --layers many
expect 2 "--generate is empty" --checkpoint ck --generate ""
expect 2 "--checkpoint is empty" --checkpoint=
expect 2 "needs a value" --layers
expect 2 "f32 or f64" --precision f16
printf 'model:\n  layer: 3\n' >bad.yaml
expect 2 "line 2, column 3" --config bad.yaml
mkdir lonely && cp "$lplb" lonely/lplb && : >lonely/lplb-train && chmod +x lonely/lplb-train
lonely/lplb train --precision f64 2>err && failed=1
grep -q "lplb-train-f64.*make build" err || { cat err; failed=1; }
rm -r lonely
expect 2 "text is kjv" --ranks 2 --text absent.txt
expect 2 "do not divide over 3 ranks" --ranks 3 $small --global-batch 6
expect 2 "does not divide over 4 ranks" --ranks 4 $small --global-batch 6
expect 2 "do not divide into micro-batches" --ranks 2 $small --micro-batch 3
expect 2 "3 expert-parallel ranks do not divide 4" --ranks 4 $small --expert-ranks 3
expect 2 "must divide model.heads" $small --heads 4 --kv-heads 3
printf 'balance:\n  redundant: 1\n  mode: none\n' >bad.yaml
expect 2 "with mode none" --ranks 2 --config bad.yaml $small
expect 2 "cannot\|in use\|port" --ranks 2 $small --metrics-port 9 --metrics-address 203.0.113.1
expect 2 "a shorter context" --ranks 2 $small --context 100000 --global-batch 2 --micro-batch 1
expect 2 "no default topology" --ranks 2 $small --mode lplb --redundant 2
expect 2 "no checkpoint" $small --checkpoint absent --generate line
expect 2 "cannot write" --ranks 2 $small --log absent/log --steps 3
expect 2 "absent/trace" --ranks 2 $small --record-routing absent/trace.npz --steps 3
expect 2 "absent/ck" --ranks 2 $small --checkpoint absent/ck --steps 3
expect 2 "not for --precision f64" --precision f64 $small --dtype bf16
DNNL_MAX_CPU_ISA=AVX512_CORE
export DNNL_MAX_CPU_ISA
expect 2 "no bf16 instructions\|needs oneDNN" $small --dtype bf16
unset DNNL_MAX_CPU_ISA
expect 1 "lower the learning rate" --ranks 2 $small --steps 40 --rate 1e30 --min-rate 0 --clip 0

# flags win over a file, wherever they stand
printf 'train: {steps: 9, global-batch: 4}\n' >run.yaml
"$lplb" train $small --steps 3 --config run.yaml --json >json || failed=1
grep -q '"steps":3,"step":3,"tokens":7[0-9][0-9],' json || { cat json; failed=1; }

run="--ranks 4 $small --steps 10 --mode lplb --redundant 2 --rebalance-every 4 --checkpoint ck"
"$lplb" train $run --checkpoint-every 5 --record-routing trace.npz --log log --event-log events \
    --chrome-trace phases --json >json || failed=1
grep -q '"event":"adopt"' events || { cat events; failed=1; }
for phase in forward backward 'sum gradients' optimizer checkpoint 'lplb step'; do
    grep -q "\"name\":\"$phase\"" phases || { echo "no phase $phase"; failed=1; }
done
tail -n 1 phases | grep -q ']' || { echo "the trace is not complete"; failed=1; }
grep -q '"schema":"lplb.train/1","steps":10' json || { cat json; failed=1; }
[ "$(wc -l <log)" = 10 ] || failed=1
"$lplb" replay trace.npz --ranks 4 --redundant 2 --batch-tokens 128 --policy none --policy lplb \
    --json >replayed || failed=1
grep -q '"policy": *"lplb"' replayed || failed=1
"$lplb" train $run --steps 12 --resume --json >json 2>err || failed=1
grep -qx 'lplb train: changed since the checkpoint: schedule-steps was 10 and is 12' err ||
    { cat err; failed=1; }
grep -q '"steps":2,"step":12' json || { cat json; failed=1; }
"$lplb" train $small --checkpoint ck --generate "line 1" --generate-bytes 20 >text || failed=1
grep -q '^line 1' text || failed=1

# a run from the start does not touch the checkpoints of another; each keeps its last two
cksum ck/* >before
expect 2 "step 12.*--resume" $run --steps 4
cksum ck/* | cmp -s - before || { echo "a second run has changed the first one's"; failed=1; }
"$lplb" train --ranks 2 $small --steps 7 --checkpoint three --checkpoint-every 2 >out || failed=1
[ "$(cd three && echo *)" = "latest.json step-00000006.safetensors step-00000007.safetensors" ] ||
    { ls three; failed=1; }

# a loss that is no number ends the run but not its checkpoints
cksum ck/* >before
"$lplb" train $run --steps 80 --resume --rate 1e30 --min-rate 0 --clip 0 >out 2>err
[ $? = 1 ] && [ "$(grep -c 'lower the learning rate' err)" = 1 ] || { cat err; failed=1; }
cksum ck/* | cmp -s - before || { echo "a failed run has changed its checkpoints"; failed=1; }

# what decides which text comes next must be as it was, unless one says so; the model always
expect 2 "seed was 1 and is 2 (the text in another order); give" $run --steps 14 --resume --seed 2
expect 2 "global-batch was 8 and is 16" $run --steps 14 --resume --global-batch 16
expect 2 "context was 32 and is 16" $run --steps 14 --resume --context 16
expect 2 "sha256 was" $run --steps 14 --resume --text text.txt,text.txt
expect 2 "of another model: topk was 2 and is 3;" $run --steps 14 --resume --topk 3
expect 2 "for use with --resume" $run --resume-changed
expect 2 "not with --generate" $small --checkpoint ck --export w.safetensors --json
expect 2 "one at a time" $small --checkpoint ck --export w.safetensors --generate line
expect 2 "--init begins anew" $small --checkpoint ck --resume --init w.safetensors
expect 2 "no safetensors file" $small --init text.txt --steps 3
expect 2 "of another model: heads was 2 and is 4;" --checkpoint ck --heads 4 --generate line
expect 2 "type F32, this trainer computes in F64" --checkpoint ck --precision f64 --generate line
cp -r ck changed
"$lplb" train $run --checkpoint changed --steps 13 --resume --resume-changed --seed 2 --json \
    >json || failed=1
grep -q '"steps":1,"step":13' json || { cat json; failed=1; }

# the model is the checkpoint's, no option or text needs to be repeated; weights go out and come in
# with the same bits
"$lplb" train --checkpoint ck --generate "line 1" --generate-bytes 20 --text absent --mode lplb \
    --redundant 2 >again || failed=1
cmp -s text again || { echo "the model of the checkpoint writes something else"; failed=1; }
"$lplb" train --checkpoint ck --export w.safetensors || failed=1
"$lplb" train --ranks 2 $small --init w.safetensors --steps 3 --rate 1e-30 --min-rate 0 \
    --checkpoint begun >out || failed=1
"$lplb" train --checkpoint begun --export again.safetensors || failed=1
cmp -s w.safetensors again.safetensors || { echo "weights that come back are others"; failed=1; }
expect 2 "width was 32 and is 64; --init brings" $small --width 64 --init w.safetensors

# the newest is damaged: it and the one before are named, which is taken when asked for
cp -r ck broken
truncate -s -1 broken/step-00000012.safetensors
expect 2 "damaged.*step 10: --checkpoint-step 10" $run --checkpoint broken --steps 14 --resume
expect 2 "damaged.*step 10: --checkpoint-step 10" --checkpoint broken --generate line
"$lplb" train --checkpoint broken --checkpoint-step 10 --generate line >out || failed=1
"$lplb" train $run --checkpoint broken --steps 14 --resume --checkpoint-step 10 --json \
    >json || failed=1
grep -q '"steps":4,"step":14' json || { cat json; failed=1; }
[ "$(cd broken && echo *)" = "latest.json step-00000010.safetensors step-00000014.safetensors" ] ||
    { ls broken; failed=1; }

# a recording has what there was when the run failed, and says where it was cut
"$lplb" train --ranks 2 $small --steps 40 --rate 1e30 --min-rate 0 --clip 0 \
    --record-routing failed.npz >out 2>err && failed=1
grep -q '^recorded [1-9][0-9]* tokens before the failure: failed.npz' err || { cat err; failed=1; }
"$lplb" replay failed.npz --ranks 4 --batch-tokens 128 --policy none --json >replayed || failed=1
"$lplb" train --ranks 2 $small --steps 4 --record-tokens 600 --record-routing cut.npz >out 2>err ||
    failed=1
grep -q 'recorded the first 512 of 1024 tokens' err || { cat err; failed=1; }

# told to stop: the step is finished, a checkpoint saved, one line says so
rm -f log
for stop in TERM INT; do
    "$lplb" train --ranks 2 $small --steps 1000000 --checkpoint "by-$stop" --log log >out 2>err &
    i=0
    until [ -s log ] || [ $i -gt 300 ]; do i=$((i + 1)) && sleep 0.1; done
    kill "-$stop" $!
    wait $!
    got=$?
    [ $stop = TERM ] && code=143 || code=130
    if [ $got != $code ] || [ "$(lines)" != 1 ] ||
        ! grep -q 'saved in.*--resume goes on' err; then
        echo "stopped by $stop: exit $got"
        cat err
        failed=1
    fi
    rm -f log
done
"$lplb" train $small --steps 1000000 --checkpoint alone --log log >out 2>err &
i=0
until [ -s log ] || [ $i -gt 300 ]; do i=$((i + 1)); sleep 0.1; done
kill -TERM $!
wait $!
got=$?
[ $got = 143 ] && grep -q 'told to stop after step' err || { echo "exit $got"; cat err; failed=1; }
[ -e alone/latest.json ] || failed=1

# a rank that is killed is told of, as is a signal to all processes of the job
rm -f log
"$lplb" train --ranks 2 $small --steps 1000000 --log log >out 2>err &
main=$! i=0
until [ -s log ] || [ $i -gt 300 ]; do i=$((i + 1)); sleep 0.1; done
mpirun=$(cat /proc/$main/task/$main/children)
read -r rank others </proc/${mpirun% }/task/${mpirun% }/children
kill -KILL "$rank"
wait $main
got=$?
[ $got = 137 ] && grep -q 'ended by signal 9' err ||
    { echo "killed: exit $got"; cat err; failed=1; }
rm -f log
"$lplb" train --ranks 2 $small --steps 1000000 --log log >out 2>err &
main=$! i=0
until [ -s log ] || [ $i -gt 300 ]; do i=$((i + 1)); sleep 0.1; done
mpirun=$(cat /proc/$main/task/$main/children)
kill -TERM $main $mpirun $(cat /proc/${mpirun% }/task/${mpirun% }/children)
wait $main
got=$?
[ $got = 143 ] || { echo "all told to stop: exit $got"; cat err; failed=1; }

# a bounced key is one wish, also before the ranks listen; a finished run says that it is
rm -f log
"$lplb" train --ranks 2 $small --steps 1000000 --checkpoint bounced --log log >out 2>err &
i=0
until [ -s log ] || [ $i -gt 300 ]; do i=$((i + 1)); sleep 0.1; done
kill -TERM $!
kill -TERM $!
wait $!
got=$?
[ $got = 143 ] && [ -e bounced/latest.json ] || { echo "twice: exit $got"; cat err; failed=1; }
"$lplb" train --ranks 2 $small --steps 1000000 --checkpoint early >out 2>err &
sleep 0.1
kill -TERM $!
wait $!
got=$?
[ $got = 143 ] || { echo "early: exit $got"; cat err; failed=1; }
"$lplb" train $small --steps 2 --checkpoint alone --resume --resume-changed >out 2>err || failed=1
grep -q 'is at step [0-9]* already' err && [ ! -s out ] || { cat out err; failed=1; }

# ranks that were given different options: one of them says so
mpi="mpirun --allow-run-as-root --oversubscribe"
$mpi -np 2 sh -c 'exec "$0" "$@" --steps $((3 + OMPI_COMM_WORLD_RANK))' "${lplb}-train" $small \
    >out 2>err
got=$?
if [ $got != 2 ] || [ "$(grep -c '^lplb train: .*other options than rank 0' err)" != 1 ]; then
    echo "ranks that disagree: exit $got"
    cat err
    failed=1
fi

# lplb top on a running training
"$lplb" train --ranks 2 $small --steps 150 --mode eplb --redundant 1 --rebalance-every 5 \
    --metrics-port 0 >out 2>err &
i=0
until grep -q 'rebalance .* adopted' top 2>/dev/null; do
    i=$((i + 1))
    [ $i -gt 300 ] && { echo "no figures to be had:"; cat err; failed=1; break; }
    sleep 0.1
    port=$(sed -n 's/.*lplb top \([0-9]*\)$/\1/p' err)
    [ -n "$port" ] && "$lplb" top --once "$port" >top 2>&1
done
wait $! || { cat err; failed=1; }
grep -q 'lplb train: step' top || { cat top; failed=1; }
exit $failed
