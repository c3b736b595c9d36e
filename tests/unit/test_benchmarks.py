"""The benchmarks' page is made of their files and of nothing else, and one failure does not stop the others."""

import importlib
import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import __main__ as runner
from benchmarks import arguments, cpu, gpu_setup, harness, processes, tables
from benchmarks.harness import Row, Spread, Target, of_the_fastest
from benchmarks.learner_work import Work
from benchmarks.profiling import shares
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
    "note": "because of physics",
    "extra": {"gb": 0.25},
    "met": False,
}


def write(folder: Path, name: str, rows: list) -> None:
    content = {"name": name, "title": f"The {name}", "repeats": 5, "measured": MEASURED, "rows": rows}
    (folder / f"{name}.json").write_text(json.dumps(content))


def test_the_page_has_a_table_per_benchmark_with_targets_notes_and_environment(tmp_path):
    write(tmp_path, "wire", [MET, MISSED, ROW])
    lines = tables.page(tmp_path).splitlines()
    at = lines.index("## wire")
    assert lines[at + 2] == "The wire. `python -m benchmarks.wire`, 5 turns."
    assert lines[at + 4 :] == [
        "| case | ours | other side | ours / other | target | |",
        "|---|---|---|---|---|---|",
        "| fast | 1.5 (1.25 to 2,000) s | theirs: 3 (3 to 3) | 0.5 (0.4 to 0.6) | ≤ 2 | met |",
        "| slow | 1.5 (1.25 to 2,000) s |  |  | ≥ 10 | **missed** |",
        "| a case | 1.5 (1.25 to 2,000) s |  |  |  |  |",
        "",
        "- fast: Checked: same bytes.",
        "- slow: because of physics. gb 0.25.",
        "",
        "Measured 2025-03-04 at abc1234 on 2 cores of A Processor, 23.5 GiB, no GPU; Python 3.11.9, torch 2.13.0, "
        "ray 2.60.0.",
        "",
        "Not measured yet: learner, rollout, critic, weight_sync, round, overlap, scaling, startup.",
        "",
        "## On a GPU",
        "",
        "| program | measures | target | |",
        "|---|---|---|---|",
        "| `benchmarks.gpu_learner` | tokens per second of full fine-tuning, share of the bfloat16 matrix rate; TRL beside it "
        "| ≥ 0.45 | not measured |",
        "| `benchmarks.gpu_rollout` | tokens per second through the actors, against bare vLLM | ≥ 0.97 | not measured |",
        "| `benchmarks.gpu_sync` | bytes per second of a weight update over ipc, against a copy on the device | ≥ 0.5 "
        "| not measured |",
        "| `benchmarks.gpu_nccl` | an NCCL broadcast between two processes on the one GPU |  | not measured |",
        "| `benchmarks.gpu_gap` | distribution of the log-probability gap between engine and learner in bfloat16 |  "
        "| not measured |",
        "| `benchmarks.gpu_round` | whole online rounds, against TRL's OnlineDPOTrainer | ≥ 5 | not measured |",
        "| `benchmarks.gpu_placement` | a round's stages at once on the GPU, against one after the other |  | not measured |",
    ]


def test_the_summary_counts_targets_and_says_why_one_was_missed(tmp_path):
    write(tmp_path, "wire", [MET, MISSED, ROW])
    lines = tables.page(tmp_path).splitlines()
    at = lines.index("## Targets")
    assert lines[at + 2] == "1 of 2 met. Missed:"
    assert lines[at + 4] == "- wire: slow: 1.5, target ≥ 10. because of physics"


def test_a_target_missed_on_a_gpu_stands_in_the_summary_too(tmp_path):
    write(tmp_path, "wire", [MET])
    write(tmp_path, "gpu_sync", [MISSED])
    lines = tables.page(tmp_path).splitlines()
    at = lines.index("## Targets")
    assert lines[at + 2] == "1 of 2 met. Missed:"
    assert lines[at + 4] == "- gpu_sync: slow: 1.5, target ≥ 10. because of physics"


