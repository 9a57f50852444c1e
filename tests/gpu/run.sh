#!/usr/bin/env bash
# Builds the kernel tests and the kernel benchmark for the GPU of this machine and runs them: tests, tests
# under compute-sanitizer where there is one, comparison with ref, then times. See README.md beside it.
#
#   tests/gpu/run.sh                        all of it; exit 77 and one line where something it needs is missing
#   tests/gpu/run.sh --build-only ARCH...   programs for sm_ARCH (80 90 ...), without a GPU
#   tests/gpu/run.sh --run DIR              programs of an earlier build, without a toolkit
#
# Environment: NVCC, CXX, JOBS (compilations at once), METATTN_GPU_BUILD (default build/gpu).
set -uo pipefail
cd "$(dirname "$0")/../.."

build=${METATTN_GPU_BUILD:-build/gpu}
nvcc=${NVCC:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)}
cxx=${CXX:-g++}
jobs=${JOBS:-$(nproc)}

skip() {
  echo "gpu: skipped, $*"
  exit 77
}

# Everything that the build takes from the system, in one look.
require_toolchain() {
  command -v "$nvcc" >/dev/null || skip "no CUDA toolkit here (no nvcc; set NVCC)"
  command -v "$cxx" >/dev/null || skip "no C++ compiler $cxx (set CXX)"
  local header missing=()
  for header in gtest/gtest.h gmock/gmock.h absl/status/statusor.h absl/strings/str_format.h; do
    echo "#include <$header>" | "$cxx" -std=c++20 -E -x c++ - >/dev/null 2>&1 || missing+=("$header")
  done
  ((${#missing[@]} == 0)) || skip "GoogleTest and Abseil are needed, $cxx does not find: ${missing[*]} (see README.md)"
  # Static archives where there are any: the programs then run on machines that have only a driver.
  gtest=("$(library gtest)" "$(library gmock)")
  absl=()
  local status
  status=$("$cxx" -print-file-name=libabsl_status.a)
  [[ $status == /* ]] || status=$("$cxx" -print-file-name=libabsl_status.so)
  [[ $status == /* ]] && absl=("${status%status.*}"*."${status##*.}")
  ((${#absl[@]} > 0)) && [[ ${gtest[0]} == /* && ${gtest[1]} == /* ]] ||
    skip "the libraries of GoogleTest or Abseil are not where $cxx looks (see README.md)"
}

library() {
  local found
  found=$("$cxx" -print-file-name="lib$1.a")
  [[ $found == /* ]] || found=$("$cxx" -print-file-name="lib$1.so")
  echo "$found"
}

# compile SOURCE: its object in $objects, unless it is newer than the source and every header.
compile() {
  local object=$objects/${1//\//_}.o
  [[ $object -nt $1 && $object -nt $newest_header ]] && return
  case $1 in
    *.cu) "$nvcc" -ccbin "$cxx" -std=c++20 -O3 -lineinfo -arch="sm_$architecture" -I. -c "$1" -o "$object" ;;
    *) "$cxx" -std=c++20 -O2 -Wall -Wextra -Wno-missing-field-initializers -I. -isystem "$cuda/include" -c "$1" -o "$object" ;;
  esac || { echo "gpu: error: $1 does not compile" >&2; return 255; }
}

# link PROGRAM LIBRARY SOURCE...: from the objects of the sources.
link() {
  local program=$build/sm_$architecture/$1 main=$2
  shift 2
  local of=("${@//\//_}")
  of=("${of[@]/#/$objects/}")
  "$nvcc" -ccbin "$cxx" -arch="sm_$architecture" -o "$program" "${of[@]/%/.o}" ${main:+"$main"} \
    -Xlinker --start-group "${gtest[@]}" "${absl[@]}" -Xlinker --end-group -lcublasLt -lpthread
}

# build_for ARCHITECTURE: kernel_tests and kernel_bench in $build/sm_ARCHITECTURE, objects below it.
build_for() {
  architecture=$1 objects=$build/sm_$1/objects
  cuda=$(dirname "$(dirname "$(realpath "$(command -v "$nvcc")")")")
  mkdir -p "$objects" || return 1
  newest_header=$(find kernels tests/kernels tests/gpu -name '*.h' -printf '%T@ %p\n' | sort -n | tail -n 1 | cut -d' ' -f2-)
  local library=(kernels/check_args.cc kernels/host_device.cc kernels/ref/*.cc kernels/cuda/*.c[cu]
    tests/kernels/*support.cc tests/gpu/factory.cc)
  local tests=() bench=(tests/gpu/kernel_bench.cc tests/gpu/bench_cases.cc tests/gpu/peaks.cc) source
  for source in tests/kernels/*_test.cc; do
    case $source in
      */attention_plan_test.cc | */isa_test.cc | */thread_pool_test.cc) ;; # of the cpu backend
      */cuda_*_test.cc) ;;                                                 # of the emulation's counters and limits
      *) tests+=("$source") ;;
    esac
  done
  echo "gpu: building for sm_$architecture in $build/sm_$architecture"
  export -f compile
  export nvcc cxx cuda architecture objects newest_header
  printf '%s\n' "${library[@]}" "${tests[@]}" "${bench[@]}" |
    xargs -P "$jobs" -I{} bash -c 'compile "$1"' _ {} || return 1
  link kernel_tests "$(library gtest_main)" "${tests[@]}" "${library[@]}" && link kernel_bench "" "${bench[@]}" "${library[@]}"
}

# run_programs DIR: comparison, tests, sanitizers, times. What is measured goes into DIR/report.txt as well.
run_programs() {
  local failed=() tool sanitizer
  "$1/kernel_bench" --verify
  case $? in
    0) ;;
    77) exit 77 ;; # it said why
    *) failed+=("kernel_bench --verify") ;;
  esac
  sanitizer=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
  "$1/kernel_tests" --gtest_filter='Backends/*' --gtest_brief=1 || failed+=(kernel_tests)
  if [[ -x $sanitizer ]]; then
    for tool in memcheck racecheck synccheck; do
      echo "gpu: compute-sanitizer $tool"
      "$sanitizer" --tool "$tool" --error-exitcode 1 "$1/kernel_tests" --gtest_filter='Backends/*' --gtest_brief=1 ||
        failed+=("$tool")
    done
  else
    echo "gpu: no compute-sanitizer here: not run under it"
  fi
  if ((${#failed[@]} == 0)); then
    {
      echo "commit $(git rev-parse HEAD 2>/dev/null || echo unknown), $(date -u +%F), command: tests/gpu/run.sh"
      "$1/kernel_bench"
    } | tee "$1/report.txt" || failed+=(kernel_bench)
  else
    echo "gpu: nothing is timed: tests failed"
  fi
  if ((${#failed[@]} > 0)); then
    echo "gpu: FAILED: ${failed[*]}"
    return 1
  fi
  echo "gpu: all passed; figures in $1/report.txt"
}

case ${1:-} in
  "")
    require_toolchain
    mkdir -p "$build"
    "$nvcc" -ccbin "$cxx" -x c++ tests/gpu/probe.cc -o "$build/probe" || exit 1
    card=$("$build/probe") || skip "no GPU here: $card"
    echo "gpu: sm_$card"
    build_for "${card%% *}" && run_programs "$build/sm_${card%% *}"
    ;;
  --build-only)
    shift
    (($# > 0)) || { echo "usage: tests/gpu/run.sh --build-only ARCH..." >&2; exit 2; }
    require_toolchain
    for architecture in "$@"; do build_for "$architecture" || exit 1; done
    ;;
  --run)
    [[ -x ${2:-}/kernel_tests ]] || { echo "usage: tests/gpu/run.sh --run DIR (of --build-only)" >&2; exit 2; }
    run_programs "$2"
    ;;
  *)
    echo "usage: tests/gpu/run.sh [--build-only ARCH... | --run DIR]" >&2
    exit 2
    ;;
esac
