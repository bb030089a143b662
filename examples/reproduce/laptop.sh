#!/bin/sh
# Serves the external editor of laptop.yaml on this machine, runs the plan, and stops the server.
#
#   sh examples/reproduce/laptop.sh [--out DIR] [--plan] ...
#
# The same command goes on after an interruption.  PLAN, SERVED, PORT and PYTHON name others than these.
set -eu
plan=${PLAN:-examples/reproduce/laptop.yaml}
served=${SERVED:-qwen2.5-coder-1.5b}
port=${PORT:-8123}
python=${PYTHON:-.venv/bin/python}
case $python in /*) ;; *) python=$PWD/$python ;; esac

folder=$(mktemp -d)
mkdir "$folder/hub"
stop() {
  kill "$server" 2>/dev/null || true
  wait "$server" 2>/dev/null || true
  rm -r "$folder"
}
# The server knows the model by the name under which it lies in its directory.
ln -s "$("$python" -c 'import sys; from selfedit.models import local_path; print(local_path(sys.argv[1]))' "$served")" \
  "$folder/$(basename "$served")"
(cd "$folder" && HF_HUB_OFFLINE=1 HF_HOME="$folder" exec "$python" -m transformers.cli.transformers serve "$(basename "$served")" \
  --device cpu --host 127.0.0.1 --port "$port") >"$folder/log" 2>&1 &
server=$!
trap stop EXIT
trap 'exit 130' INT TERM
until "$python" -c "import urllib.request as u; u.urlopen('http://127.0.0.1:$port/health', timeout=5)" 2>/dev/null; do
  kill -0 "$server" 2>/dev/null || { echo "the server has ended:" >&2; tail -n 5 "$folder/log" >&2; exit 1; }
  sleep 1
done
"$python" -m selfedit reproduce "$plan" "$@"
