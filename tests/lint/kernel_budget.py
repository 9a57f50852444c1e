#!/usr/bin/env python3
"""Compares what nvcc made of the CUDA kernels with kernels/cuda/budget.toml. Standard library only.

    tests/lint/kernel_budget.py BUDGET OUTPUTS [--update]

OUTPUTS is a folder of tests/lint/nvcc.sh: SOURCE.ARCHITECTURE/log (of ptxas -v) and .../SOURCE.ptx. Checked for each
architecture that is there: registers and static shared memory of a kernel are at most its budget, every kernel has a
budget and every budget a kernel, the stated occupancy is what the budget means, and the PTX of a kernel holds the
instructions it is written for. A finding is one line; exit 1 when there is one. --update writes the figures anew and
leaves what is written by hand.
"""

import argparse
import dataclasses
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib

MARKER = "# ---- Below: written by tests/lint/nvcc.sh --update"


@dataclasses.dataclass(frozen=True)
class Limits:
    """Of one multiprocessor, from the table of compute capabilities in the CUDA programming guide."""
    warps: int
    blocks: int
    shared: int  # bytes; each block takes RESERVED_SHARED more than it asks for


LIMITS = {80: Limits(64, 32, 164 * 1024), 90: Limits(64, 32, 228 * 1024), 100: Limits(64, 32, 228 * 1024),
          120: Limits(48, 24, 100 * 1024)}
PARTITIONS = 4  # of a multiprocessor, each with its part of warps and registers
PARTITION_REGISTERS = 16384
REGISTERS_OF_WARP_UNIT, SHARED_UNIT, RESERVED_SHARED = 256, 128, 1024


def round_up(value, unit):
    return (value + unit - 1) // unit * unit