@pytest.mark.parametrize("name", runner.NAMES)
def test_every_program_can_be_started_where_there_is_no_gpu(name):
    assert callable(importlib.import_module(f"benchmarks.{name}").main)


def test_what_most_rows_have_to_say_is_said_once(tmp_path):
    notes = {
        "a": "Own of a. Both warm. In turn.",
        "b": "In turn. Own of b.",
        "c": "Own of c, e.g. cold. Both warm. In turn.",
    }
    rows = [{**MISSED, "case": case, "note": note, "extra": {}} for case, note in notes.items()]
    write(tmp_path, "wire", [*rows, ROW])
    lines = tables.page(tmp_path).splitlines()
    assert [line for line in lines if line.startswith("- ")] == [
        "- wire: a: 1.5, target ≥ 10. Own of a.",
        "- wire: b: 1.5, target ≥ 10. Own of b.",
        "- wire: c: 1.5, target ≥ 10. Own of c, e.g. cold.",
        "- a: Own of a.",
        "- b: Own of b.",
        "- c: Own of c, e.g. cold.",
        "- All rows but b; a case: Both warm.",
        "- All rows but a case: In turn.",
    ]


def test_what_was_measured_on_a_gpu_stands_in_its_own_section(tmp_path):
    write(tmp_path, "gpu_sync", [ROW])
    lines = tables.page(tmp_path).splitlines()
    assert "### gpu_sync" in lines[lines.index("## On a GPU") :]
    missing = [line.split("`")[1] for line in lines if line.endswith("| not measured |")]
    assert missing == [f"benchmarks.gpu_{name}" for name in ("learner", "rollout", "nccl", "gap", "round", "placement")]


def test_benchmarks_stand_in_the_order_in_which_they_run(tmp_path):
    for name in ("startup", "learner", "wire"):
        write(tmp_path, name, [ROW])
    heads = [line for line in tables.page(tmp_path).splitlines() if line.startswith("## ")]
    assert heads == ["## How to run", "## Targets", "## learner", "## wire", "## startup", "## On a GPU"]


def test_the_page_in_the_tree_is_what_its_files_give():
    assert tables.PAGE.read_text() == tables.page()


def test_rows_are_written_as_the_page_reads_them(tmp_path):
    from dataclasses import asdict

    row = Row(case="c", ours=Spread.of([1.0, 2.0, 3.0]), unit="s", target=Target(at_most=1.0))
    assert asdict(row).keys() | {"met"} == ROW.keys()


def test_of_several_ways_to_run_a_thing_the_fastest_is_held_to_the_target():
    slow, fast = (
        Row(case=case, ours=Spread(median=speed, low=speed, high=speed), unit="tokens/s")
        for case, speed in (("eager", 10.0), ("compiled", 12.0))
    )
    held = of_the_fastest([slow, fast], Target(at_least=11.0))
    assert [(row.case, row.target, row.met) for row in held] == [
        ("eager", None, None),
        ("compiled", Target(at_least=11.0), True),
    ]


@pytest.fixture
def no_page(monkeypatch, tmp_path):
    monkeypatch.setattr(tables, "PAGE", tmp_path / "README.md")
    return tmp_path / "README.md"


def test_a_benchmark_that_fails_does_not_stop_the_others_and_is_named(no_page, capsys):
    ran = []

    def run(name, options):
        ran.append((name, tuple(options)))
        return 3 if name == "wire" else 0

    assert runner.main(["wire", "overlap", "--repeats", "1"], run=run) == 1
    assert ran == [("wire", ("--repeats", "1")), ("overlap", ("--repeats", "1"))]
    assert capsys.readouterr().err == "failed: wire\n"
    assert no_page.exists()


def test_an_unknown_name_is_refused(no_page, capsys):
    assert runner.main(["wires"], run=lambda name, options: 0) == 2
    assert capsys.readouterr().err.startswith("no benchmark wires; there are: learner, rollout, critic,")


