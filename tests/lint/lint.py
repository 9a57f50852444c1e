#!/usr/bin/env python3
"""House rules that a compiler does not check. Standard library only.

    tests/lint/lint.py [CHECK...]        all checks, or those named; exit 1 when one finds something
    tests/lint/lint.py --list            the names
    tests/lint/lint.py --root DIR        another tree

A finding is one line `path:line: what is wrong`. The rules are tables at the top of rules.py.
"""

import argparse
import ast
import pathlib
import re
import subprocess
import sys

import cpp_scan
import rules

CPP = (".h", ".cc", ".cpp", ".cu", ".cuh")
TEXT = CPP + (".py", ".sh", ".md", ".proto", ".txt", ".cmake", ".json", ".yml", ".yaml", ".toml")
CODE = CPP + (".py", ".sh", ".proto")


class Tree:
    """The files of a checkout: those git knows or would add, else all that are not in build/."""

    def __init__(self, root):
        self.root = pathlib.Path(root).resolve()
        self.files = sorted(f for f in self._list() if (self.root / f).is_file())
        self._texts = {}

    def _list(self):
        git = subprocess.run(["git", "-C", self.root, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
                             capture_output=True, check=False)
        top = subprocess.run(["git", "-C", self.root, "rev-parse", "--show-toplevel"],
                             capture_output=True, text=True, check=False).stdout.strip()
        if git.returncode == 0 and pathlib.Path(top or "/").resolve() == self.root:
            return [f for f in git.stdout.decode().split("\0") if f]
        skip = {"build", ".git", ".venv"}
        return [str(p.relative_to(self.root)) for p in self.root.rglob("*")
                if p.is_file() and not skip & set(p.relative_to(self.root).parts)]

    def of(self, *suffixes):
        return [f for f in self.files if f.endswith(suffixes)]

    def text(self, file):
        if file not in self._texts:
            self._texts[file] = (self.root / file).read_text(encoding="utf-8", errors="replace")
        return self._texts[file]


INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*([<"])([^>"]+)[>"]', re.M)


def includes(tree, file):
    """(line, header, quoted) of each #include, those in comments left out."""
    text = re.sub(r"/\*.*?\*/", lambda m: "\n" * m.group().count("\n"), tree.text(file), flags=re.S)
    for match in INCLUDE.finditer(text):
        yield text.count("\n", 0, match.start()) + 1, match.group(2), match.group(1) == '"'


def layer_of(path):
    for prefix, layer in rules.LAYERS:
        if path.startswith(prefix):
            return layer
    return None


def check_include_direction(tree):
    known = set(tree.files)
    for file in tree.of(*CPP):
        layer = layer_of(file)
        for line, header, quoted in includes(tree, file):
            target = layer_of(header)
            if target is None:
                if quoted and not header.startswith(rules.QUOTED_LIBRARIES):
                    yield file, line, f'"{header}": project headers are included by their path from the root'
                continue
            if header not in known and target != "proto":
                yield file, line, f"{header} does not exist"
            if layer is None or layer == "tests":
                continue
            if target not in rules.MAY_INCLUDE[layer]:
                yield file, line, f"{layer} must not include {target} ({header})"
            elif (layer == "parallel" and target == "kernels" and header not in rules.KERNELS_FOR_PARALLEL
                  and (file, header) not in rules.ALSO_FOR_PARALLEL):
                yield file, line, f"parallel may include only {', '.join(rules.KERNELS_FOR_PARALLEL)} of kernels"


def check_vendor_headers(tree):
    for file in tree.of(*CPP):
        for line, header, _ in includes(tree, file):
            for vendor, pattern, homes in rules.VENDOR_HEADERS:
                if re.match(pattern, header) and not any(re.fullmatch(home, file) for home in homes):
                    yield file, line, f"{vendor} header {header}: only in {', '.join(homes)}"


def check_file_length(tree):
    for file in tree.of(*CODE):
        count = tree.text(file).count("\n")
        if count > rules.MAX_FILE_LINES:
            yield file, count, f"{count} lines, limit {rules.MAX_FILE_LINES}"


def functions_of(tree, file):
    if not file.endswith(".py"):
        return cpp_scan.functions(tree.text(file))
    try:
        parsed = ast.parse(tree.text(file))
    except SyntaxError:
        return []
    found = []
    for node in ast.walk(parsed):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            arguments = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
            count = len([a for a in arguments if a.arg not in ("self", "cls")])
            found.append(cpp_scan.Function(node.name, node.lineno, node.end_lineno - node.lineno + 1, count))
    return found


def check_function_length(tree):
    for file in tree.of(*CPP, ".py"):
        limit = rules.MAX_KERNEL_LINES if re.match(rules.KERNEL_FILES, file) else rules.MAX_FUNCTION_LINES
        for f in functions_of(tree, file):
            if f.length > limit:
                yield file, f.line, f"{f.name} has {f.length} lines, limit {limit}"


def check_parameters(tree):
    for file in tree.of(*CPP, ".py"):
        prescribed = [name for path, name in rules.PRESCRIBED_SIGNATURES if re.fullmatch(path, file)]
        for f in functions_of(tree, file):
            if f.parameters > rules.MAX_PARAMETERS and not any(re.fullmatch(p, f.name) for p in prescribed):
                yield file, f.line, (f"{f.name} has {f.parameters} parameters, limit {rules.MAX_PARAMETERS}: "
                                     "put them into an Args struct")


def check_headers(tree):
    for file in tree.of(".h", ".cuh"):
        lines = tree.text(file).splitlines()
        if not lines or not lines[0].startswith("//"):
            yield file, 1, "a header opens with a comment: what it is, ownership, thread safety, errors, cost"
        if "#pragma once" not in lines:
            yield file, 1, "no #pragma once"


def check_readmes(tree):
    known = set(tree.files)
    folders = {"/".join(f.split("/")[:depth]) for f in tree.files for depth in (1, 2) if f.count("/") >= depth}
    for folder in sorted(folders & set(rules.FOLDERS_WITH_README)):
        readme = f"{folder}/README.md"
        if readme not in known:
            yield readme, 1, "missing: each folder has its one-page README.md"
        elif tree.text(readme).count("\n") > rules.MAX_README_LINES:
            yield readme, 1, f"more than one page ({rules.MAX_README_LINES} lines)"
    if "README.md" not in known:
        yield "README.md", 1, "missing"


def check_top_level(tree):
    for file in tree.files:
        top = file.split("/")[0]
        if top not in rules.TOP_LEVEL and not top.startswith("."):
            yield file, 1, f"'{top}' is not one of the top-level entries: {' '.join(sorted(rules.TOP_LEVEL))}"
        if re.search(rules.GENERATED, file):
            yield file, 1, "generated file: belongs into build/"


def check_kernel_twins(tree):
    """Every op of the interface is tested by name; every op file of kernels/ref has its twin in kernels/cpu."""
    known = set(tree.files)
    for file in tree.files:
        match = re.fullmatch(r"kernels/ref/(\w+)\.cc", file)
        if match and match.group(1) not in rules.NOT_AN_OP and f"kernels/cpu/{match.group(1)}.cc" not in known:
            yield f"kernels/cpu/{match.group(1)}.cc", 1, f"missing: the twin of {file}"
    interface = "kernels/kernels.h"
    if interface not in known:
        return
    tests = "\n".join(tree.text(f) for f in tree.of(".cc", ".h") if f.startswith("tests/kernels/"))
    for match in re.finditer(r"virtual void (\w+)\(const \w+Args& ", tree.text(interface)):
        if not re.search(rf"(\.|->){match.group(1)}\(", tests):
            line = tree.text(interface).count("\n", 0, match.start()) + 1
            yield interface, line, f"{match.group(1)} is not called by any test in tests/kernels"


def check_content(tree):
    for file in tree.files:
        if not (file.endswith(TEXT) or "." not in file.split("/")[-1]):
            continue
        for number, text in enumerate(tree.text(file).splitlines(), 1):
            for what, pattern, exceptions in rules.FORBIDDEN:
                if re.search(pattern, text) and not any(re.fullmatch(e, file) for e in exceptions):
                    yield file, number, what


CHECKS = {name[len("check_"):]: check for name, check in list(globals().items()) if name.startswith("check_")}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checks", nargs="*", metavar="CHECK", choices=[[], *CHECKS], default=[])
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--root", default=pathlib.Path(__file__).resolve().parents[2])
    args = parser.parse_args()
    if args.list:
        print("\n".join(CHECKS))
        return 0
    tree = Tree(args.root)
    findings = 0
    for name in args.checks or CHECKS:
        for file, line, message in CHECKS[name](tree):
            print(f"{file}:{line}: {message} [{name}]")
            findings += 1
    print(f"lint: {findings} finding(s) in {len(tree.files)} files", file=sys.stderr)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
