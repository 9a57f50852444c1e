#!/usr/bin/env bash
# Compiles every CUDA kernel with nvcc for each architecture; a warning, a spill or local memory is an
# error, and so is what kernels/cuda/budget.toml does not allow: registers, static shared memory, a kernel
# without a budget, a missing instruction. Prints each kernel's figures and occupancy. Needs a CUDA
# toolkit, no GPU; without one it says so and succeeds.
#
#   tests/lint/nvcc.sh [--update] [ARCHITECTURE...]     default: 80 90 100 120
#
# --update writes the figures of this compilation into the budget.
set -uo pipefail
cd "$(dirname "$0")/../.."

update=()
if [[ ${1:-} == --update ]]; then
  update=(--update)
  shift
fi
nvcc=${NVCC:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)}
if [[ ! -x $nvcc ]]; then
  echo "nvcc: skipped, no CUDA toolkit here"
  exit 0
fi
architectures=("$@")
((${#architectures[@]} > 0)) || architectures=(80 90 100 120)
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

# check SOURCE ARCHITECTURE
check() {
  local kept=$out/$(basename "$1" .cu).$2
  mkdir "$kept"
  if ! "$nvcc" -std=c++20 -O3 -I. -c "$1" -o "$kept/o" -gencode "arch=compute_$2,code=sm_$2" -keep -keep-dir "$kept" \
    -Werror=all-warnings -Xcompiler=-Wall,-Wextra -Xptxas=-v,-warn-spills,-warn-lmem-usage,-Werror >"$kept/log" 2>&1; then
    grep -vE 'ptxas info|Function properties|bytes stack frame' "$kept/log" >&2
    echo "nvcc: $1 fails for sm_$2" >&2
    return 1
  fi
}
export -f check
export nvcc out

if printf '%s\n' kernels/cuda/*.cu | while read -r source; do
  for architecture in "${architectures[@]}"; do echo "$source $architecture"; done
done | xargs -P "$(nproc)" -L 1 bash -c 'check "$0" "$1"' &&
  python3 tests/lint/kernel_budget.py "${update[@]}" kernels/cuda/budget.toml "$out"; then
  echo "nvcc: kernels compile for ${architectures[*]} without warnings or spills, within their budget"
else
  echo "nvcc: error: see above"
  exit 1
fi