def test_a_benchmark_that_does_not_fit_the_machine_is_left_out_and_said_why(no_page, capsys, monkeypatch):
    def why(name, *, num_cores=2, has_rival=True, has_gpu=False):
        return runner.unfit(name, num_cores=num_cores, has_rival=has_rival, has_gpu=has_gpu)

    assert [why(name) for name in tables.NAMES] == [""] * 9
    assert why("round", num_cores=1) == "it takes 2 cores, there is 1"
    assert why("learner", has_rival=False) == "trl is not installed"
    assert why("gpu_sync") == "torch sees no GPU"
    assert [why(name, has_gpu=True) for name in tables.ON_GPU] == [""] * 7
    assert why("rollout", has_gpu=True) == "vLLM here is the one for GPUs"
    assert [name for name in tables.NAMES if not why(name, has_gpu=True)] == ["learner", "wire", "scaling"]
    monkeypatch.setattr(runner, "on_gpu", lambda: False)
    monkeypatch.setattr(runner, "this_machine", lambda: Machine(num_cpus=1, num_gpus=0, memory_gib=1))
    ran = []
    assert runner.main([], run=lambda name, options: ran.append(name) or 0) == 0
    assert ran == ["rollout", "critic", "wire", "scaling", "startup"]
    assert "== overlap: left out: it takes 2 cores, there is 1" in capsys.readouterr().out


@pytest.fixture
def unconfined(monkeypatch):
    monkeypatch.setattr(arguments, "confine", lambda: None)


def test_only_some_cases_are_run_and_not_written_down(unconfined):
    options = arguments.parse("a benchmark", ["--only", "b"], cases=["ab", "bc", "cd"])
    assert (options.cases, options.written) == (["ab", "bc"], 0)
    options = arguments.parse("a benchmark", [], cases=["ab", "bc"])
    assert (options.cases, options.written) == (["ab", "bc"], 5)


def test_cases_that_there_are_not_are_refused(unconfined, capsys):
    with pytest.raises(SystemExit) as ended:
        arguments.parse("a benchmark", ["--only", "nope"], cases=["ab", "cd"])
    assert ended.value.code == 2
    assert "--only nope: no such case; there are: ab; cd" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        arguments.parse("a benchmark without cases", ["--only", "ab"])
    assert "unrecognized arguments: --only ab" in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name in runner.NAMES if name not in ("scaling", "startup")])
def test_every_program_knows_its_cases_before_it_measures(unconfined, name, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [name, "--only", "nope"])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"benchmarks.{name}").main()
    assert ended.value.code == 2 and "no such case; there are: " in capsys.readouterr().err


def test_a_quota_without_cores_of_its_own_still_leaves_a_thread(monkeypatch):
    """Then no cores are named, as the container may run on any."""
    quota = Machine(num_cpus=2, num_gpus=0, memory_gib=1, cores=())
    for module in (processes, gpu_setup):
        monkeypatch.setattr(module, "this_machine", lambda: quota)
    assert processes.whole_machine() == Placement(num_cpus=2, cores=(), num_threads=2)
    assert gpu_setup.place(0.3).num_threads == 2


def test_both_sides_have_two_cores_and_no_gpu_whatever_the_machine_has(monkeypatch):
    given = []
    monkeypatch.setattr(arguments.os, "sched_getaffinity", lambda pid: {7, 3, 5, 9})
    monkeypatch.setattr(arguments.os, "sched_setaffinity", lambda pid, cores: given.append((pid, cores)))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    arguments.parse("a benchmark", ["--repeats", "2"])
    assert given == [(0, [3, 5])] and arguments.os.environ["CUDA_VISIBLE_DEVICES"] == ""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    arguments.parse("on a GPU", [], on_two_cores=False)
    assert len(given) == 1 and arguments.os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"


