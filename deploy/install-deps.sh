#!/usr/bin/env bash
# Installs the Debian packages that metattn needs to build and run; with --test also those of the tests.
# Does nothing, and needs no network, when everything is there. Without root it prints the one line an
# administrator has to run and exits 1.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: deploy/install-deps.sh [--test] [--list]
  --test   also what tests/run.sh needs (clang, clang-format, clang-tidy, ...)
  --list   print the packages, one a line, and do nothing
EOF
}

# Building and running.
packages=(
  g++ cmake ninja-build pkg-config git ca-certificates mold
  libgrpc++-dev libprotobuf-dev protobuf-compiler protobuf-compiler-grpc libabsl-dev
  libopenmpi-dev openmpi-bin
  prometheus-cpp-dev libsqlite3-dev libspdlog-dev libcli11-dev nlohmann-json3-dev
  libpcre2-dev libutf8proc-dev libgtest-dev libgmock-dev
  python3 python3-venv python3-pip
)
test_packages=(
  ccache clang-14 libclang-rt-14-dev clang-format-14 clang-tidy-14 procps python3-torch libopenblas0-pthread python3-matplotlib
)

list_only=false
while (($#)); do
  case $1 in
    --test) packages+=("${test_packages[@]}") ;;
    --list) list_only=true ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
  esac
  shift
done

if $list_only; then
  printf '%s\n' "${packages[@]}"
  exit 0
fi

if ! command -v dpkg-query >/dev/null; then
  echo "install-deps: this is not a Debian system; install the equivalents of:" >&2
  printf '  %s\n' "${packages[*]}" >&2
  exit 1
fi

missing=()
for package in "${packages[@]}"; do
  state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
  [[ $state == installed ]] || missing+=("$package")
done

if ((${#missing[@]} == 0)); then
  echo "install-deps: all ${#packages[@]} packages are installed" >&2
  exit 0
fi

if ((EUID != 0)); then
  echo "install-deps: ${#missing[@]} packages are missing and this user is not root. Ask an administrator to run:" >&2
  echo "  apt-get update && apt-get install -y --no-install-recommends ${missing[*]}" >&2
  exit 1
fi

echo "install-deps: installing ${missing[*]}" >&2
export DEBIAN_FRONTEND=noninteractive
apt-get update -q >&2
apt-get install -q -y --no-install-recommends "${missing[@]}" >&2
