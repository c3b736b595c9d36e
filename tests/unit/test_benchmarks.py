"""The benchmarks' page is made of their files and of nothing else, and one failure does not stop the others."""

import importlib
import json
import subprocess
from dataclasses import asdict

import pytest

from benchmarks import __main__ as driver
from benchmarks import device, harness, page, processes
from benchmarks.harness import Bound, Options, Row, Spread, Target
from benchmarks.page import PROGRAMS
from rlsys.placement import Placement
from rlsys.placement.machine import Machine

MEASURED = {
    "when": "2025-03-04T05:06:07+00:00",
    "commit": "abc1234",
    "cores": 2,
    "processor": "A Processor",
    "memory_gib": 23.5,
    "gpus": [],
    "python": "3.11.9",
    "versions": {"torch": "2.13.0", "ray": "2.60.0"},
}
SPREAD = {"median": 1.5, "low": 1.25, "high": 2000.0}
ROW = {
    "case": "a case",
    "ours": SPREAD,
    "other": None,
    "other_name": "",
    "ratio": None,
    "unit": "s",
    "target": None,
    "bound": None,
    "checked": "",
    "note": "",
    "extra": {},
    "met": None,
}
MET = {
    **ROW,
    "case": "fast",
    "other": {"median": 3.0, "low": 3.0, "high": 3.0},
    "other_name": "theirs",
    "ratio": {"median": 0.5, "low": 0.4, "high": 0.6},
    "target": {"at_least": None, "at_most": 2.0},
    "checked": "same bytes",
    "met": True,
}
MISSED = {
    **ROW,
    "case": "slow",
    "target": {"at_least": 10.0, "at_most": None},
    "note": "Of one row.",
    "extra": {"gb": 0.25},
    "met": False,
}
BOUND = {**MET, "case": "bound", "target": None, "met": None, "bound": {"ratio": 2.0, "why": "no stage waits"}}


def write(folder, name, rows, **more):
    content = {"name": name, "title": name, "repeats": 5, "measured": MEASURED, **more, "rows": rows}
    (folder / f"{name}.json").write_text(json.dumps(content))


def test_the_page_has_a_table_per_program_with_targets_bounds_notes_and_environment(tmp_path):
    write(tmp_path, "startup", [MET, MISSED, BOUND, ROW])
    lines = page.page(tmp_path).splitlines()
    assert "1 of 2 targets met." in lines
    assert lines[lines.index("## startup") + 2 :] == [
        "Seconds from the command to the first responses. `python -m benchmarks startup`",
        "",
        "| case | ours | other side | ours / other | target or bound | |",
        "|---|---|---|---|---|---|",
        "| fast | 1.5 (1.25 to 2,000) s | theirs: 3 (3 to 3) | 0.5 (0.4 to 0.6) | ≤ 2 | met |",
        "| slow | 1.5 (1.25 to 2,000) s |  |  | ≥ 10 | **missed** |",
        "| bound | 1.5 (1.25 to 2,000) s | theirs: 3 (3 to 3) | 0.5 (0.4 to 0.6) | bound 2 | 25% of it |",
        "| a case | 1.5 (1.25 to 2,000) s |  |  |  |  |",
        "",
        "- slow: Of one row.",
        "- bound: Bound: no stage waits.",
        "",
        "5 turns on 2025-03-04 at commit abc1234, 2 cores of A Processor, 23.5 GiB, no GPU; Python 3.11.9, torch 2.13.0, "
        "ray 2.60.0.",
        "",
        "Not measured yet: learner, round, rollout, judge, weight_sync, overlap, scaling.",
        "",
        "# On a GPU",
        "",
        "Not measured yet: learner, round, rollout, judge, weight_sync, overlap, startup.",
    ]


def test_a_note_of_several_rows_is_said_once(tmp_path):
    rows = [{**ROW, "case": case, "note": note} for case, note in (("a", "One."), ("b", "Two."), ("c", "One."))]
    write(tmp_path, "startup", rows)
    assert [line for line in page.page(tmp_path).splitlines() if line.endswith(("One.", "Two."))] == [
        "- a; c: One.",
        "- b: Two.",
    ]
    write(tmp_path, "startup", [{**row, "note": "Of all."} for row in rows], older="Measured otherwise.")
    lines = page.page(tmp_path).splitlines()
    assert lines[lines.index("- Measured otherwise.") + 1] == "- Of all."


