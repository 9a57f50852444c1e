#!/bin/sh
# isa_symbols_test.sh NM OBJECT...: objects compiled for one instruction set must define no function
# that other code could be linked with. The linker keeps one copy of an inline function; were it a
# copy compiled for AVX-512, machines without it would crash far from any kernel. So every symbol an
# object offers must carry the backend's namespace (metattn::cpu::<level>, mangled).
set -eu
nm=$1
shift
[ $# -gt 0 ] || { echo "no objects given"; exit 1; }
bad=0
for object in "$@"; do
  level=$(printf '%s' "$object" | sed -n 's/.*metattn_cpu_\([a-z0-9_]*\)\.dir.*/\1/p')
  [ -n "$level" ] || { echo "$object: not an object of a level"; exit 1; }
  mark="7metattn3cpu${#level}${level}"
  # Defined (T, D, B, R, V, W, u ...: global or weak), compiler's own excluded.
  offered=$("$nm" --defined-only "$object" | awk '$2 ~ /^[A-TV-ZVWu]$/ {print $3}' |
            grep -v "$mark" | grep -v '^DW\.ref\.' || true)
  if [ -n "$offered" ]; then
    echo "$object offers to all:"
    echo "$offered"
    bad=1
  fi
done
exit $bad
