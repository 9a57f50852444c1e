"""tests/failures.py must name what failed in the files of both runners, and nothing else."""

import contextlib
import io
import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import failures

CTEST = """<testsuite><testcase name="Good" time="1" status="run"><system-out>fine</system-out></testcase>
<testcase name="Slow" time="300.04" status="fail"><failure message=""/><system-out></system-out></testcase>
<testcase name="Wrong" time="1" status="fail"><failure message=""/><system-out>first
last</system-out></testcase></testsuite>"""
PYTEST = """<testsuites><testsuite><testcase classname="e2e" name="test_good" time="1"/>
<testcase classname="e2e" name="test_x" time="1"><failure message="assert 1 == 2">where</failure></testcase>
<testcase classname="e2e" name="test_y" time="1"><error message="failed on setup"/></testcase></testsuite></testsuites>"""


class Failures(unittest.TestCase):
    def output_of(self, **files):
        with tempfile.TemporaryDirectory() as folder:
            for name, text in files.items():
                pathlib.Path(folder, name + ".xml").write_text(text)
            with contextlib.redirect_stdout(io.StringIO()) as out:
                failures.main(folder)
        return out.getvalue().splitlines()

    def test_each_failure_has_its_name_time_and_output(self):
        self.assertEqual(self.output_of(ctest=CTEST, pytest=PYTEST), [
            "FAILED ctest: Slow after 300.0 s",
            "FAILED ctest: Wrong after 1.0 s", "    first", "    last",
            "FAILED pytest: test_x after 1.0 s", "    assert 1 == 2", "    where",
            "FAILED pytest: test_y after 1.0 s", "    failed on setup"])

    def test_of_many_the_later_are_only_named_and_of_long_output_the_end_is_shown(self):
        case = '<testcase name="T{}" time="1" status="fail"><system-out>{}</system-out></testcase>'
        long = "\n".join(f"line {i}" for i in range(100))
        out = self.output_of(ctest="<testsuite>" + "".join(case.format(i, long) for i in range(20)) + "</testsuite>")
        self.assertEqual(sum(line.startswith("FAILED") for line in out), 20)
        self.assertEqual(out.count("    line 99"), failures.SHOWN)
        self.assertNotIn("    line 50", out)


if __name__ == "__main__":
    unittest.main()