def resident_blocks(architecture, registers, shared, threads):
    """Blocks of `threads` threads and `shared` bytes (static and dynamic) that one multiprocessor holds at once."""
    limits, warps = LIMITS[architecture], (threads + 31) // 32
    of_partition = PARTITION_REGISTERS // round_up(max(registers, 1) * 32, REGISTERS_OF_WARP_UNIT)
    return min(limits.blocks, limits.warps // warps, of_partition * PARTITIONS // warps,
               limits.shared // round_up(shared + RESERVED_SHARED, SHARED_UNIT))


def figures_of(architecture, use, launch):
    """A line of the budget: the kernel's use and the occupancy that it means."""
    blocks = resident_blocks(architecture, use["registers"], use["shared"] + launch["dynamic"], launch["threads"])
    warps = blocks * ((launch["threads"] + 31) // 32)
    return {"registers": use["registers"], "shared": use["shared"], "blocks": blocks,
            "occupancy": 100 * warps // LIMITS[architecture].warps}


def demangle(names):
    """The names as C++ writes them; one call for all."""
    tool = shutil.which("cu++filt") or shutil.which("c++filt")
    if tool is None:
        sys.exit("nvcc: error: neither cu++filt (CUDA toolkit) nor c++filt (binutils) is here to read kernel names")
    out = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    return out.split("\n")


def short_name(demangled):
    """void metattn::cuda::(anonymous namespace)::Far<8>(metattn::cuda::Params) -> Far<8>"""
    name = re.sub(r"\(anonymous namespace\)::|<unnamed>::|_INTERNAL\w+::|\bmetattn::(cuda::)?", "", demangled)
    name = re.sub(r"^void ", "", name)
    if not name.endswith(")"):
        return name
    depth = 0
    for at in range(len(name) - 1, -1, -1):
        depth += (name[at] == ")") - (name[at] == "(")
        if depth == 0:
            return name[:at]
    return name


def parse_log(text):
    """{mangled name: {"registers": , "shared": }} from ptxas -v."""
    found, name = {}, None
    for line in text.splitlines():
        entry = re.search(r"Compiling entry function '([^']+)'", line)
        used = re.search(r"Used (\d+) registers", line)
        if entry:
            name = entry.group(1)
        elif used and name:
            shared = re.search(r"(\d+)(?:\+\d+)? bytes smem", line)
            found[name] = {"registers": int(used.group(1)), "shared": int(shared.group(1)) if shared else 0}
            name = None
    return found


def parse_ptx(text):
    """{mangled name: body} of the kernels in a PTX module."""
    parts = re.split(r"^(?:\.(?:visible|weak) )?\.entry ([\w$.]+)", text, flags=re.M)
    # Functions that were not inlined end a kernel's text: an instruction in one of them does not count.
    bodies = [re.split(r"^(?:\.(?:visible|weak) )?\.func ", part, maxsplit=1, flags=re.M)[0] for part in parts[2::2]]
    return dict(zip(parts[1::2], bodies))


def contains(body, instruction):
    """Whether an instruction of that name, or one that goes on with further qualifiers, is in the PTX."""
    return re.search(rf"^[\s{{]*(?:@!?%\w+\s+)?{re.escape(instruction)}(?![\w])", body, flags=re.M) is not None


def read_outputs(folder):
    """{architecture: {short name: {"registers", "shared", "ptx"}}}, the toolkit's version, findings."""
    measured, findings, toolkit = {}, [], "?"
    for log in sorted(pathlib.Path(folder).glob("*.*/log")):
        source, architecture = log.parent.name.rsplit(".", 1)
        kernels = parse_log(log.read_text())
        ptx = (log.parent / f"{source}.ptx").read_text()
        bodies = parse_ptx(ptx)
        release = re.search(r"Cuda compilation tools, release ([\d.]+)", ptx)
        toolkit = release.group(1) if release else toolkit
        of_architecture = measured.setdefault(int(architecture), {})
        for mangled, name in zip(kernels, map(short_name, demangle(kernels))):
            if name in of_architecture:
                findings.append(f"{name}: two kernels have this name (one in {source}.cu)")
            of_architecture[name] = {**kernels[mangled], "ptx": bodies.get(mangled, "")}
    return measured, toolkit, findings


def check(budget, measured, toolkit):
    """Findings, one line each."""
    launches, made_with = budget.get("kernels", {}), budget.get("nvcc", {}).get("release", "?")
    other = "" if toolkit == made_with else f"; budget made with nvcc {made_with}, this is {toolkit}"
    for architecture, kernels in sorted(measured.items()):
        lines = budget.get(f"sm_{architecture}", {})
        for name, use in sorted(kernels.items()):
            figures = f"{use['registers']} registers, {use['shared']} bytes of static shared memory"
            if name not in launches or name not in lines:
                yield f"{name}: no budget for sm_{architecture} (it uses {figures})"
                continue
            for what, unit in (("registers", "registers"), ("shared", "bytes of static shared memory")):
                if use[what] > lines[name][what]:
                    yield (f"{name}: {use[what]} {unit} on sm_{architecture}, budget {lines[name][what]}{other}")
            if lines[name] != figures_of(architecture, lines[name], launches[name]):
                yield f"{name}: the occupancy stated for sm_{architecture} does not follow from its figures: --update"
            for instruction in launches[name].get("needs", []):
                if not contains(use["ptx"], instruction):
                    yield f"{name}: no {instruction} in its PTX for sm_{architecture}"
        for name in sorted((set(launches) | set(lines)) - set(kernels)):
            yield f"{name}: has a budget for sm_{architecture}, but there is no such kernel"


def key(name):
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else f'"{name}"'


def updated(text, measured, toolkit):
    """The budget file's text with new figures of the architectures measured; ValueError names what is missing."""
    by_hand = text.split(MARKER)[0]
    budget = tomllib.loads(text)
    launches = tomllib.loads(by_hand).get("kernels", {})
    sections = {int(name[3:]): lines for name, lines in budget.items() if name.startswith("sm_")}
    for architecture, kernels in measured.items():
        missing = sorted(set(kernels) - set(launches))
        if missing:
            raise ValueError(f"{', '.join(missing)}: first write threads and dynamic shared memory into [kernels]")
        sections[architecture] = {name: figures_of(architecture, use, launches[name])
                                  for name, use in kernels.items()}
    out = [by_hand + MARKER, f'[nvcc]\nrelease = "{toolkit}"']
    for architecture, lines in sorted(sections.items()):
        out.append(f"\n[sm_{architecture}]")
        for name, figures in sorted(lines.items()):
            out.append(f"{key(name)} = {{ " + ", ".join(f"{k} = {v}" for k, v in figures.items()) + " }")
    return "\n".join(out) + "\n"


def report(budget, measured):
    """One line a kernel, for people."""
    for name in sorted({name for kernels in measured.values() for name in kernels}):
        parts = []
        for architecture, kernels in sorted(measured.items()):
            if name in kernels:
                line = budget.get(f"sm_{architecture}", {}).get(name, {})
                parts.append(f"sm_{architecture} {kernels[name]['registers']} registers, {kernels[name]['shared']} B "
                             f"shared, {line.get('occupancy', '?')} %")
        yield f"{name}: " + "; ".join(parts)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("budget", type=pathlib.Path)
    parser.add_argument("outputs", type=pathlib.Path)
    parser.add_argument("--update", action="store_true")
    args = parser.parse_args()
    measured, toolkit, findings = read_outputs(args.outputs)
    if args.update:
        try:
            args.budget.write_text(updated(args.budget.read_text(), measured, toolkit))
        except ValueError as error:
            findings.append(str(error))
    budget = tomllib.loads(args.budget.read_text())
    print("\n".join(report(budget, measured)))
    findings += check(budget, measured, toolkit)
    for finding in findings:
        print(f"nvcc: error: {args.budget.name}: {finding}", file=sys.stderr)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
