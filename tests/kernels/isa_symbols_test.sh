#!/bin/sh
# isa_symbols_test.sh NM OBJECT...: objects compiled for one instruction set must define no function
# that other code could be linked with. The linker keeps one copy of an inline function; were it a
# copy compiled for AVX-512, machines without it would crash far from any kernel. So every symbol an
# object offers must carry the backend's namespace (metattn::cpu::<level>), be it in the types that a
# template of all levels is made for.
set -eu
nm=$1
shift
[ $# -gt 0 ] || { echo "no objects given"; exit 1; }
bad=0
for object in "$@"; do
  case $object in *.gch) continue ;; esac  # a precompiled header, which CMake counts among the objects
  level=$(printf '%s' "$object" | sed -n 's/.*metattn_cpu_\([a-z0-9_]*\)\.dir.*/\1/p')
  [ -n "$level" ] || { echo "$object: not an object of a level"; exit 1; }
  symbols=$("$nm" --defined-only --demangle "$object")
  # Defined (T, D, B, R, V, W, u ...: global or weak), compiler's own excluded.
  offered=$(printf '%s\n' "$symbols" | sed -n 's/^[0-9a-f]* [A-TV-ZVWu] //p' |
            grep -v "metattn::cpu::${level}::" | grep -v '^DW\.ref\.' || true)
  if [ -n "$offered" ]; then
    echo "$object offers to all:"
    echo "$offered"
    bad=1
  fi
done
exit $bad
