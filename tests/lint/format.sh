#!/usr/bin/env bash
# Compares the C++ sources with clang-format 14 (versions differ, so it is pinned); --fix rewrites them.
# Exit 77, a skip for ctest, where that version is not installed.
set -euo pipefail
cd "$(dirname "$0")/../.."
if ! command -v clang-format-14 >/dev/null; then
  echo "clang-format-14 is not installed (deploy/install-deps.sh --test)"
  exit 77
fi
mode=(--dry-run --Werror)
[[ ${1:-} != --fix ]] || mode=(-i)
git ls-files -z --cached --others --exclude-standard '*.h' '*.cc' '*.cu' '*.cuh' |
  xargs -0 -r sh -c 'for f; do [ ! -f "$f" ] || printf "%s\0" "$f"; done' sh |
  xargs -0 -r clang-format-14 "${mode[@]}"
