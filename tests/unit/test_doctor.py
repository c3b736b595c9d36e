"""The doctor's machinery, and those of its checks that start nothing; the others run in tests/integration."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rlsys.app import doctor, machine_checks
from rlsys.app.problem import Problem


def check(run: object, name: str = "unheard of", deadline_s: float = 30.0) -> doctor.Check:
    return doctor.Check(name, run, deadline_s, "turn it off and on")


def test_says_what_it_saw(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["python", "cores"]) == 0
    first, second, last = capsys.readouterr().out.splitlines()
    assert first.startswith("ok    python         3.1")
    assert second.startswith("ok    cores          ")
    assert last == "all is well"


def test_an_unknown_check_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["pulse"]) == 2
    assert "no check 'pulse'; there are: python, packages, cores" in capsys.readouterr().err


def test_a_problem_carries_its_advice_or_takes_the_general_one() -> None:
    def own() -> str:
        raise Problem("it is broken", "mend it")

    def general() -> str:
        raise Problem("it is broken")

    assert doctor.run_here(check(own)) == doctor.Outcome(ok=False, seen="it is broken", advice="mend it")
    assert doctor.run_here(check(general)) == doctor.Outcome(ok=False, seen="it is broken", advice="turn it off and on")


def test_a_crash_is_a_failure_with_its_last_words() -> None:
    outcome = doctor.run_apart(check(lambda: "never run"))
    expected = "ended with status 1: KeyError: 'unheard of'"
    assert outcome == doctor.Outcome(ok=False, seen=expected, advice="turn it off and on")


def test_a_check_that_hangs_is_ended_at_its_deadline() -> None:
    outcome = doctor.run_apart(check(lambda: "never run", name="torchvision", deadline_s=0.01))
    assert outcome == doctor.Outcome(ok=False, seen="no answer within 0.01 s", advice="turn it off and on")


def test_one_failure_does_not_end_the_examination(capsys: pytest.CaptureFixture[str]) -> None:
    python = next(entry for entry in doctor.CHECKS if entry.name == "python")
    assert doctor.examine([check(lambda: "never run"), python]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line[:4] for line in lines] == ["FAIL", "    ", "ok  "]
    assert lines[1].strip() == "what to do: turn it off and on"


def test_an_unsupported_python_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 4))
    with pytest.raises(Problem, match=r"3\.11 or 3\.12 is needed"):
        machine_checks.python()


def test_the_packages_of_this_environment_are_in_their_ranges() -> None:
    assert "torch 2." in machine_checks.packages()


def test_too_little_of_something_says_how_much_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_checks, "ENOUGH_MEMORY_GIB", 1e6)
    monkeypatch.setattr(machine_checks, "ENOUGH_DISK_GIB", 1e9)
    monkeypatch.setattr(machine_checks, "ENOUGH_SHARED_GIB", 1e9)
    with pytest.raises(Problem, match=r"^[0-9.]+ GiB free$"):
        machine_checks.memory()
    with pytest.raises(Problem, match=str(Path.cwd())):
        machine_checks.disk()
    with pytest.raises(Problem, match="/dev/shm has"):
        machine_checks.shared_memory()
