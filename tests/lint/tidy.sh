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

# Most of the time goes into headers of the libraries, so files are checked several at a time: units that include up
# to eight files of the same flags, as the sanitizer builds have them. A file that is compiled for several instruction
# sets is checked for the last of them only, which has the most code.
units=$(mktemp -d)
trap 'rm -rf "$units"' EXIT
python3 - "$build/compile_commands.json" "$PWD" "$units" <<'PY'
import collections, json, os, shlex, sys

root, units = sys.argv[2] + os.sep, sys.argv[3]
folders = ("engine", "kernels", "parallel")


def sources(entry):
    """The file, or those of a unit that CMake made."""
    path = os.path.realpath(os.path.join(entry["directory"], entry["file"]))
    if not os.path.basename(path).startswith("unity_"):
        return [path]
    return [os.path.realpath(line.split('"')[1]) for line in open(path) if line.startswith("#include")]


last = {}
for entry in json.load(open(sys.argv[1])):
    for path in sources(entry):
        if path.startswith(root) and path[len(root):].split(os.sep)[0] in folders:
            last[path] = entry
there = {os.path.join(at, name) for folder in folders for at, _, names in os.walk(root + folder) for name in names
         if name.endswith(".cc") and "cuda" not in at and "nccl" not in name}
if there - last.keys():
    sys.exit(f"not compiled, so not checked: {sorted(there - last.keys())}")
groups = collections.defaultdict(list)
for path, entry in sorted(last.items()):
    words = entry.get("arguments") or shlex.split(entry["command"])
    # What g++ has precompiled clang cannot read, so files are checked with what they include themselves.
    skipped = {"-c", "-o", entry["file"], "-include"}
    kept = [w for i, w in enumerate(words) if w not in skipped and words[i - 1] not in ("-o", "-include")]
    groups[entry["directory"], tuple(kept)].append(path)
database = []
for (directory, words), paths in groups.items():
    for begin in range(0, len(paths), 8):
        unit = os.path.join(units, f"unit{len(database)}.cc")
        with open(unit, "w") as file:
            file.writelines(f'#include "{path}"\n' for path in paths[begin:begin + 8])
        database.append({"directory": directory, "file": unit, "arguments": [*words, "-c", unit]})
json.dump(database, open(os.path.join(units, "compile_commands.json"), "w"))
print(len(last), file=open(os.path.join(units, "count"), "w"))
PY
count=$(<"$units/count")
((count > 0)) || { echo "nothing to check in $build"; exit 1; }

tidy=(clang-tidy-14 --quiet --config-file=.clang-tidy --checks=-bugprone-suspicious-include
  --extra-arg=-Wno-unknown-warning-option --extra-arg=-Wno-ignored-optimization-argument)
# A violation must be found where the others would be: in a file that a unit includes.
mkdir "$units/engine"
echo 'struct Seeded { Seeded(int) {} };' >"$units/engine/seeded.cc"
echo "#include \"$units/engine/seeded.cc\"" >"$units/seeded.cc"
if found=$("${tidy[@]}" "$units/seeded.cc" -- 2>&1) || [[ $found != *google-explicit-constructor* ]]; then
  echo "clang-tidy does not find a seeded violation: $found"
  exit 1
fi
find "$units" -maxdepth 1 -name 'unit*.cc' -print0 | xargs -0 -n 1 -P "$(nproc)" "${tidy[@]}" -p "$units"
echo "clang-tidy: $count files are clean"
