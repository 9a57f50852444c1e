#!/usr/bin/env python3
"""Counts the skipped tests of one run and fails when nothing explains one: tests/skips.py RESULTS_FOLDER

Reads the JUnit files that ctest and pytest wrote. A skip is explained by a line of EXPLAINED whose condition holds on
this machine and whose pattern matches the test's name or its message.
"""

import os
import pathlib
import re
import shutil
import sys
import xml.etree.ElementTree

ROOT = pathlib.Path(__file__).resolve().parents[1]


def shared_data():
    return pathlib.Path(os.environ.get("METATTN_SHARED_DATA") or ROOT.parent / "shared" / "data")


def cpu_flags():
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return set()
    match = re.search(r"^flags\s*:(.*)$", text, re.M)
    return set(match.group(1).split()) if match else set()


CONDITIONS = {
    "no shared data": lambda: not shared_data().is_dir(),
    "no model": lambda: not os.environ.get("METATTN_TEST_MODEL"),
    "one core": lambda: len(os.sched_getaffinity(0)) < 2,
    "not root": lambda: os.geteuid() != 0,
    "no avx512": lambda: "avx512f" not in cpu_flags(),
    "no avx2": lambda: "avx2" not in cpu_flags(),
    "no amx": lambda: "amx_tile" not in cpu_flags(),
    "no toolkit": lambda: not shutil.which("nvcc") and not pathlib.Path("/usr/local/cuda").exists(),
    "no protection keys": lambda: "ospke" not in cpu_flags(),
}

# (condition, pattern over "name: message")
EXPLAINED = [
    ("no shared data", r"(?i)shared.data"),
    ("no model", r"(?i)model"),
    ("one core", r"(?i)two cores"),
    ("not root", r"(?i)needs root"),
    ("no avx512", r"(?i)avx-?512"),
    ("no avx2", r"(?i)avx-?2"),
    ("no amx", r"(?i)\bamx"),
    ("no toolkit", r"CUDA toolkit"),
    ("no protection keys", r"memory protection keys"),
]


def skipped(path):
    """(name, message) of each skipped test of one JUnit file."""
    for case in xml.etree.ElementTree.parse(path).iter("testcase"):
        mark = case.find("skipped")
        if mark is None and case.get("status") not in ("notrun", "disabled"):
            continue
        texts = [mark.get("message") or "" if mark is not None else "", mark.text or "" if mark is not None else "",
                 case.findtext("system-out") or ""]
        yield f"{case.get('classname', '')}.{case.get('name')}", " ".join(texts)


def main(folder):
    files = sorted(pathlib.Path(folder).glob("*.xml"))
    if not files:
        print(f"no JUnit files in {folder}")
        return 1
    holding = {name for name, test in CONDITIONS.items() if test()}
    total = unexplained = 0
    for path in files:
        for name, message in skipped(path):
            total += 1
            reasons = [c for c, pattern in EXPLAINED if c in holding and re.search(pattern, f"{name}: {message}")]
            if not reasons:
                unexplained += 1
                print(f"unexpected skip in {path.name}: {name}: {message.strip()[-300:]}")
    print(f"{total} skipped, {unexplained} of them unexpected (here: {', '.join(sorted(holding)) or 'nothing missing'})")
    return 1 if unexplained else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1]))
