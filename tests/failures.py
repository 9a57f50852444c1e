#!/usr/bin/env python3
"""Names the failed tests of one run and shows the end of what each printed: tests/failures.py RESULTS_FOLDER

Reads the JUnit files that ctest and pytest wrote. Whoever sees only the last lines of a long log finds there what failed.
"""

import pathlib
import sys
import xml.etree.ElementTree

SHOWN = 5  # tests with their output; of others the name
LINES = 15


def failed(path):
    """(name, output) of each failed test of one JUnit file."""
    for case in xml.etree.ElementTree.parse(path).iter("testcase"):
        marks = [m for m in (case.find("failure"), case.find("error")) if m is not None]
        if marks or case.get("status") == "fail":
            texts = [case.findtext("system-out") or ""]
            for mark in marks:
                texts += [mark.get("message") or "", mark.text or ""]
            name = f"{path.stem}: {case.get('name')} after {float(case.get('time') or 0):.1f} s"
            yield name, "\n".join(t.strip() for t in texts if t.strip())


def main(folder):
    shown = 0
    for path in sorted(pathlib.Path(folder).glob("*.xml")):
        for name, output in failed(path):
            print(f"FAILED {name}")
            if output and shown < SHOWN:
                print("\n".join("    " + line for line in output.splitlines()[-LINES:]))
            shown += 1


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
