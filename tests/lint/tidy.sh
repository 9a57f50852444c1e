#!/usr/bin/env bash
# clang-tidy with .clang-tidy over engine, kernels and parallel: tests/lint/tidy.sh BUILD_FOLDER
# Takes minutes, so only the full tier of tests/run.sh calls it. Exit 77 where clang-tidy 14 is not installed.
set -euo pipefail
cd "$(dirname "$0")/../.."
build=${1:?usage: tests/lint/tidy.sh BUILD_FOLDER}
if ! command -v clang-tidy-14 >/dev/null; then
  echo "clang-tidy-14 is not installed (deploy/install-deps.sh --test)"
  exit 77
fi
[[ -f $build/compile_commands.json ]] || { echo "$build has no compile_commands.json"; exit 1; }

# What is in the compilation database (a source may be compiled several times, once per instruction set).
mapfile -t sources < <(python3 - "$build/compile_commands.json" "$PWD" <<'PY'
import json, os, sys
root = sys.argv[2] + os.sep
files = {os.path.realpath(os.path.join(e["directory"], e["file"])) for e in json.load(open(sys.argv[1]))}
files = (f[len(root):] for f in files if f.startswith(root))
print("\n".join(sorted(f for f in files if f.split(os.sep)[0] in ("engine", "kernels", "parallel"))))
PY
)
((${#sources[@]} > 0)) || { echo "nothing to check in $build"; exit 1; }
printf '%s\0' "${sources[@]}" |
  xargs -0 -n 1 -P "$(nproc)" clang-tidy-14 --quiet -p "$build" \
    --extra-arg=-Wno-unknown-warning-option --extra-arg=-Wno-ignored-optimization-argument
echo "clang-tidy: ${#sources[@]} files are clean"
