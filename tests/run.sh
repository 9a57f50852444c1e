#!/usr/bin/env bash
# Builds and runs every test. Installs what is missing (as root), needs the network only for that.
#
#   tests/run.sh          everything: release tests with the real model, sanitizers, fuzzing, clang-tidy, end to end
#   tests/run.sh --fast   release tests without the real model, lint, deploy scripts (minutes)
#
# Goes on after a failing stage and ends with the runners' own summary lines. A skip that nothing explains
# (tests/skips.py) is a failure. METATTN_CACHE and METATTN_SHARED_DATA are honoured.
set -uo pipefail
cd "$(dirname "$0")/.."
exec </dev/null

fast=false
case ${1:-} in
  "") ;;
  --fast) fast=true ;;
  *) echo "usage: tests/run.sh [--fast]" >&2; exit 2 ;;
esac

results=$PWD/build/results
rm -rf "$results"
mkdir -p "$results"
jobs=$(nproc)

# stage NAME COMMAND...: runs it, notes how long it took and whether it failed (files, for those that run beside others).
stage() {
  local name=$1 begin=$SECONDS
  shift
  echo "=== $name"
  if "$@"; then
    echo "=== $name: ok, $((SECONDS - begin)) s"
  else
    echo "=== $name: FAILED, $((SECONDS - begin)) s"
    echo "$name" >>"$results/failed"
    return 1
  fi
}

# beside NAME COMMAND...: a stage that takes only what those that follow leave idle; `joined` prints its output.
beside() {
  {
    chrt --idle --pid 0 "$BASHPID"
    stage "$@"
  } >"$results/beside-$1.out" 2>&1 &
}

joined() {
  wait
  cat "$results"/beside-*.out
}

# The last line of output that looks like a runner's summary, remembered for the end.
summarised() {
  local name=$1 pattern=$2 log=$results/$1.log code
  shift 2
  "$@" 2>&1 | tee "$log"
  code=${PIPESTATUS[0]}
  echo "$name: $(grep -E "$pattern" "$log" | tail -n 1)" >>"$results/summaries"
  return "$code"
}

run_ctest() {
  local preset=$1
  shift
  summarised "ctest-$preset" 'tests passed|No tests were found' "${personality[@]}" \
    ctest --preset "$preset" -j "$jobs" --timeout 300 --no-tests=error \
    --output-junit "$results/ctest-$preset.xml" "$@"
}

run_pytest() {
  local name=$1
  shift
  summarised "pytest-$name" '=+ .*(passed|failed|error|no tests ran)' \
    "${pytest_python:-build/venv/bin/python}" -m pytest -ra --junit-xml="$results/pytest-$name.xml" -o junit_family=xunit2 "$@"
}

run_calibration_pytest() {
  local pytest_python=build/venv-calibration/bin/python
  run_pytest calibration tests/calibration
}

# Whole models take most of a sanitizer's time: they run on the machine's best kernels and on more than one rank; the
# other kernels have tests of their own.
model_again='^Backends/(Paper|Routed)Model\..*/(ref|cpu_avx2)( |$)|/ranks1_threads1_|^Levels/EveryIsa'
model_again+='|^Ranks/EveryRankCount.*/ref_|^Places/Deterministic.Answers(AreTheSameAfterPreemption|DoNotDependOnTheBatch)'
# ThreadSanitizer runs what has label threads; cases of a single thread are left out, and slow ones whose threads
# do what those of others do. (CTest's expressions have room for nine groups; with more nothing is left out.)
one_thread='^Backends/.*/(ref|cpu_avx2)( |$)|/ranks1_threads1_|^Models/EveryKind.*_ref'
one_thread+='|AStepOfFreshStates'
one_thread+='|^Backends/(Routed|Paper)Model.(Forced|Every|Chunks|Company|IsCausal|OneController|Projections|ASlot|AllTheWeight|Eta|ALog|Elu)'

