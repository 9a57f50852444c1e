#!/usr/bin/env bash
# Compiles every CUDA kernel with nvcc for each architecture; a warning, a spill or local memory is an
# error. Prints registers and shared memory of each kernel. Needs a CUDA toolkit, no GPU; without one it
# says so and succeeds.
#
#   tests/lint/nvcc.sh [ARCHITECTURE...]     default: 80 90 100 120
set -uo pipefail
cd "$(dirname "$0")/../.."

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
  local log=$out/$(basename "$1").$2
  if ! "$nvcc" -std=c++20 -O3 -I. -c "$1" -o "$log.o" -gencode "arch=compute_$2,code=sm_$2" \
    -Werror=all-warnings -Xcompiler=-Wall,-Wextra -Xptxas=-v,-warn-spills,-warn-lmem-usage,-Werror >"$log" 2>&1; then
    grep -vE 'ptxas info|Function properties|bytes stack frame' "$log" >&2
    echo "nvcc: $1 fails for sm_$2" >&2
    return 1
  fi
  grep -oE 'Used [0-9]+ registers.*' "$log" | sed "s|^|sm_$2 $(basename "$1"): |"
}
export -f check
export nvcc out

if printf '%s\n' kernels/cuda/*.cu | while read -r source; do
  for architecture in "${architectures[@]}"; do echo "$source $architecture"; done
done | xargs -P "$(nproc)" -L 1 bash -c 'check "$0" "$1"'; then
  echo "nvcc: kernels compile for ${architectures[*]} without warnings or spills"
else
  echo "nvcc: error: see above"
  exit 1
fi
