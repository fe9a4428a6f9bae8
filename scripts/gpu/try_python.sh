#!/usr/bin/env bash
# The Python package on a machine with GPUs, in one call of about six minutes: the tests that need a
# GPU or torch 2, then what several ranks do together and what it costs (bench-node).
#   scripts/gpu/try_python.sh [OUT]     reports and timings go to OUT ($OUT, else build/try-python)
# On a machine that cannot build (no jansson, libzip, libyaml) bring the libraries built elsewhere:
# LPLB_LIBRARY names liblplb.so, liblplb_cuda.so lies beside it, LD_LIBRARY_PATH finds the rest.
# DEEP_EP_SOURCE: a folder with DeepEP's source (V1), which is then built without NVSHMEM in the
# background and tried last. RANKS: processes, by default one a GPU.
# Exits 1 if anything failed; every part runs all the same.
set -u -o pipefail
cd "$(dirname "$0")/../.." || exit 1
out=$(mkdir -p "${1:-${OUT:-build/try-python}}" && cd "${1:-${OUT:-build/try-python}}" && pwd)
python=${PYTHON:-python3}
# NVLink multicast stays off; a host without network cards must not make NCCL look for them.
export NCCL_NVLS_ENABLE=0 TORCH_SYMM_MEM_DISABLE_MULTICAST=1 NVSHMEM_DISABLE_NVLS=1
export NCCL_IB_DISABLE=${NCCL_IB_DISABLE:-1} NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-lo}
export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-lo} PYTHONUNBUFFERED=1
failed=()

part() { # part NAME LIMIT COMMAND...
    local name=$1 limit=$2 start=$SECONDS
    shift 2
    printf '\n==== %s\n' "$name"
    timeout "$limit" "$@" >"$out/$name.txt" 2>&1
    local status=$?
    tail -n "${SHOW:-6}" "$out/$name.txt" | cut -c 1-300
    [ $status = 0 ] || failed+=("$name ($status)")
    printf '==== %s: exit %d after %d s\n' "$name" $status $((SECONDS - start))
}

gpus=$("$python" -c 'import torch; print(torch.cuda.device_count())') || exit 1
ranks=${RANKS:-$gpus}
echo "$("$python" -V), torch $("$python" -c 'import torch; print(torch.__version__)'), $gpus GPU(s)"
builder=
if [ -n "${DEEP_EP_SOURCE:-}" ]; then
    # Its set-up looks for NVSHMEM by this name; without it, it builds the part inside a node, which
    # needs no relocatable device code (that would also need a device link, which is left out then).
    sed -i -e 's/find_spec("nvidia.nvshmem")/find_spec("no_nvshmem")/' -e "s/'-rdc=true', //" \
        "$DEEP_EP_SOURCE/setup.py"
    (cd "$DEEP_EP_SOURCE" && TORCH_CUDA_ARCH_LIST=9.0 MAX_JOBS=$(nproc) timeout 400 \
        "$python" setup.py build_ext --inplace >"$out/deepep_build.txt" 2>&1) &
    builder=$!
fi
if [ -z "${LPLB_LIBRARY:-}" ]; then
    part build 400 sh -c 'cmake -S . -B build -G Ninja -DLPLB_TESTS=OFF -DLPLB_BENCH=OFF \
        -DLPLB_FUZZ=OFF >/dev/null && cmake --build build --target lplb python'
    LPLB_LIBRARY=$PWD/build/liblplb.so
fi
export LPLB_LIBRARY PYTHONPATH=$PWD/python${PYTHONPATH:+:$PYTHONPATH}
"$python" -c 'import pytest' 2>/dev/null || part pytest 60 "$python" -m pip install -q pytest
SHOW=70 part bench_node 330 "$python" bench/python/bench_node.py --ranks "$ranks" --out "$out"
part one_gpu 150 "$python" -m pytest -q -p no:cacheprovider tests/python/test_gpu.py
SHOW=12 part eager_cost 60 "$python" bench/python/bench_run.py
if [ "$gpus" -gt 1 ]; then
    torchrun=("$python" -m torch.distributed.run --standalone --nproc-per-node "$gpus")
    part ranks_equal 100 "${torchrun[@]}" tests/python/gpu_ranks.py equal equal_local moved
    part example 60 "${torchrun[@]}" examples/torch_moe.py
    if [ -n "$builder" ]; then
        wait $builder || failed+=("deepep_build ($?)")
        tail -n 3 "$out/deepep_build.txt" | cut -c 1-300
        export PYTHONPATH=$PYTHONPATH:$DEEP_EP_SOURCE
    fi
    part ranks_deepep 60 "${torchrun[@]}" tests/python/gpu_ranks.py deepep
fi
if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]}"
    exit 1
fi
echo "all parts passed"