# configure_and_build PRESET [TARGET...]
configure_and_build() {
  local preset=$1
  shift
  cmake --preset "$preset" >"$results/configure-$preset.log" 2>&1 ||
    { cat "$results/configure-$preset.log"; return 1; }
  cmake --build --preset "$preset" -j "$jobs" --target "${@:-all}"
}

# python_environment FOLDER REQUIREMENTS PYTHON [OPTION...]
python_environment() {
  local folder=$1 requirements=$2
  shift 2
  cmp -s "$requirements" "$folder/requirements.txt" && return 0
  rm -rf "$folder"
  "$1" -m venv "${@:2}" "$folder" &&
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --no-input -r "$requirements" &&
    cp "$requirements" "$folder/requirements.txt"
}

# The calibration's tests run on Debian's PyTorch, which only Debian's Python sees.
calibration_environment() {
  python_environment build/venv-calibration tests/calibration/requirements.txt /usr/bin/python3 --system-site-packages
}

fetch_model() {
  METATTN_TEST_MODEL=$(deploy/fetch-model.sh) || return 1
  export METATTN_TEST_MODEL
}

# ThreadSanitizer of g++ 12 cannot place its shadow memory where addresses are randomised over 32 bits.
personality=()
if [[ $(cat /proc/sys/vm/mmap_rnd_bits 2>/dev/null || echo 28) -gt 28 ]] && setarch -R true 2>/dev/null; then
  personality=(setarch -R)
fi
export ASAN_OPTIONS=${ASAN_OPTIONS:-detect_stack_use_after_return=1:strict_string_checks=1}
export UBSAN_OPTIONS=${UBSAN_OPTIONS:-print_stacktrace=1}
export TSAN_OPTIONS=${TSAN_OPTIONS:-second_deadlock_stack=1:suppressions=$PWD/tests/tsan.supp}

stage dependencies deploy/install-deps.sh --test || exit 1
stage python-environment python_environment build/venv tests/requirements.txt python3 || exit 1
stage calibration-environment calibration_environment || exit 1
if $fast; then
  cached=${METATTN_CACHE:-$HOME/.cache/metattn}/SmolLM2-135M-Instruct.Q4_1.gguf
  [[ -n ${METATTN_TEST_MODEL:-} || ! -f $cached ]] || export METATTN_TEST_MODEL=$cached
else
  [[ -n ${METATTN_TEST_MODEL:-} ]] || stage model fetch_model || exit 1
fi

stage build-release configure_and_build release || exit 1
if $fast; then
  stage ctest-release run_ctest release -L 'fast|lint'
  stage pytest-deploy run_pytest deploy tests/deploy
else
  beside pytest-calibration run_calibration_pytest
  beside clang-tidy summarised clang-tidy 'files are clean|error:' tests/lint/tidy.sh build/release
  beside nvcc summarised nvcc '^nvcc:' tests/lint/nvcc.sh
  stage ctest-release run_ctest release
  stage pytest-deploy run_pytest deploy tests/deploy
  stage pytest-e2e run_pytest e2e tests/e2e
  stage build-asan configure_and_build asan fast_tests && stage ctest-asan run_ctest asan -L fast -E "$model_again"
  stage build-tsan configure_and_build tsan threaded_tests &&
    stage ctest-tsan run_ctest tsan -L threads -E "$one_thread|$model_again"
  stage build-fuzz configure_and_build fuzz tests/fuzz/all && stage ctest-fuzz run_ctest fuzz -L fuzz
  joined
fi
stage skips summarised skips 'skipped' python3 tests/skips.py "$results"

echo
echo "=== summary after $SECONDS s"
cat "$results/summaries"
if [[ -s $results/failed ]]; then
  python3 tests/failures.py "$results"
  echo "FAILED: $(tr '\n' ' ' <"$results/failed")"
  exit 1
fi
echo "all stages passed"