def test_results_of_earlier_benchmarks_do_not_make_a_tree_dirty(monkeypatch, tmp_path):
    def git(*words):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=b@c", *words], cwd=tmp_path, check=True)

    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    for file in (results / "wire.json", results.parent / "README.md", results.parent / "wire.py"):
        file.write_text("as committed")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "all")
    monkeypatch.setattr(harness, "RESULTS", results)
    commit = harness._commit()
    assert len(commit) >= 7 and "-" not in commit
    (results / "wire.json").write_text("measured anew")
    (results.parent / "README.md").write_text("made anew")
    assert harness._commit() == commit
    (results.parent / "wire.py").write_text("changed")
    assert harness._commit() == f"{commit}-dirty"


def test_what_changes_while_it_is_measured_is_not_that_commit(monkeypatch):
    monkeypatch.setattr(harness, "commit_at_start", lambda: "abc1234")
    for now, said in (("abc1234", "abc1234"), ("abc1234-dirty", "abc1234-dirty"), ("def5678", "abc1234-dirty")):
        monkeypatch.setattr(harness, "_commit", lambda now=now: now)
        assert harness.measured_commit() == said


def test_without_git_the_commit_is_unknown(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert harness._commit() == "unknown"


def test_a_page_that_is_not_of_one_run_says_so(tmp_path):
    write(tmp_path, "wire", [ROW])
    write(tmp_path, "overlap", [ROW])
    assert "Not all from one run" not in tables.page(tmp_path)
    other = json.loads((tmp_path / "wire.json").read_text())
    other["measured"]["commit"] = "def5678"
    (tmp_path / "wire.json").write_text(json.dumps(other))
    assert "Not all from one run: wire at def5678 on A Processor; overlap at abc1234 on A Processor." in tables.page(
        tmp_path
    )


def pair(prompt_tokens, answer_tokens):
    prompt = SimpleNamespace(id=str(prompt_tokens))
    chosen, rejected = (SimpleNamespace(token_ids=[0] * answer_tokens) for _ in range(2))
    return SimpleNamespace(prompt=prompt, prompt_token_ids=[0] * prompt_tokens, chosen=chosen, rejected=rejected)


def test_the_rivals_operations_are_counted_as_it_does_them():
    """A prompt of 100 tokens and two answers of 400: 1,000 tokens apart, 900 together."""
    name = "TRL's FLOPs over ours, language model"
    shown = Work(name="with a picture").flop_ratios([pair(100, 400)])
    assert shown[name] == pytest.approx(8 * 1000 / (6 * 900))
    # Without pictures its reference pass comes before training, and is not timed.
    text = Work(name="text", picture=None).flop_ratios([pair(100, 400)])
    assert text[name] == text["TRL's FLOPs over ours"] == pytest.approx(1000 / 900)


def test_a_profile_tells_kinds_of_operations_apart():
    import torch

    values = torch.randn(400, 400)
    found = shares(lambda: [values @ values for _ in range(20)])
    assert next(iter(found)) == "matrix products" and found["matrix products"] > 0.9
    assert found["attention"] == 0.0 and sum(found.values()) == pytest.approx(1.0)
    scores = torch.randn(16, 200, 200)
    found = shares(lambda: [torch.bmm(scores.softmax(-1), scores) for _ in range(20)])
    assert next(iter(found)) == "attention" and found["attention"] > 0.9


@pytest.mark.parametrize(
    ("flags", "can"),
    [("fpu avx512f avx512_bf16", True), ("fpu amx_bf16 amx_tile", True), ("asimd bf16", True), ("fpu avx512f", False)],
)
def test_bfloat16_is_measured_where_cores_multiply_in_it(tmp_path, flags, can):
    facts = tmp_path / "cpuinfo"
    facts.write_text(f"model name\t: Some Processor @ 2.50GHz\nflags\t\t: {flags}\nbogomips\t: 1\n")
    assert cpu.multiplies_in_bf16(facts) is can
    assert cpu.name(facts) == "Some Processor @ 2.50GHz"
