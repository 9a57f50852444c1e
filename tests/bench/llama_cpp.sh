#!/usr/bin/env bash
# metattn against a natively built llama.cpp on the same GGUF file, in one run; prints one JSON object.
#
#   tests/bench/llama_cpp.sh MODEL.gguf [--text FILE] [--threads 2] [--repeats 3]
#
# Works: prefill of 512 tokens, decode at context 0 and at 4,096. llama.cpp runs with flash attention on and off, the
# better of both counts for each work. It is llama-cpp-python, built once from source with clang (g++ 12 miscompiles
# its AMX code) into ${METATTN_CACHE:-~/.cache/metattn}/peers. Before anything is timed both engines must continue a
# prompt with the same greedy text. Run it on an otherwise idle machine.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
build=${METATTN_BUILD:-$root/build/release}
version=0.3.36

model=${1:?usage: tests/bench/llama_cpp.sh MODEL.gguf [--text FILE] [--threads N] [--repeats N]}
shift
text= threads=2 repeats=3
while (($#)); do
  case $1 in
    --text) text=$2 ;;
    --threads) threads=$2 ;;
    --repeats) repeats=$2 ;;
    *) echo "unknown option $1" >&2; exit 2 ;;
  esac
  shift 2
done
[[ -x $build/metattn ]] || { echo "$build/metattn is missing: cmake --preset release && cmake --build --preset release" >&2; exit 1; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

build_peer() {
  local venv=$1 cc cxx found=
  for suffix in -19 -18 -17 -16 -15 "" -14; do
    if command -v "clang++$suffix" >/dev/null; then
      cc=clang$suffix cxx=clang++$suffix found=yes
      break
    fi
  done
  local flags="-DGGML_NATIVE=ON -DGGML_OPENMP=OFF -DLLAVA_BUILD=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_TOOLS=OFF"
  if [[ -z $found ]]; then
    cc=gcc cxx=g++
    flags+=" -DCMAKE_CXX_FLAGS=-mno-amx-tile"
    echo "no clang: building llama.cpp with g++ and without AMX" >&2
  fi
  echo "building llama-cpp-python $version with $cxx (several minutes, once)" >&2
  rm -rf "$venv"
  python3 -m venv "$venv"
  CC=$cc CXX=$cxx CMAKE_ARGS=$flags CMAKE_BUILD_PARALLEL_LEVEL=$(nproc) \
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input --no-cache-dir \
    --no-binary llama-cpp-python "llama-cpp-python==$version" >&2
  "$cxx" --version | sed 1q >"$venv/built-with"
}

peer=${METATTN_CACHE:-$HOME/.cache/metattn}/peers/llama-cpp-python-$version
[[ -f $peer/built-with ]] || build_peer "$peer"

# Real text, long enough that no stretch is used twice; the project's own sources when there is nothing better.
if [[ -z $text ]]; then
  text=${METATTN_SHARED_DATA:-$root/../shared/data}/moby-dick.txt
  if [[ ! -f $text ]]; then
    text=$work/text
    cat "$root"/*/*.md "$root"/*/*.h "$root"/*/*/*.h "$root"/*/*.cc "$root"/*/*/*.cc >"$text"
  fi
fi

ours() { OMP_NUM_THREADS=$threads "$build/metattn" "$@"; }
theirs() { "$peer/bin/python" "$here/llama_cpp_bench.py" --model "$model" --threads "$threads" "$@"; }

# A prompt that leaves no choice: quantised activations flip near ties, and that is not what is checked here.
prompt="a b c d e f g h i j k l m n"
ours generate --model "$model" --threads "$threads" --temperature 0 --max-tokens 12 --json "$prompt" >"$work/ours.greedy"
theirs --greedy 12 --prompt "$prompt" >"$work/theirs.greedy"
"$peer/bin/python" "$here/llama_cpp_report.py" greedy "$work"

for context in 0 4096; do
  decode=128
  ((context == 0)) || decode=64
  common=(--text "$text" --prompt-tokens 512 --decode-tokens "$decode" --context "$context" --repeats "$repeats")
  theirs "${common[@]}" >"$work/theirs.$context"
  ours bench --model "$model" --threads "$threads" "${common[@]}" --sequences 1 --json >"$work/ours.$context"
done
common=(--text "$text" --prompt-tokens 512 --decode-tokens 128 --context 0 --repeats "$repeats")
"$root/deploy/launch.sh" -n "$threads" --threads 1 "$build/metattn" bench --model "$model" --threads 1 \
  "${common[@]}" --sequences 1 --json >"$work/ours.ranks"

"$peer/bin/python" "$here/llama_cpp_report.py" report "$work" "$(cat "$peer/built-with")" "$text"
