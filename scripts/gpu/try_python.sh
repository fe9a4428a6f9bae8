#!/usr/bin/env bash
# The Python package on a machine with GPUs, in one call: builds and runs everything that needs a
# GPU or torch 2. With two or more GPUs also what the ranks do together.
#   scripts/gpu/try_python.sh [OUT]     reports and timings go to OUT ($OUT, else build/try-python)
# On a machine that cannot build (no jansson, libzip, libyaml) bring the libraries built elsewhere:
# LPLB_LIBRARY names liblplb.so, liblplb_cuda.so lies beside it, LD_LIBRARY_PATH finds the rest.
# Exits 1 if anything failed; every part runs all the same.
set -u -o pipefail
cd "$(dirname "$0")/../.." || exit 1
out=${1:-${OUT:-build/try-python}}
mkdir -p "$out"
python=${PYTHON:-python3}
# NVLink multicast stays off; a host without network cards must not make NCCL look for them.
export NCCL_NVLS_ENABLE=0 TORCH_SYMM_MEM_DISABLE_MULTICAST=1 NVSHMEM_DISABLE_NVLS=1
export NCCL_IB_DISABLE=${NCCL_IB_DISABLE:-1} NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-lo}
failed=()

part() { # part NAME LIMIT COMMAND...
    local name=$1 limit=$2 start=$SECONDS
    shift 2
    printf '\n==== %s\n' "$name"
    timeout "$limit" "$@" 2>&1 | tee "$out/$name.txt"
    local status=$?
    [ $status = 0 ] || failed+=("$name ($status)")
    printf '==== %s: exit %d after %d s\n' "$name" $status $((SECONDS - start))
}

gpus=$("$python" -c 'import torch; print(torch.cuda.device_count())') || exit 1
echo "$("$python" -V), torch $("$python" -c 'import torch; print(torch.__version__)'), $gpus GPU(s)"
if [ -z "${LPLB_LIBRARY:-}" ]; then
    part build 400 sh -c 'cmake -S . -B build -G Ninja -DLPLB_TESTS=OFF -DLPLB_BENCH=OFF \
        -DLPLB_FUZZ=OFF >/dev/null && cmake --build build --target lplb python'
    LPLB_LIBRARY=$PWD/build/liblplb.so
fi
export LPLB_LIBRARY PYTHONPATH=$PWD/python${PYTHONPATH:+:$PYTHONPATH}
"$python" -c 'import pytest' 2>/dev/null || part pytest 60 "$python" -m pip install -q pytest
part one_gpu 240 "$python" -m pytest tests/python/test_gpu.py
part cpu_tests 300 "$python" -m pytest tests/python --ignore tests/python/test_gpu.py
part eager_cost 100 "$python" bench/python/bench_run.py
if [ "$gpus" -gt 1 ]; then
    for section in equal deepep step layer; do
        part "ranks_$section" 120 "$python" -m torch.distributed.run --standalone \
            --nproc-per-node 2 tests/python/gpu_ranks.py "$section"
    done
    part example 90 "$python" -m torch.distributed.run --standalone --nproc-per-node 2 \
        examples/torch_moe.py
fi
if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]}"
    exit 1
fi
echo "all parts passed"
