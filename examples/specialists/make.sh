#!/bin/sh
# Makes the specialists of docs/accuracy.md from the raw data, each beside its conventional twin, and scores all of them.
#   examples/specialists/make.sh DATA BUILD [TASK...]
# DATA has snips/, banking77/, clinc150/ and gsm8k/. A run that was stopped goes on where it was.
set -eu

data=$1 build=$2
shift 2
here=$(dirname "$0")

convert() { # TASK SCRIPT SOURCE
    [ -f "$build/data/$1/train.jsonl" ] || python "$here/$2" "$data/$3" "$build/data/$1"
}

train() { # TASK MODE RANK RATE STEPS
    out=$build/$2/$1
    [ -f "$out/adapter_model.safetensors" ] && return
    [ -f "$out/train.json" ] && resume=--resume || resume=
    icarus train --data "$build/data/$1/train.jsonl" --validation "$build/data/$1/validation.jsonl" --out "$out" \
        --mode "$2" --rank "$3" --learning-rate "$4" --steps "$5" --save-every 50 $resume
}

score() { # TASK METHOD METRIC MAX_TOKENS [FLAGS...]
    task=$1 method=$2 metric=$3 max_tokens=$4
    shift 4
    [ -f "$build/scores/$method-$task.json" ] && return
    mkdir -p "$build/scores"
    icarus eval --data "$build/data/$task/test.jsonl" --metric "$metric" --max-tokens "$max_tokens" --nll \
        --json "$build/scores/$method-$task.json" "$@"
}

specialist() { # TASK METRIC MAX_TOKENS STEPS [FLAGS...]
    task=$1 metric=$2 max_tokens=$3 steps=$4
    shift 4
    train "$task" icarus 8 0.008 "$steps"
    train "$task" conventional 7 0.004 "$steps"
    score "$task" base "$metric" "$max_tokens" "$@"
    score "$task" icarus "$metric" "$max_tokens" --adapter "$build/icarus/$task" --card "$@"
    score "$task" conventional "$metric" "$max_tokens" --adapter "$build/conventional/$task" --card "$@"
}

for name in ${*:-tools banking intents maths}; do
    case $name in
    tools) convert tools convert_snips.py snips; specialist tools json 96 250 ;;
    banking) convert banking convert_banking77.py banking77; specialist banking label 24 200 ;;
    intents) convert intents convert_clinc150.py clinc150; specialist intents label 24 200 ;;
    maths) convert maths convert_gsm8k.py gsm8k; specialist maths number 256 100 --limit 500 ;;
    *) echo "$0: no task $name; there are tools, banking, intents and maths" >&2; exit 2 ;;
    esac
done
