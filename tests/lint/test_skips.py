"""tests/skips.py must count skips of both runners and stop at one that nothing explains."""

import contextlib
import io
import pathlib
import sys
import tempfile
import unittest
import unittest.mock

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import skips

CTEST = """<testsuite><testcase name="Real.Text" classname="Real.Text" status="notrun">
<skipped message="SKIP_REGULAR_EXPRESSION_MATCHED"/><system-out>{}</system-out></testcase>
<testcase name="Other" classname="Other" status="run"/></testsuite>"""
PYTEST = """<testsuites><testsuite><testcase classname="tests.e2e" name="test_x"><skipped type="pytest.skip"
message="{}">why</skipped></testcase><testcase classname="tests.e2e" name="test_y"/></testsuite></testsuites>"""


class Skips(unittest.TestCase):
    def run_on(self, holding, **files):
        with tempfile.TemporaryDirectory() as folder:
            for name, text in files.items():
                pathlib.Path(folder, name + ".xml").write_text(text)
            conditions = {name: (lambda held=name in holding: held) for name in skips.CONDITIONS}
            with unittest.mock.patch.object(skips, "CONDITIONS", conditions), \
                    contextlib.redirect_stdout(io.StringIO()) as out:
                return skips.main(folder), out.getvalue()

    def test_a_skip_with_a_reason_that_holds_passes(self):
        code, out = self.run_on({"no model"}, ctest=CTEST.format("model is absent"), pytest=PYTEST.format("no model"))
        self.assertEqual(code, 0, out)
        self.assertIn("2 skipped, 0 of them unexpected", out)

    def test_a_skip_whose_reason_does_not_hold_fails(self):
        for files in ({"ctest": CTEST.format("model is absent")}, {"pytest": PYTEST.format("no model")}):
            code, out = self.run_on(set(), **files)
            self.assertEqual(code, 1)
            self.assertIn("unexpected skip", out)

    def test_another_reason_does_not_explain(self):
        code, _ = self.run_on({"one core"}, pytest=PYTEST.format("no model"))
        self.assertEqual(code, 1)

    def test_no_results_fail(self):
        self.assertEqual(self.run_on(set())[0], 1)


if __name__ == "__main__":
    unittest.main()
