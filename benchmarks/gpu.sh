#!/usr/bin/env bash
# What only a GPU can show, step by step: tests first, then figures. Reckoned at eleven minutes of one H100.
#
#   benchmarks/gpu.sh OUT [STEP...]      tests services transfer kernels engine agents; without STEP all in this order
#
# OUT gets each step's log, and its figures as JSON. Each step has a limit, and the next one runs whatever became of it.
# The limits add up to twenty minutes: where a command may not take so long, call it twice, with `tests services
# transfer kernels` (nine at most) and with `engine agents` (ten and a half).
# No network and no model are needed: weights are random. PYTHON (python3) has what `.[dev]` installs, and pytest-xdist,
# without which `tests` may not end within its limit. REACT is ReAct's folder; without it `agents` has no open loop.
set -u
out=$(mkdir -p "${1:?a folder for logs and figures}" && cd "$1" && pwd) || exit
shift
[ $# -gt 0 ] || set -- tests services transfer kernels engine agents
react=${REACT:+$(realpath "$REACT")}
python=${PYTHON:-python3}
[[ $python != */* ]] || python=$(realpath -s "$python") || exit # -s: a virtual environment's python is a link out of it
cd "$(dirname "$0")/.." || exit
sources=$PWD/src:$PWD/kernels:$PWD/services/gateway:$PWD/services/prefill:$PWD/services/decode:$PWD/benchmarks
export PYTHONUNBUFFERED=1 PYTHONPATH=$sources${PYTHONPATH:+:$PYTHONPATH}
pytest=(env TRITON_INTERPRET=0 ICARUS_TEST_DEVICE=cuda "$python" -m pytest -p no:cacheprovider)
# 16 GB of weights, and pools: three of 18 GB for `engine` at batch 32, one of 35 for `agents`.
on_8b=(--random-weights llama-3.1-8b --model-device cuda --engine-max-batch-tokens 2048)

limited() { # NAME SECONDS COMMAND...
    local name=$1 limit=$2 start=$SECONDS
    timeout -k 25 "$limit" "${@:3}" >"$out/$name.log" 2>&1
    local code=$?
    tail -n 40 "$out/$name.log"
    echo "== $name: exit code $code after $((SECONDS - start)) of $limit s"
}

bench() { # NAME SECONDS FLAG...
    limited "$1" "$2" "$python" -m icarus.cli.main bench "$1" --json "$out/$1.json" "${@:3}"
}

step_tests() {
    local side_by_side=()
    if "$python" -c 'import xdist' 2>/dev/null; then
        side_by_side=(-n "$(nproc)")
    else
        echo "$python has no pytest-xdist: the tests run one after the other, which may take longer than their limit"
    fi
    limited tests 180 "${pytest[@]}" "${side_by_side[@]}" tests/kernels tests/model tests/engine
}

step_services() { # NIXL reads one process's GPU memory from another
    limited services 150 "${pytest[@]}" tests/services/test_chain.py
}

step_transfer() { # blocks of 16 tokens of Llama-3.1-8B
    bench transfer 120 --device cuda --block-bytes 2097152 --blocks 1,16,64 --repetitions 10
}

step_kernels() {
    bench kernels 90
}

step_engine() {
    bench engine 210 "${on_8b[@]}" --batches 1,2,4,8,16,32 --decode-context 4096 \
        --paired-batch 32 --paired-context 1024 --steps 24 --repetitions 3
}

step_agents() { # the rates: about what private specialists can do, and twice that
    bench agents 420 "${on_8b[@]}" --agents 2,4,8 --kv-gib 40 \
        ${react:+--data "$react"} --rates 8,16 --open-workflows 12
}

for step; do
    "step_$step"
done
