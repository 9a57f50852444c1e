#!/usr/bin/env bash
# Starts a program on several ranks with mpirun and the settings it needs; used by demo.sh, the tests and by hand.
#
#   deploy/launch.sh -n 2 --threads 1 build/release/bin/metattn serve --model M
#   deploy/launch.sh --hosts node1:2,node2:2 build/release/bin/metattn serve --model M
#
# Signals: SIGTERM or SIGINT goes to rank 0, which drains and ends the others; the second one goes there too
# (rank 0 then stops at once) and mpirun is told to abort five seconds later. A SIGTERM to mpirun itself is an abort.
# Exit code: mpirun's, which is that of the first rank that failed.
set -uo pipefail

usage() {
  cat <<'EOF'
usage: deploy/launch.sh [options] PROGRAM [ARGUMENT...]
  -n, --ranks N          ranks (default: the slots of --hosts, else 1)
  --threads T            threads per rank (default: cores / ranks, at least 1); sets METATTN_THREADS
  --hosts A:2,B:2        hosts with their ranks; the first must be this one, because rank 0 serves here.
                         Every host needs the same paths and ssh without a password.
  --no-bind              leave the ranks to the operating system instead of binding them to cores
  --pid-file FILE        where the process id of rank 0 is written (default: a temporary file)
  --dry-run              print the mpirun command and the settings, start nothing
Environment variables METATTN_* reach every rank.
EOF
}

fail() { echo "launch: $*" >&2; exit 2; }

ranks= threads= hosts= pid_file= bind=true dry_run=false
while (($#)); do
  case $1 in
    -n | --ranks | --threads | --hosts | --pid-file) (($# > 1)) || fail "$1 needs a value" ;;&
    -n | --ranks) ranks=$2; shift ;;
    --threads) threads=$2; shift ;;
    --hosts) hosts=$2; shift ;;
    --pid-file) pid_file=$2; shift ;;
    --no-bind) bind=false ;;
    --dry-run) dry_run=true ;;
    -h | --help) usage; exit 0 ;;
    --) shift; break ;;
    -*) usage >&2; fail "unknown option $1" ;;
    *) break ;;
  esac
  shift