def test_what_was_measured_on_a_gpu_stands_in_its_own_part_and_counts_too(tmp_path):
    write(tmp_path, "judge", [MET])
    write(tmp_path, "gpu_judge", [MISSED])
    lines = page.page(tmp_path).splitlines()
    assert "1 of 2 targets met." in lines
    at = lines.index("# On a GPU")
    assert lines[at + 2] == "## judge" and lines[at + 4].endswith("`python -m benchmarks judge --device gpu`")
    assert lines[-1] == "Not measured yet: learner, round, rollout, weight_sync, overlap, startup."


def test_programs_stand_in_the_order_in_which_they_run(tmp_path):
    for name in ("startup", "learner", "judge"):
        write(tmp_path, name, [ROW])
    heads = [line for line in page.page(tmp_path).splitlines() if line.startswith("## ")]
    assert heads == ["## learner", "## judge", "## startup"]


def test_the_page_in_the_tree_is_what_its_files_give():
    assert page.PAGE.read_text() == page.page()


def test_every_file_in_the_tree_is_of_a_program_and_has_the_fields_of_a_row():
    names = {page.file_name(name, on) for name in PROGRAMS for on in ("cpu", "gpu")}
    for path in harness.RESULTS.glob("*.json"):
        assert path.stem in names
        assert all(row.keys() == ROW.keys() for row in json.loads(path.read_text())["rows"])


def test_rows_are_written_as_the_page_reads_them():
    figures = Spread.of([1.0, 2.0, 3.0]), Spread.of([4.0]), Spread.of([0.25, 0.5, 0.75])
    row = Row.versus(figures, case="c", unit="s", target=Target(at_most=0.5), bound=Bound(ratio=1.0, why="w"))
    assert asdict(row).keys() | {"met"} == ROW.keys()
    assert (row.ours.median, row.other.median, row.ratio.low, row.met) == (2.0, 4.0, 0.25, True)


def test_two_sides_take_turns_in_changing_order():
    order = []
    speeds = iter([10.0, 20.0, 30.0, 40.0, 50.0, 60.0])

    def side(name):
        order.append(name)
        return next(speeds)

    ours, other, ratio = harness.in_turn(lambda: side("ours"), lambda: side("other"), repeats=2)
    assert order == ["ours", "other", "other", "ours", "ours", "other"]
    assert (ours.low, ours.high) == (40.0, 50.0) and (other.low, other.high) == (30.0, 60.0)
    assert (ratio.low, ratio.high) == (50.0 / 60.0, 40.0 / 30.0)


@pytest.fixture
def no_page(monkeypatch, tmp_path):
    monkeypatch.setattr(page, "PAGE", tmp_path / "README.md")
    return tmp_path / "README.md"


def test_a_program_that_fails_does_not_stop_the_others_and_is_named(no_page, capsys):
    ran = []

    def start(name, words):
        ran.append((name, tuple(words)))
        return 3 if name == "judge" else 0

    assert driver.main(["judge", "overlap"], start=start) == 1
    assert ran == [(name, ("--device", "cpu", "--only", "")) for name in ("judge", "overlap")]
    assert capsys.readouterr().err == "failed: judge\n"
    assert no_page.exists()


@pytest.mark.parametrize("words", [["--repeats", "1"], ["--only", "a"]])
def test_a_first_look_leaves_the_page_alone(no_page, words):
    ran = []
    assert driver.main(["judge", *words], start=lambda name, words: ran.append(words) or 0) == 0
    assert ran[0][-2:] == words and not no_page.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["judges"], "no program judges; there are: learner, round, rollout, judge,"),
        (["judge", "--repeats", "0"], "--repeats must be at least 1, got 0"),
    ],
)
def test_a_wrong_command_line_is_refused(words, said, capsys):
    with pytest.raises(SystemExit) as ended:
        driver.main(words, start=lambda name, words: 0)
    assert ended.value.code == 2 and said in capsys.readouterr().err


