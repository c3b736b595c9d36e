"""The driver: runs programs one after another, each in a process of its own, then writes the page.

python -m benchmarks                              # all that fit this machine, with results and page
python -m benchmarks learner round                # some
python -m benchmarks learner --only "long"        # some of a program's cases; nothing is written
python -m benchmarks --device gpu                 # the same on a machine with one GPU
"""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec

from benchmarks import device, page
from benchmarks.harness import MIN_REPEATS, Options, commit_at_start, line, write
from benchmarks.page import PROGRAMS, Program
from benchmarks.processes import end_with_parent
from rlsys.placement.machine import this_machine
from rlsys.report.progress import quiet_libraries

INSIDE = "--inside"
"""The driver's own option: run one program in this process."""


def main(words: Sequence[str], *, start: Callable[[str, Sequence[str]], int] | None = None) -> int:
    """Run programs by name.

    Args:
        start: runs one with these options and returns its exit status; another is for tests.

    Returns:
        0, or 1 if one failed; 2 if the command line is wrong.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(PROGRAMS))
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu", help="two cores, or the machine's one GPU")
    parser.add_argument("--repeats", type=int, help=f"counted turns; with fewer than {MIN_REPEATS} nothing is written")
    parser.add_argument("--only", default="", help="only cases whose name contains this; nothing is written")
    parser.add_argument(INSIDE, action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(words)
    unknown = [name for name in given.names if name not in PROGRAMS]
    if unknown:
        parser.error(f"no program {', '.join(unknown)}; there are: {', '.join(PROGRAMS)}")
    if given.repeats is not None and given.repeats < 1:
        parser.error(f"--repeats must be at least 1, got {given.repeats}")
    options = Options(device=given.device, repeats=given.repeats or MIN_REPEATS, only=given.only)
    if given.inside:
        name = given.names[0]
        return run(name, replace(options, repeats=given.repeats or PROGRAMS[name].repeats))
    words = ["--device", given.device, "--only", given.only]
    words += [] if given.repeats is None else ["--repeats", str(given.repeats)]
    failed = run_all(given.names or fitting(options), words, start=start or _start)
    if options.written:
        page.main()
    return 1 if failed else 0


def fitting(options: Options) -> list[str]:
    """All programs that fit this machine; says which do not, and why."""
    has_gpu, has_rival, num_cores = device.on_gpu(), find_spec("trl") is not None, int(this_machine().num_cpus)
    given = {"num_cores": num_cores, "has_gpu": has_gpu, "has_rival": has_rival}
    reasons = {name: unfit(program, options, **given) for name, program in PROGRAMS.items()}
    for name in filter(reasons.get, reasons):
        print(f"== {name}: left out: {reasons[name]}")
    return [name for name, reason in reasons.items() if not reason]


def unfit(program: Program, options: Options, *, num_cores: int, has_gpu: bool, has_rival: bool) -> str:
    """Why a program cannot be run here; empty if it can.

    Args:
        has_gpu: whether torch sees one.
        has_rival: whether TRL is installed.
    """
    on_gpu = options.device == "gpu"
    reasons = {
        "torch sees no GPU": on_gpu and not has_gpu,
        "it has no case for a GPU": on_gpu and not program.on_gpu,
        "vLLM here is the one for GPUs": has_gpu and program.vllm and not on_gpu,
        "trl is not installed": program.rival and not has_rival,
        f"it takes {program.cores} cores, there is {num_cores}": num_cores < program.cores,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def run_all(names: Sequence[str], words: Sequence[str], *, start: Callable[[str, Sequence[str]], int]) -> list[str]:
    """Run programs one after another; says, and returns, which have failed."""
    failed = []
    for name in names:
        print(f"== {name}", flush=True)
        started = time.monotonic()
        status = start(name, words)
        print(f"== {name}: {'done' if status == 0 else f'FAILED ({status})'} in {time.monotonic() - started:.0f} s")
        failed += [name] if status else []
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return failed


def _start(name: str, words: Sequence[str]) -> int:
    return subprocess.run([sys.executable, "-m", "benchmarks", name, *words, INSIDE], check=False).returncode


def run(name: str, options: Options) -> int:
    """Run one program in this process, and write its results if they count; 2 if it has no such case."""
    end_with_parent()
    commit_at_start()
    if options.device == "cpu":
        device.confine()
    elif not device.on_gpu():
        print("torch sees no GPU: not measured", file=sys.stderr)
        return 2
    else:
        os.environ.update(device.ENVIRONMENT)
    quiet_libraries()
    program = importlib.import_module(f"benchmarks.{name}")
    cases = list(program.cases(options))
    if not any(map(options.wants, cases)):
        print(f"--only {options.only}: no such case; there are: {'; '.join(cases)}", file=sys.stderr)
        return 2
    rows = []
    for row in program.rows(options):
        rows.append(row)
        print(line(row), flush=True)
    if options.written:
        write(page.file_name(name, options.device), PROGRAMS[name].question, rows, repeats=options.repeats)
    else:
        print(f"not written: a file needs all cases, and {MIN_REPEATS} turns")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
