#!/bin/sh
# Makes the specialists of docs/accuracy.md from the raw data, each beside its conventional twin, and scores all of them.
#   examples/specialists/make.sh DATA BUILD [TASK...]
# DATA has snips/, banking77/, clinc150/ and gsm8k/. A run that was stopped goes on where it was.
# Steps of 64 examples are for a GPU (minutes a run; on two cores, hours).
set -eu

data=$1 build=$2
shift 2
here=$(dirname "$0")

convert() { # TASK SCRIPT SOURCE
    [ -f "$build/data/$1/train.jsonl" ] || python "$here/$2" "$data/$3" "$build/data/$1"
}

note() { # TASK: what the model card says of its data
    case $1 in
    tools) echo "SNIPS, 2017-06 custom intent engines (Snips, nlu-benchmark), CC0 1.0." ;;
    banking) echo "BANKING77 (Casanueva et al. 2020, PolyAI), CC BY 4.0; underscores in intents became spaces." ;;
    intents) echo "CLINC150 with out-of-scope (Larson et al. 2019), CC BY 3.0; underscores in intents became spaces." ;;
    maths) echo "GSM8K (Cobbe et al. 2021, OpenAI), MIT; without its calculator notes." ;;
    esac
}

train() { # TASK MODE RANK RATE STEPS BATCH ACCUMULATION
    out=$build/$2/$1
    [ -f "$out/adapter_model.safetensors" ] && return
    [ -f "$out/train.json" ] && resume=--resume || resume=
    icarus train --data "$build/data/$1/train.jsonl" --validation "$build/data/$1/validation.jsonl" --out "$out" \
        --mode "$2" --rank "$3" --learning-rate "$4" --steps "$5" --batch-size "$6" --accumulation "$7" \
        --save-every 50 \
        --data-note "$(note "$1")" $resume
}

limit() { # TASK: of its test set
    [ "$1" != maths ] || echo --limit 500
}

score() { # TASK METHOD METRIC MAX_TOKENS [--adapter FOLDER]
    task=$1 report=$build/scores/$2-$1.json losses=$build/losses/$2-$1.json metric=$3 max_tokens=$4
    shift 4
    mkdir -p "$build/scores" "$build/losses"
    # The loss of the right answers, on examples put aside: over whole test sets it takes longer than the answers do.
    if [ ! -f "$losses" ]; then
        icarus eval --data "$build/data/$task/validation.jsonl" --metric "$metric" --max-tokens 1 --oracle --nll \
            --json "$losses.partial" "$@"
        mv "$losses.partial" "$losses"
    fi
    [ -f "$report" ] && return
    [ $# -eq 0 ] || set -- --card "$@"
    icarus eval --data "$build/data/$task/test.jsonl" --metric "$metric" --max-tokens "$max_tokens" \
        --json "$report.partial" $(limit "$task") "$@"
    mv "$report.partial" "$report"
}

specialist() { # TASK METRIC MAX_TOKENS RATE STEPS BATCH ACCUMULATION
    train "$1" icarus 8 "$4" "$5" "$6" "$7"
    train "$1" conventional 7 "$4" "$5" "$6" "$7"
    score "$1" base "$2" "$3"
    score "$1" icarus "$2" "$3" --adapter "$build/icarus/$1"
    score "$1" conventional "$2" "$3" --adapter "$build/conventional/$1"
}

for name in ${*:-tools banking intents maths}; do
    case $name in
    tools) convert tools convert_snips.py snips; specialist tools json 96 0.005 400 64 1 ;;
    banking) convert banking convert_banking77.py banking77; specialist banking label 12 0.005 320 64 1 ;;
    intents) convert intents convert_clinc150.py clinc150/data_full.json; specialist intents label 10 0.005 400 64 1 ;;
    maths) convert maths convert_gsm8k.py gsm8k; specialist maths number 256 0.005 100 8 2 ;;
    *) echo "$0: no task $name; there are tools, banking, intents and maths" >&2; exit 2 ;;
    esac
done
