"""Each rule must catch its own violation and leave good code alone. Run by ctest: python3 tests/lint/test_lint.py"""

import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import cpp_scan
import lint


class SeededTree(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = pathlib.Path(folder.name)

    def write(self, files):
        for name, text in files.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def findings(self, check, files):
        self.write(files)
        return [f"{file}:{line}: {what}" for file, line, what in lint.CHECKS[check](lint.Tree(self.root))]

    def assert_one(self, check, files, *parts):
        found = self.findings(check, files)
        self.assertEqual(len(found), 1, found)
        for part in parts:
            self.assertIn(part, found[0])


HEADER = "// What it is.\n#pragma once\n"


class IncludeDirection(SeededTree):
    def test_every_arrow_against_the_direction_is_found(self):
        wrong = [("kernels", "parallel"), ("kernels", "engine"), ("parallel", "engine"), ("parallel", "rpc"),
                 ("engine/formats", "engine/model"), ("engine/formats", "parallel"), ("engine/model", "engine"),
                 ("engine", "rpc"), ("engine/model", "rpc"), ("kernels", "tests"), ("rpc", "tests")]
        for source, target in wrong:
            with self.subTest(source=source, target=target):
                files = {f"{target}/thing.h": HEADER, f"{source}/a.cc": f'#include "{target}/thing.h"\n'}
                self.assert_one("include_direction", files, f"{source} must not include {target}")
                (self.root / source / "a.cc").unlink()

    def test_generated_protos_belong_to_rpc(self):
        include = '#include "metattn/v1/jobs.pb.h"\n'
        self.assert_one("include_direction", {"engine/a.cc": include}, "engine must not include proto")
        (self.root / "engine/a.cc").unlink()
        self.assertEqual(self.findings("include_direction", {"rpc/a.cc": include}), [])

    def test_parallel_sees_types_and_device_only(self):
        files = {"kernels/types.h": HEADER, "kernels/kernels.h": HEADER,
                 "parallel/a.cc": '#include "kernels/types.h"\n#include "kernels/kernels.h"\n'}
        self.assert_one("include_direction", files, "parallel/a.cc:2", "parallel may include only")

    def test_relative_and_missing_headers_are_found(self):
        self.assert_one("include_direction", {"engine/a.cc": '#include "b.h"\n'}, "by their path from the root")
        self.assert_one("include_direction", {"engine/a.cc": '#include "engine/b.h"\n'}, "does not exist")

    def test_the_right_arrows_and_comments_pass(self):
        files = {"kernels/types.h": HEADER, "engine/formats/gguf.h": HEADER, "engine/model/m.h": HEADER,
                 "engine/model/m.cc": '#include "engine/formats/gguf.h"\n#include "kernels/types.h"\n',
                 "rpc/a.cc": '#include "engine/model/m.h"\n#include "absl/status/status.h"\n#include <vector>\n',
                 "kernels/k.cc": '/* #include "rpc/a.h"\n#include "rpc/b.h" */\n'}
        self.assertEqual(self.findings("include_direction", files), [])


class VendorHeaders(SeededTree):
    def test_each_vendor_header_is_found_outside_its_home(self):
        for header in ("mpi.h", "nccl.h", "cuda_runtime.h", "cuda_fp16.h", "sqlite3.h", "grpcpp/grpcpp.h",
                       "prometheus/counter.h", "immintrin.h", "pcre2.h", "utf8proc.h", "CLI/CLI.hpp"):
            with self.subTest(header=header):
                self.assert_one("vendor_headers", {"parallel/planner.cc": f"#include <{header}>\n"}, header, ":1:")

    def test_homes_pass(self):
        files = {"parallel/mpi_communicator.cc": "#include <mpi.h>\n", "rpc/job_store.cc": "#include <sqlite3.h>\n",
                 "kernels/cpu/vec.h": "#include <immintrin.h>\n", "rpc/server.cc": "#include <grpcpp/grpcpp.h>\n"}
        self.assertEqual(self.findings("vendor_headers", files), [])

    def test_quotes_do_not_hide_a_vendor(self):
        self.assert_one("vendor_headers", {"engine/a.cc": ' # include "mpi.h"\n'}, "MPI")


def body(lines):
    return "void F() {\n" + "  G();\n" * (lines - 2) + "}\n"


class Lengths(SeededTree):
    def test_files(self):
        self.assert_one("file_length", {"engine/a.cc": "\n" * 501}, "501 lines")
        self.assertEqual(self.findings("file_length", {"engine/a.cc": "\n" * 500}), [])

    def test_functions(self):
        self.assert_one("function_length", {"engine/a.cc": body(61)}, "engine/a.cc:1", "F has 61 lines")
        self.assertEqual(self.findings("function_length", {"engine/a.cc": body(60)}), [])

    def test_kernels_may_be_twice_as_long(self):
        self.assertEqual(self.findings("function_length", {"kernels/ref/a.cc": body(120)}), [])
        self.assert_one("function_length", {"kernels/ref/a.cc": body(121)}, "121 lines")

    def test_python_functions(self):
        self.assert_one("function_length", {"tests/a.py": "def f():\n" + "    x = 1\n" * 60}, "f has 61 lines")

    def test_parameters(self):
        self.assert_one("parameters", {"engine/a.h": "void F(int a, int b, int c, int d, int e, int f, int g);\n"},
                        "F has 7 parameters")
        six = "void F(int a, std::map<int, int> b, int c, std::function<void(int, int)> d, int e, int f) {}\n"
        self.assertEqual(self.findings("parameters", {"engine/a.h": six}), [])
        (self.root / "engine/a.h").unlink()
        self.assert_one("parameters", {"tests/a.py": "def f(a, b, c, d, e, f, g): pass\n"}, "f has 7")
        (self.root / "tests/a.py").unlink()
        prescribed = "int cudaF(int a, int b, int c, int d, int e, int f, int g);\n"
        self.assertEqual(self.findings("parameters", {"tests/emu/a.cc": prescribed}), [])
        self.assert_one("parameters", {"engine/a.cc": prescribed}, "cudaF has 7")


class Layout(SeededTree):
    def test_readmes(self):
        self.assert_one("readmes", {"README.md": "x\n", "engine/a.cc": ""}, "engine/README.md")
        self.assertEqual(self.findings("readmes", {"engine/README.md": "x\n"}), [])
        self.assert_one("readmes", {"engine/README.md": "x\n" * 151}, "more than one page")

    def test_top_level(self):
        self.assert_one("top_level", {"scripts/a.py": ""}, "'scripts' is not one of the top-level entries")

    def test_generated_files(self):
        self.assert_one("top_level", {"proto/x.pb.h": ""}, "generated file")

    def test_kernel_twins(self):
        self.assert_one("kernel_twins", {"kernels/ref/rope.cc": "", "kernels/ref/ref_kernels.cc": ""},
                        "kernels/cpu/rope.cc")
        self.assertEqual(self.findings("kernel_twins", {"kernels/cpu/rope.cc": "", "kernels/cpu/pool.cc": ""}), [])

    def test_untested_ops(self):
        interface = "virtual void Norm(const NormArgs& args, Stream& s) = 0;\n" \
                    "virtual void Near(const NearArgs& args, Stream& s) = 0;\n"
        files = {"kernels/kernels.h": interface, "tests/kernels/a_test.cc": "k->Near(args, stream); // Norm(args)\n"}
        self.assert_one("kernel_twins", files, "kernels/kernels.h:1", "Norm is not called")

    def test_headers(self):
        self.assert_one("headers", {"engine/a.h": "#pragma once\n"}, "opens with a comment")
        self.assert_one("headers", {"engine/a.h": "// A.\n"}, "no #pragma once")
        self.assertEqual(self.findings("headers", {"engine/a.h": HEADER}), [])

    def test_content(self):
        for text, what in [("x = '/root/a'", "machine"), ("cd /home/bob/x", "machine"),
                           ("curl https://pypi.org/simple", "registry"), ("<<<<<<< HEAD", "conflict"),
                           ("TEST(A, DISABLED_B) {}", "switched off")]:
            with self.subTest(text=text):
                self.assert_one("content", {"deploy/a.sh": text + "\n"}, what)
        self.assertEqual(self.findings("content", {"deploy/a.sh": "cd $PWD/work/x; ls build/work/\n"}), [])


class Scanner(unittest.TestCase):
    def names(self, text):
        return [f.name for f in cpp_scan.functions(text)]

    def test_functions_of_every_shape_are_found(self):
        text = """
        namespace a {
        template <typename T> class C final : public B {
         public:
          explicit C(int x) : B{x}, y_{1} { Do(); }
          ~C() override = default;
          int Get() const noexcept { return y_; }
          C& operator=(const C&) = delete;
          bool operator==(const C& o) const { return true; }
         private:
          std::vector<int> v_{1, 2};
          int y_ = 0;
        };
        static const char* kText = R"(void Fake() { )" "void Fake2() {";
        constexpr int kTable[] = {1, 2, 3};
        auto Trailing(int a) -> std::vector<int> { if (a) { return {}; } return {}; }
        const auto lambda = [](int a, int b) { return a + b; };
        TEST(Suite, Name) { EXPECT_EQ(1, 1); }
        }
        """
        found = self.names(text)
        for name in ("C", "Get", "Trailing", "TEST", "lambda"):
            self.assertIn(name, found)
        self.assertNotIn("Fake", " ".join(found))
        self.assertNotIn("Do", found)
        self.assertNotIn("EXPECT_EQ", found)

    def test_length_counts_from_signature_to_brace(self):
        text = "int F(int a,\n      int b) {\n  return a;  // }\n}\n"
        self.assertEqual([(f.line, f.length, f.parameters) for f in cpp_scan.functions(text)], [(1, 4, 2)])

    def test_a_long_function_behind_tricky_text_is_still_measured(self):
        tricky = ["#define M(x) { \\\n  (\n", "const char c = '{';\n", 'const char* s = "{\\"";\n',
                  "int n = 1'000'000;\n", "struct S { int a{0}; };\n", "enum class E { kA, kB };\n",
                  "using F2 = int (*)(int, int);\n", "extern \"C\" { int G(); }\n"]
        for prefix in tricky:
            with self.subTest(prefix=prefix):
                self.assertIn(("F", 61), [(f.name, f.length) for f in cpp_scan.functions(prefix + body(61))])


class ThisTree(unittest.TestCase):
    def test_the_scanner_finds_functions_in_the_projects_own_headers(self):
        tree = lint.Tree(pathlib.Path(__file__).resolve().parents[2])
        count = sum(len(lint.functions_of(tree, f)) for f in tree.of(".h"))
        self.assertGreater(count, 100)  # a scanner that finds nothing would pass every limit


if __name__ == "__main__":
    unittest.main()
