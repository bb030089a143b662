#!/usr/bin/env bash
# Everything that a lent or rented GPU should answer, one step after another:
#
#     benchmarks/gpu.sh [FOLDER]                                                       # FOLDER: runs/gpu
#     DEVICE=cpu SHAPE=tiny TESTS=tests/engine/test_bank.py benchmarks/gpu.sh FOLDER   # a rehearsal without one
#
# A step that has ended well is not repeated, and a run that was stopped goes on.  FOLDER/results.md has the command, the
# time and the last lines of each step.  MODELS are compared at the end; the first one's tokenizer also goes with the
# random weights of SHAPE.
set -u
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python} device=${DEVICE:-cuda} shape=${SHAPE:-qwen2.5-3b} tests=${TESTS:-tests/engine}
models=${MODELS:-qwen2.5-coder-0.5b qwen2.5-coder-1.5b}
folder=${1:-runs/gpu}
results=$folder/results.md random=$folder/random failed=0
quick=() size=(--edits 5 --replicates 3) count=50
if [ "$shape" = tiny ]; then
    models=smollm2-135m quick=(--quick)
    count=4 size=(--edits 2 --replicates 1 --max-edit-tokens 16 --max-answer-tokens 4 --no-clean)
fi
mkdir -p "$folder"

step() { # name, command
    local name=$1 began=$SECONDS state=ok
    shift
    if grep -qs "^## $name: ok" "$results"; then
        echo "$name: done before"
        return
    fi
    "$@" >"$folder/$name.log" 2>&1 || state="failed ($?)" failed=1
    {
        printf '## %s: %s, %d s\n\n`%s`\n\n```\n' "$name" "$state" $((SECONDS - began)) "$*"
        tail -n 40 "$folder/$name.log"
        printf '```\n\n'
    } >>"$results"
    echo "$name: $state, $((SECONDS - began)) s"
}

# A model of the shape with random weights, and documents of random words with five questions each.
make_inputs() {
    "$python" - "$shape" "${models%% *}" "$random" "$count" <<'END'
import json, random, sys
from pathlib import Path

import torch, transformers
from benchmarks.engine import SHAPES
from selfedit.models import local_path

shape, tokenizer, folder, count = sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
words = transformers.AutoTokenizer.from_pretrained(local_path(tokenizer))
settings = {**SHAPES[shape], "max_position_embeddings": 4096, "bos_token_id": None, "eos_token_id": words.eos_token_id}
settings["vocab_size"] = max(len(words), settings["vocab_size"])
model = transformers.AutoModelForCausalLM.from_config(
    transformers.AutoConfig.for_model(**settings), dtype=torch.bfloat16
)
model.save_pretrained(folder)
words.save_pretrained(folder)
chance = random.Random(0)
names = ["".join(chance.choice("bdfgklmnprstvz") + chance.choice("aeiou") for _ in range(3)) for _ in range(400)]
with (folder / "documents.jsonl").open("w") as file:
    for k in range(count):
        questions = [{"question": f"Who is {chance.choice(names)}?", "answers": [chance.choice(names)]} for _ in range(5)]
        text = " ".join(chance.choices(names, k=110)) + "."
        file.write(json.dumps({"id": f"d{k}", "title": f"Title {k}", "text": text, "questions": questions}) + "\n")
END
}

step doctor "$python" -m selfedit doctor
step selftest "$python" -m selfedit.engine.selftest --device "$device"
step tests "$python" -m pytest -q -m engine "$tests" --device "$device"
step engine "$python" -m benchmarks.engine --device "$device" --shape "$shape" --breakdown --no-out "${quick[@]}"
step inputs make_inputs
step restem "$python" -m selfedit train --model "$random" --device "$device" --documents "$random/documents.jsonl" \
    --validation-share 0.2 --rounds 1 --recipe seal "${size[@]}" --no-clean --general-questions 0 --out "$folder/restem"
if [ "$shape" = tiny ]; then
    models=$random
fi
step compare "$python" -m selfedit compare $(printf -- '--model %s ' $models) --device "$device" --documents \
    "$([ "$shape" = tiny ] && echo "$random/documents.jsonl" || echo news:test)" --editor none --editor passage \
    --editor self "${size[@]}" --out "$folder/compare"
exit $failed
