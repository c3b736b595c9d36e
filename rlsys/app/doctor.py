"""`rlsys doctor`: check the installation piece by piece, and say in plain words how to repair what fails.

Every check runs in a process of its own with a deadline, so that a check that crashes or hangs does not end the others. Names
after the command run only those checks: `rlsys doctor ray engine`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlsys.app import machine_checks, stack_checks
from rlsys.app.problem import Problem
from rlsys.report.progress import QUIET_ENV

REMAKE = "make the environment again (rm -rf .venv && make env); on a GPU machine see docs/environment.md"
STOP_GRACE_S = 5.0
"""Seconds that a hanging check gets to stop the processes that it started."""


@dataclass(frozen=True)
class Check:
    """One check of a part of the installation."""

    name: str
    run: Callable[[], str]
    """Function that runs the check. It returns a short text that says what it found, or raises `Problem`."""
    deadline_s: float
    advice: str
    """Advice to print when the check crashes or hangs, and so cannot give its own."""


CHECKS = (
    Check("python", machine_checks.python, 30, "install Python 3.11 and run make env"),
    Check("packages", machine_checks.packages, 60, REMAKE),
    Check("cores", machine_checks.cores, 30, "run on Linux"),
    Check("memory", machine_checks.memory, 30, "run on Linux"),
    Check("disk", machine_checks.disk, 30, "check that the current and the temporary folder can be written to"),
    Check("shared memory", machine_checks.shared_memory, 30, "mount /dev/shm"),
    Check("torchvision", stack_checks.torchvision, 120, f"its hook may be missing: {REMAKE}"),
    Check("gpus", stack_checks.gpus, 120, "look at nvidia-smi: the driver or another process may hold the GPU"),
    Check("ray", stack_checks.ray, 120, "look for a firewall between processes of this machine, and free memory"),
    Check("engine", stack_checks.engine, 300, f"vLLM cannot start or generate here: {REMAKE}"),
    Check("deepspeed", stack_checks.deepspeed, 240, f"DeepSpeed cannot take a step here: {REMAKE}"),
    Check("weight sync", stack_checks.weight_sync, 300, "check that processes of this machine can reach each other"),
)


@dataclass(frozen=True)
class Outcome:
    """The result of a check."""

    ok: bool
    seen: str
    advice: str = ""


def run_here(check: Check) -> Outcome:
    """Run a check in this process."""
    try:
        return Outcome(ok=True, seen=check.run())
    except Problem as problem:
        return Outcome(ok=False, seen=str(problem), advice=problem.advice or check.advice)


def run_apart(check: Check) -> Outcome:
    """Run a check in a process of its own; no process that it started is left afterwards."""
    with tempfile.TemporaryDirectory(prefix="rlsys-doctor-") as scratch:
        answer, words = Path(scratch, "answer"), Path(scratch, "words")
        command = [sys.executable, "-m", "rlsys.app.doctor", "--write", str(answer), check.name]
        with words.open("wb") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**QUIET_ENV, **os.environ},
                start_new_session=True,
            )
            try:
                process.wait(check.deadline_s)
            except subprocess.TimeoutExpired:
                return Outcome(ok=False, seen=f"no answer within {check.deadline_s:g} s", advice=check.advice)
            finally:
                stop(process)
        if answer.exists():
            return Outcome(**json.loads(answer.read_text()))
        last = words.read_text(errors="replace").strip().splitlines()[-1:]
        said = f": {last[0]}" if last else ""
        return Outcome(ok=False, seen=f"ended with status {process.returncode}{said}", advice=check.advice)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End all processes of a check: ask them first, then kill them."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def examine(checks: Sequence[Check]) -> int:
    """Run the checks one after the other and print a line for each. Returns how many failed."""
    failed = 0
    for check in checks:
        started = time.monotonic()
        outcome = run_apart(check)
        failed += not outcome.ok
        took = f" ({time.monotonic() - started:.0f} s)"
        print(f"{'ok' if outcome.ok else 'FAIL':4}  {check.name:13}  {outcome.seen}{took}", flush=True)
        if not outcome.ok:
            print(f"      {'':13}  what to do: {outcome.advice}", flush=True)
    return failed


def main(argv: list[str]) -> int:
    """Check this machine. Returns 0 if all is well, 1 if a check failed, 2 if a named check does not exist."""
    known = {check.name: check for check in CHECKS}
    if argv[:1] == ["--write"]:
        _, answer, name = argv
        Path(answer).write_text(json.dumps(vars(run_here(known[name]))))
        return 0
    if {"-h", "--help"} & set(argv):
        print(f"usage: rlsys doctor [CHECK ...]\n\nchecks: {', '.join(known)}")
        return 0
    unknown = [name for name in argv if name not in known]
    if unknown:
        print(f"rlsys doctor: no check {unknown[0]!r}; there are: {', '.join(known)}", file=sys.stderr)
        return 2
    failed = examine([known[name] for name in argv] or CHECKS)
    print(f"{failed} of {len(argv or CHECKS)} checks failed" if failed else "all is well")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
