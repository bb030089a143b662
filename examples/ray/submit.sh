#!/bin/sh
# Submits a run of Step B to a cluster.  Two rounds on 50 documents, a worker on every GPU of the cluster.
#
#   ray up examples/ray/cluster.yaml
#   ray dashboard examples/ray/cluster.yaml &      # brings the head's port 8265 to this machine
#   sh examples/ray/submit.sh
#
# The run's directory lies on the head's own disk.  The same command resumes a run that was stopped:
# whatever was committed is not done again.
set -eu
exec ray job submit \
  --address "${RAY_API_SERVER_ADDRESS:-http://127.0.0.1:8265}" \
  --runtime-env "$(dirname "$0")/runtime_env.yaml" \
  --no-wait \
  -- selfedit train --ray auto --model "${MODEL:-Qwen/Qwen3-0.6B}" --documents news:train --limit 50 --rounds 2 \
  --out "${OUT:-/home/ubuntu/runs/train}"