done
(($# > 0)) || { usage >&2; fail "no program given"; }
command -v mpirun >/dev/null || fail "mpirun is not installed; run deploy/install-deps.sh"
command -v -- "$1" >/dev/null || fail "program $1 does not exist or is not executable"

is_count() { [[ $1 =~ ^[1-9][0-9]{0,4}$ ]]; }

# Ranks on this host, and in all.
local_ranks=
if [[ -n $hosts ]]; then
  total=0
  IFS=, read -r -a entries <<<"$hosts"
  for entry in "${entries[@]}"; do
    slots=1
    [[ $entry == *:* ]] && slots=${entry##*:}
    is_count "$slots" || fail "--hosts: '$entry' does not end in a number of ranks"
    : "${local_ranks:=$slots}"
    total=$((total + slots))
  done
  first=${entries[0]%%:*}
  [[ " localhost 127.0.0.1 $(hostname) $(hostname -s) $(hostname -I 2>/dev/null) " == *" $first "* ]] ||
    fail "--hosts: the first host must be this one ($(hostname)), not $first"
  : "${ranks:=$total}"
fi
: "${ranks:=1}"
is_count "$ranks" || fail "-n: '$ranks' is not a number of ranks"
[[ -z $hosts ]] || ((ranks <= total)) || fail "-n $ranks is more than the $total slots of --hosts"
if [[ -z $local_ranks ]] || ((local_ranks > ranks)); then local_ranks=$ranks; fi

# Cores: hardware threads this process may use, less where a container's quota is smaller; physical cores among them.
logical=$(nproc)
quota=
if read -r limit period 2>/dev/null </sys/fs/cgroup/cpu.max && [[ $limit != max ]]; then
  quota=$(((limit + period - 1) / period))
  ((quota < logical)) || quota=
fi
physical=$(lscpu -p=CPU,CORE,SOCKET 2>/dev/null | grep -v '^#' | cut -d, -f2,3 | sort -u | wc -l)
((physical >= 1 && physical <= logical)) || physical=$logical
cores=${quota:-$logical}

if [[ -z $threads ]]; then
  threads=$((cores / local_ranks))
  ((threads >= 1)) || threads=1
fi
is_count "$threads" || fail "--threads: '$threads' is not a number of threads"
wanted=$((local_ranks * threads))

options=(-n "$ranks")
if ((EUID == 0)); then options+=(--allow-run-as-root); fi
if ((wanted > cores)) || [[ -n $quota ]]; then
  binding="none ($wanted threads for $cores cores)"
  options+=(--oversubscribe --bind-to none)
  if ((wanted > cores)); then options+=(--mca mpi_yield_when_idle 1); fi
elif ! $bind; then
  binding="none"
  options+=(--oversubscribe --bind-to none)
elif ((wanted <= physical)); then
  binding="$threads core(s) a rank"
  options+=(--map-by "slot:PE=$threads" --bind-to core)
else
  binding="$threads hardware thread(s) a rank"
  options+=(--use-hwthread-cpus --map-by "slot:PE=$threads" --bind-to hwthread)
fi

# Copies straight from another process's memory need the right to trace it; many containers lack it.
may_trace() {
  python3 - <<'PY' 2>/dev/null
import ctypes, os, signal, sys
class IoVec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
source, target = ctypes.create_string_buffer(b"x" * 8), ctypes.create_string_buffer(8)
child = os.fork()
if child == 0:
    signal.pause()
libc = ctypes.CDLL(None, use_errno=True)
here, there = IoVec(ctypes.addressof(target), 8), IoVec(ctypes.addressof(source), 8)
libc.process_vm_readv.restype = ctypes.c_ssize_t
got = libc.process_vm_readv(child, ctypes.byref(here), 1, ctypes.byref(there), 1, 0)
os.kill(child, signal.SIGKILL)
os.waitpid(child, 0)
sys.exit(0 if got == 8 else 1)
PY
}

options+=(--mca pml ob1)
if [[ -n $hosts && $hosts == *,* ]]; then
  transport="shared memory and TCP"
  options+=(--host "$hosts" --mca btl self,vader,tcp)
else
  transport="shared memory"
  options+=(--mca btl self,vader)
fi
if ((ranks > 1)) && ! may_trace; then
  transport+=", no single copy"
  options+=(--mca btl_vader_single_copy_mechanism none)
fi

export METATTN_THREADS=$threads
for name in $(compgen -e METATTN_); do options+=(-x "$name"); done

scratch=
if [[ -z $pid_file ]]; then
  scratch=$(mktemp -d "${TMPDIR:-/tmp}/metattn-launch.XXXXXX") || exit 1
  pid_file=$scratch/rank0.pid
fi
# Each rank is exec'ed by a shell that notes the process id of rank 0, so any program can be signalled.
note_pid='if [ "${OMPI_COMM_WORLD_RANK:-0}" = 0 ]; then echo $$ >"$0.new" && mv -f "$0.new" "$0"; fi; exec "$@"'
command=(mpirun "${options[@]}" sh -c "$note_pid" "$pid_file" "$@")

echo "launch: $ranks rank(s) x $threads thread(s), $local_ranks here; binding: $binding; transport: $transport" >&2
if $dry_run; then
  printf '%q ' "${command[@]}"
  echo
  [[ -z $scratch ]] || rm -rf "$scratch"
  exit 0
fi
rm -f "$pid_file"

mpirun_pid= signals=0 aborter=
on_signal() {
  signals=$((signals + 1))
  local rank0=
  [[ -s $pid_file ]] && read -r rank0 <"$pid_file"
  if [[ -z $rank0 ]]; then
    kill -TERM "$mpirun_pid" 2>/dev/null  # still starting: there is nothing to drain
  elif ((signals <= 2)); then
    kill -TERM "$rank0" 2>/dev/null
    if ((signals == 2)); then
      (sleep 5 && kill -TERM "$mpirun_pid") 2>/dev/null &
      aborter=$!
    fi
  else
    kill -TERM "$mpirun_pid" 2>/dev/null
  fi
}

# A process group of its own keeps the terminal's Ctrl-C from mpirun, which would abort; if this script is killed,
# the kernel tells mpirun.
set -m
tie=()
if command -v setpriv >/dev/null; then tie=(setpriv --pdeathsig TERM); fi
if [[ -t 0 ]]; then
  "${tie[@]}" "${command[@]}" </dev/null &
else
  "${tie[@]}" "${command[@]}" <&0 &
fi
mpirun_pid=$!
trap on_signal TERM INT

while :; do
  wait "$mpirun_pid"
  code=$?
  kill -0 "$mpirun_pid" 2>/dev/null || break  # wait also returns when a signal was handled
done
if ((code > 128 && signals > 0)); then  # perhaps that of the interrupted wait, not mpirun's
  wait "$mpirun_pid" 2>/dev/null
  again=$?
  ((again == 127)) || code=$again
fi

[[ -z $aborter ]] || kill "$aborter" 2>/dev/null
rm -f "$pid_file"
[[ -z $scratch ]] || rm -rf "$scratch"
exit "$code"