def test_a_program_that_does_not_fit_the_machine_is_left_out_and_said_why(no_page, capsys, monkeypatch):
    def why(name, *, on="cpu", num_cores=2, has_rival=True, has_gpu=False):
        given = {"num_cores": num_cores, "has_rival": has_rival, "has_gpu": has_gpu}
        return driver.unfit(PROGRAMS[name], Options(device=on), **given)

    assert [why(name) for name in PROGRAMS] == [""] * 8
    assert why("round", num_cores=1) == "it takes 2 cores, there is 1"
    assert why("learner", has_rival=False) == "trl is not installed"
    assert why("judge", on="gpu") == "torch sees no GPU"
    assert why("scaling", on="gpu", has_gpu=True) == "it has no case for a GPU"
    assert why("rollout", has_gpu=True) == "vLLM here is the one for GPUs"
    assert [name for name in PROGRAMS if not why(name, has_gpu=True)] == ["learner", "scaling"]
    monkeypatch.setattr(device, "on_gpu", lambda: False)
    monkeypatch.setattr(driver, "this_machine", lambda: Machine(num_cpus=1, num_gpus=0, memory_gib=1))
    ran = []
    assert driver.main([], start=lambda name, words: ran.append(name) or 0) == 0
    assert ran == ["rollout", "judge", "scaling", "startup"]
    assert "== overlap: left out: it takes 2 cores, there is 1" in capsys.readouterr().out


@pytest.fixture
def unconfined(monkeypatch):
    monkeypatch.setattr(device, "confine", lambda: None)
    monkeypatch.setattr(driver, "end_with_parent", lambda: None)


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_knows_its_cases_before_it_measures(unconfined, name, capsys):
    assert driver.main([name, "--only", "nope", driver.INSIDE]) == 2
    said = capsys.readouterr().err
    assert said.startswith("--only nope: no such case; there are: ")
    cases = list(importlib.import_module(f"benchmarks.{name}").cases(Options()))
    assert cases and cases[0] in said


def test_without_a_gpu_nothing_is_measured_in_its_name(unconfined, monkeypatch, capsys):
    monkeypatch.setattr(device, "on_gpu", lambda: False)
    assert driver.main(["judge", "--device", "gpu", driver.INSIDE]) == 2
    assert capsys.readouterr().err == "torch sees no GPU: not measured\n"


def test_some_cases_or_few_turns_are_not_written():
    assert Options().written and Options(repeats=5).written
    assert not Options(repeats=4).written and not Options(only="long").written
    assert Options(only="long").wants("a long prompt") and not Options(only="long").wants("memory")


def test_a_quota_without_cores_of_its_own_still_leaves_a_thread(monkeypatch):
    """Then no cores are named, as the container may run on any."""
    quota = Machine(num_cpus=2, num_gpus=0, memory_gib=1, cores=())
    monkeypatch.setattr(device, "this_machine", lambda: quota)
    assert processes.whole_machine() == Placement(num_cpus=2, cores=(), num_threads=2)


def test_both_sides_have_two_cores_and_no_gpu_whatever_the_machine_has(monkeypatch):
    given = []
    monkeypatch.setattr(device.os, "sched_getaffinity", lambda pid: {7, 3, 5, 9})
    monkeypatch.setattr(device.os, "sched_setaffinity", lambda pid, cores: given.append((pid, cores)))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    device.confine()
    assert given == [(0, [3, 5])] and device.os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_results_of_earlier_programs_do_not_make_a_tree_dirty(monkeypatch, tmp_path):
    def git(*words):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=b@c", *words], cwd=tmp_path, check=True)

    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    for file in (results / "judge.json", results.parent / "README.md", results.parent / "judge.py"):
        file.write_text("as committed")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "all")
    monkeypatch.setattr(harness, "RESULTS", results)
    commit = harness._commit()
    assert len(commit) >= 7 and "-" not in commit
    (results / "judge.json").write_text("measured anew")
    (results.parent / "README.md").write_text("made anew")
    assert harness._commit() == commit
    (results.parent / "judge.py").write_text("changed")
    assert harness._commit() == f"{commit}-dirty"


def test_what_changes_while_it_is_measured_is_not_that_commit(monkeypatch):
    monkeypatch.setattr(harness, "commit_at_start", lambda: "abc1234")
    for now, said in (("abc1234", "abc1234"), ("abc1234-dirty", "abc1234-dirty"), ("def5678", "abc1234-dirty")):
        monkeypatch.setattr(harness, "_commit", lambda now=now: now)
        assert harness.measured_commit() == said


def test_without_git_the_commit_is_unknown(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert harness._commit() == "unknown"


def test_a_processor_has_the_name_that_it_gives_itself(tmp_path):
    facts = tmp_path / "cpuinfo"
    facts.write_text("model name\t: Some Processor @ 2.50GHz\nflags\t\t: fpu\nbogomips\t: 1\n")
    assert device.processor(facts) == "Some Processor @ 2.50GHz"
