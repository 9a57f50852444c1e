"""The budget of CUDA kernels: reading nvcc's output, occupancy, and one finding for each thing that is wrong.

Needs no nvcc. Run by ctest: python3 tests/lint/test_kernel_budget.py"""

import contextlib
import io
import pathlib
import sys
import tempfile
import tomllib
import unittest
import unittest.mock

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import kernel_budget

LOG = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z1aILi8EEvP1X' for 'sm_80'
ptxas info    : Function properties for _Z1aILi8EEvP1X
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 56 registers, used 1 barriers, 16 bytes smem, 552 bytes cmem[0]
ptxas info    : Compiling entry function '_Z1bv' for 'sm_80'
ptxas info    : Used 20 registers, used 0 barriers
"""
PTX = """// Cuda compilation tools, release 13.0, V13.0.88
.target sm_80
.visible .entry _Z1aILi8EEvP1X(
\t.param .u64 _Z1aILi8EEvP1X_param_0
)
{
\t// begin inline asm
\tcp.async.cg.shared.global [%r1], [%rd1], 16, %r2;
\t// end inline asm
{\tldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r3}, [%r4];
\t}
\t@%p1 vote.sync.ballot.b32 \t%r5, %p2, -1;
\t// mma.sync is only a comment here
}
.entry _Z1bv()
{
\twmma.mma.sync.aligned %r1;
}
.func (.param .b32 retval) helper()
{
\tbar.sync \t0;
}
"""
BUDGET = """# Words that stay.
[kernels]
"a<8>" = { threads = 256, dynamic = 8192, needs = ["cp.async.cg", "ldmatrix.sync", "vote.sync.ballot"] }
b = { threads = 128, dynamic = 0 } # and these
"""


class Reading(unittest.TestCase):
    def test_registers_and_static_shared_memory(self):
        self.assertEqual(kernel_budget.parse_log(LOG), {"_Z1aILi8EEvP1X": {"registers": 56, "shared": 16},
                                                        "_Z1bv": {"registers": 20, "shared": 0}})

    def test_names_are_those_of_the_source(self):
        for demangled, name in [
                ("void metattn::cuda::(anonymous namespace)::Far<8>(metattn::cuda::FarParams)", "Far<8>"),
                ("metattn::cuda::(anonymous namespace)::Norm(metattn::cuda::P, bool)", "Norm"),
                ("void metattn::cuda::<unnamed>::Tile<(int)64, (metattn::DType)2>(int (*)(float))",
                 "Tile<(int)64, (DType)2>"),
                ("plain", "plain")]:
            with self.subTest(name=name):
                self.assertEqual(kernel_budget.short_name(demangled), name)

    def test_instructions_belong_to_their_kernel(self):
        bodies = kernel_budget.parse_ptx(PTX)
        self.assertEqual(set(bodies), {"_Z1aILi8EEvP1X", "_Z1bv"})
        a, b = bodies["_Z1aILi8EEvP1X"], bodies["_Z1bv"]
        for instruction in ("cp.async.cg", "cp.async", "ldmatrix.sync", "vote.sync.ballot"):
            self.assertTrue(kernel_budget.contains(a, instruction), instruction)
        for instruction in ("mma.sync", "bar.sync", "cp.asy", "cp.async.ca"):
            self.assertFalse(kernel_budget.contains(a, instruction), instruction)
        for instruction in ("mma.sync", "bar.sync", "cp.async"):
            self.assertFalse(kernel_budget.contains(b, instruction), instruction)


class Occupancy(unittest.TestCase):
    def test_what_limits(self):
        # (architecture, registers, shared bytes, threads) -> blocks; agrees with CUDA's cuda_occupancy.h
        for case, blocks in [((80, 32, 0, 256), 8),       # threads
                             ((80, 33, 0, 256), 6),       # registers, in steps of 8 a thread
                             ((80, 72, 0, 128), 7),       # registers: 7 warps in each quarter
                             ((80, 16, 0, 32), 32),       # blocks
                             ((80, 32, 40 * 1024, 128), 4),  # shared memory, with 1 KiB more for each block
                             ((90, 32, 40 * 1024, 128), 5),
                             ((120, 32, 0, 256), 6),      # 48 warps
                             ((80, 255, 0, 1024), 0)]:
            with self.subTest(case=case):
                self.assertEqual(kernel_budget.resident_blocks(*case), blocks)


class Checking(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = pathlib.Path(folder.name)
        self.budget = self.root / "budget.toml"
        self.budget.write_text(BUDGET)
        demangled = {"_Z1aILi8EEvP1X": "void a<8>(X*)", "_Z1bv": "b()"}
        patch = unittest.mock.patch.object(kernel_budget, "demangle", lambda names: [demangled[n] for n in names])
        patch.start()
        self.addCleanup(patch.stop)

    def run_on(self, *options, log=LOG, ptx=PTX, architectures=(80, 90)):
        for architecture in architectures:
            folder = self.root / "out" / f"a.{architecture}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "log").write_text(log)
            (folder / "a.ptx").write_text(ptx)
        errors = io.StringIO()
        with unittest.mock.patch.object(sys, "argv", ["x", str(self.budget), str(self.root / "out"), *options]), \
                contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(errors):
            code = kernel_budget.main()
        return code, out.getvalue(), errors.getvalue()

    def assert_finds(self, text, count=1, **inputs):
        code, _, errors = self.run_on(architectures=(80,), **inputs)
        self.assertEqual((code, errors.count("\n")), (1, count), errors)
        self.assertIn(text, errors)

    def test_update_writes_what_then_passes(self):
        code, out, errors = self.run_on("--update")
        self.assertEqual((code, errors), (0, ""))
        self.assertIn("a<8>: sm_80 56 registers, 16 B shared, 50 %", out)
        text = self.budget.read_text()
        self.assertTrue(text.startswith(BUDGET))
        figures = tomllib.loads(text)
        self.assertEqual(figures["sm_80"]["a<8>"], {"registers": 56, "shared": 16, "blocks": 4, "occupancy": 50})
        self.assertEqual(figures["nvcc"]["release"], "13.0")
        self.assertEqual(self.run_on()[0], 0)
        self.run_on("--update")
        self.assertEqual(self.budget.read_text(), text)

    def test_update_of_one_architecture_leaves_the_others(self):
        self.run_on("--update")
        before = tomllib.loads(self.budget.read_text())
        for folder in (self.root / "out").iterdir():
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
        self.run_on("--update", log=LOG.replace("Used 20", "Used 24"), architectures=(90,))
        after = tomllib.loads(self.budget.read_text())
        self.assertEqual(after["sm_80"], before["sm_80"])
        self.assertEqual(after["sm_90"]["b"]["registers"], 24)

    def test_less_than_the_budget_passes(self):
        self.run_on("--update")
        self.assertEqual(self.run_on(log=LOG.replace("Used 56", "Used 48"))[0], 0)

    def test_more_registers_or_shared_memory(self):
        self.run_on("--update", architectures=(80,))
        self.assert_finds("a<8>: 57 registers on sm_80, budget 56", log=LOG.replace("Used 56", "Used 57"))
        self.assert_finds("a<8>: 32 bytes of static shared memory on sm_80, budget 16",
                          log=LOG.replace("16 bytes smem", "32 bytes smem"))
        self.assert_finds("budget made with nvcc 13.0, this is 12.4", log=LOG.replace("Used 56", "Used 57"),
                          ptx=PTX.replace("release 13.0", "release 12.4"))

    def test_a_kernel_without_budget_and_a_budget_without_kernel(self):
        self.run_on("--update", architectures=(80,))
        only_a, only_b = LOG[:LOG.index("ptxas info    : Compiling entry function '_Z1bv'")], LOG
        self.assert_finds("b: has a budget for sm_80, but there is no such kernel", log=only_a)
        self.budget.write_text("\n".join(line for line in self.budget.read_text().split("\n")
                                         if not line.startswith("b = ")))
        self.assert_finds("b: no budget for sm_80 (it uses 20 registers, 0 bytes", log=only_b)

    def test_update_asks_for_the_launch_of_a_new_kernel(self):
        self.budget.write_text(BUDGET.replace("b = ", "c = "))
        code, _, errors = self.run_on("--update", architectures=(80,))
        self.assertEqual(code, 1)
        self.assertIn("b: first write threads and dynamic shared memory into [kernels]", errors)

    def test_a_lost_instruction(self):
        self.run_on("--update", architectures=(80,))
        self.assert_finds("a<8>: no cp.async.cg in its PTX for sm_80", ptx=PTX.replace("cp.async.cg", "ld.global"))

    def test_an_occupancy_that_no_longer_follows(self):
        self.run_on("--update", architectures=(80,))
        self.budget.write_text(self.budget.read_text().replace("threads = 256", "threads = 512"))
        self.assert_finds("a<8>: the occupancy stated for sm_80 does not follow")


if __name__ == "__main__":
    unittest.main()
