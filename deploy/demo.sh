#!/usr/bin/env bash
# From a bare Debian 12 machine to a served model: installs what is missing, fetches a real model, builds, serves it with
# routed attention on two tensor-parallel ranks, submits three chats and one prompt of about 4,000 tokens at once, prints
# the tokens while they come, then a summary, and stops everything it started.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: deploy/demo.sh [--keep] [--ranks N] [--grpc-port P] [--metrics-port P] [--server-log FILE]
  --keep             leave the server running at the end
  --ranks N          tensor-parallel ranks (default 2)
  --grpc-port P      default 8001
  --metrics-port P   default 8002
EOF
}

root=$(cd "$(dirname "$0")/.." && pwd)
keep=false ranks=2 grpc_port=8001 metrics_port=8002 log=
while (($#)); do
  case $1 in
    --ranks | --grpc-port | --metrics-port | --server-log) (($# > 1)) || { usage >&2; exit 2; } ;;&
    --keep) keep=true ;;
    --ranks) ranks=$2; shift ;;
    --grpc-port) grpc_port=$2; shift ;;
    --metrics-port) metrics_port=$2; shift ;;
    --server-log) log=$2; shift ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
  esac
  shift
done

if [[ -t 1 ]]; then bold=$'\e[1m' plain=$'\e[0m'; else bold= plain=; fi
say() { printf '%s[demo %3d s] %s%s\n' "$bold" "$SECONDS" "$*" "$plain"; }
fail() { say "$*" >&2; exit 1; }

work=$(mktemp -d "${TMPDIR:-/tmp}/metattn-demo.XXXXXX")
log=${log:-$work/server.log}
server= client=

stop_server() {
  [[ -n $server ]] || return 0
  kill -TERM "$server" 2>/dev/null || true
  local code=0
  wait "$server" || code=$?
  server=
  return "$code"
}

on_exit() {
  local code=$?
  trap - EXIT INT TERM
  [[ -z $client ]] || kill -TERM "$client" 2>/dev/null || true
  if [[ -n $server ]]; then
    say "stopping the server"
    stop_server || true
  fi
  ((code == 0)) || [[ ! -s $log ]] || { echo "--- the end of $log"; tail -n 20 "$log"; } >&2
  [[ -n ${kept:-} ]] || rm -rf "$work"
  exit "$code"
}
trap on_exit EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

say "checking the packages it needs"
"$root/deploy/install-deps.sh" || exit 1

say "fetching the model (98 MB, once)"
model=$("$root/deploy/fetch-model.sh") || exit 1

build=$root/build/release
say "building into build/release (minutes the first time)"
build_programs() {
  (cd "$root" && cmake --preset release) >"$work/build.log" 2>&1 || return 1
  cmake --build "$build" --target metattn metattnctl 2>&1 | tee -a "$work/build.log" | show_progress
}
# On a terminal the build is one line that changes; elsewhere it is silent.
show_progress() {
  if [[ -t 1 ]]; then awk '{ printf "\r\033[K    %.100s", $0; fflush() } END { print "" }'; else cat >/dev/null; fi
}
build_programs || { tail -n 40 "$work/build.log" >&2; fail "the build failed"; }
ctl=$build/metattnctl

say "starting $ranks ranks with routed attention; their log goes to $log"
"$root/deploy/launch.sh" -n "$ranks" "$build/metattn" serve --model "$model" \
  --controller "$root/deploy/controllers/smollm2-135m" --grpc-port "$grpc_port" --metrics-port "$metrics_port" --jobs-db "$work/jobs.db" >"$log" 2>&1 </dev/null &
server=$!

address=127.0.0.1:$grpc_port
healthy=false
for ((i = 0; i < 300; i++)); do
  kill -0 "$server" 2>/dev/null || fail "the server ended before it was healthy"
  if "$ctl" health --server "$address" >/dev/null 2>&1; then healthy=true; break; fi
  sleep 0.2
done
$healthy || fail "the server is not healthy after a minute"
kill -0 "$server" 2>/dev/null || fail "the server ended"  # it was another program that answered on that port
say "healthy; its ranks:"
sed -n -E 's|.*(rank [0-9]+/[0-9]+: host )|    \1|p' "$log"

# The long prompt is the project's own documents.
cat "$root"/README.md "$root"/*/README.md "$root"/*/*/README.md >"$work/documents"
cat "$root"/engine/*.h "$root"/kernels/*.h >>"$work/documents"

say "three chats and one long prompt at once"
python3 "$root/deploy/demo_client.py" --ctl "$ctl" --server "$address" --metrics "http://127.0.0.1:$metrics_port/metrics" \
  --documents "$work/documents" </dev/null &
client=$!
code=0
wait "$client" || code=$?
client=
((code == 0)) || fail "a request failed"

if $keep; then
  kept=yes
  say "the server keeps running as process $server; stop it with: kill $server"
  echo "    try: $ctl generate --server $address --chat 'Tell me a joke.'"
  echo "    metrics: http://127.0.0.1:$metrics_port/metrics    log: $log"
  disown "$server"
  server=
else
  say "stopping the server: it drains, then every rank ends"
  stop_server || fail "the server ended with code $?"
  say "done"
fi
