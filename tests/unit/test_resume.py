"""Runs that are killed or fail at any point, and go on, end as runs that nothing has disturbed: the same pairs, versions and
weights, for schedules, gates and points drawn at random.
"""

import hashlib
import json
import multiprocessing
import os
import random
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from rlsys import registry
from rlsys.checkpoints import checkpoint
from rlsys.checkpoints.run import Checkpoints
from rlsys.journal import Journal
from rlsys.records import (
    FitReport,
    Interval,
    PreferencePair,
    RolloutGroup,
    RoundPlan,
    RoundReport,
    ScoredGroup,
    SyncReport,
)
from rlsys.rounds import run_rounds
from rlsys.run.components import RunComponents
from rlsys.schedules.gate import GateConfig, MetricGate
from rlsys.schedules.phases import Phase, Schedule
from tests.fakes import make_prompt, make_verdict, sampled_response

registry.discover()
KILLED = 9
LONGEST_S = 60.0


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()[:8]


class Fuse:
    """Ends the process, or fails, when it has been passed so many times."""

    def __init__(self, at=None, *, kills=True):
        self.at, self.kills, self.passed, self.lock = at, kills, 0, threading.Lock()

    def __call__(self):
        time.sleep(random.random() * 0.001)  # lets the threads meet in other orders
        with self.lock:
            self.passed += 1
            if self.passed == self.at:
                if self.kills:
                    os._exit(KILLED)
                raise OSError("no space left")


class World:
    """Stages whose answers depend on the weights that the engines hold, and weights on every pair they were trained on."""

    def __init__(self, fuse, good, chairs):
        self.fuse, self.chairs = fuse, chairs
        self.version = checkpoint.load_state(good)["version"] if good else 0
        self.weights = self.engines = (good / "policy" / "weights").read_text() if good else digest("initial")

    def take(self, start, count):
        return (make_prompt(f"p{start + i}") for i in range(count))

    def stream(self, source, plan=None):
        yield from self._rollouts(source, plan) if isinstance(plan, RoundPlan) else self._feedback(source)

    def _rollouts(self, prompts, plan):
        for index, prompt in enumerate(prompts):
            self.fuse()
            texts = [digest(f"{self.engines} {prompt.id} {number}") for number in range(plan.num_candidates)]
            yield RolloutGroup(
                prompt=prompt,
                round=plan.round,
                index=index,
                policy_version=self.version,
                prompt_token_ids=np.array([1, 2], np.int32),
                responses=tuple(sampled_response(text, policy_version=self.version) for text in texts),
            )

    def _feedback(self, groups):
        for group in groups:
            self.fuse()
            scores = [float(int(rollout.text[:2], 16) % 7) for rollout in group.responses]
            yield ScoredGroup(group=group, verdicts=tuple(make_verdict(s, "ok") for s in scores))

    def count(self, round):
        return {"seconds": 0.0, "failed_workers": 0.0, "failed_held_out": 0.0}

    def fit(self, pairs, plan, *, version):
        taken = []
        for pair in pairs:
            self.fuse()
            version_of = pair.chosen.sampled and pair.chosen.sampled.policy_version
            taken.append(f"{pair.prompt.id} {pair.chosen.text} {pair.rejected.text} {version_of}")
        self.weights = digest(f"{self.weights} {taken} {version}")
        return FitReport(num_examples=len(taken), num_steps=1, loss=0.5, metrics={}, seconds=0.0)

    def save(self, directory):
        self.fuse()
        policy = Path(directory) / "policy"
        policy.mkdir()
        (policy / "weights").write_text(self.weights)
        self.fuse()

    def load(self, directory):
        self.weights = (Path(directory) / "policy" / "weights").read_text()

    def reset(self):
        self.weights = digest("initial")

    def publish(self, version):
        self.fuse()
        self.engines, self.version = self.weights, version
        proof = {"num_tensors": 1, "num_bytes": 4, "digest": "d", "max_logprob_gap": 0.0, "num_probe_tokens": 1}
        return SyncReport(version=version, seconds=0.0, **proof)

    def evaluate(self, round, *, ends=False):
        self.fuse()
        return {"chair_i": Interval(value=self.chairs[round], low=0.0, high=1.0)} if round in self.chairs else {}

    def track(self, stage, items, total):
        yield from items


class FusedJournal(Journal):
    def passing(self, fuse):
        self.fuse = fuse
        return self

    def append(self, round, *records):
        self.fuse()
        super().append(round, *records)

    def seal(self, round, what):
        self.fuse()
        super().seal(round, what)

    def finish(self, round):
        self.fuse()
        super().finish(round)
        self.fuse()


def replay_of(phase, root):
    """The options of a phase's replay."""
    if phase["replay"] != "corrections":
        return phase["replay"]
    rows = [{"prompt": "?", "response": f"bad {number}", "correction": f"good {number}"} for number in range(5)]
    (root / "corrections.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"name": "corrections", "path": str(root / "corrections.jsonl"), "share": 0.4, "minimum": 1}


class Scenario:
    """A schedule with a gate, of a seed."""

    def __init__(self, seed):
        self.draw = draw = random.Random(seed)
        self.phases = [
            {
                "rounds": draw.randint(1, 3),
                "num_prompts": draw.randint(1, 4),
                "num_candidates": draw.randint(1, 3),
                "lag": draw.choice([0, 0, 1, 2]),
                "replay": draw.choice([None, "accumulated", "corrections"]),
                "max_tokens": 16,
            }
            for _ in range(draw.randint(1, 2))
        ]
        num_rounds = sum(phase["rounds"] for phase in self.phases)
        self.chairs = {round: draw.choice([0.1, 0.3, 0.5, 0.8]) for round in range(num_rounds) if draw.random() < 0.7}
        self.gate = {"refuse": draw.random() < 0.6, "max_refusals": 100, "patience": draw.choice([None, None, 3])}
        self.keep = draw.choice([0, 1, 2])

    def run(self, root, fuse):
        """From where the folder stands, as `rlsys align` does it."""
        root.mkdir(exist_ok=True)
        journal = FusedJournal(root / "journal").passing(fuse)
        reports, good = whole_rounds(root, journal)
        gate = MetricGate(config=GateConfig(**self.gate), directions={"chair_i": -1})
        if good:
            gate.restore(checkpoint.load_state(good)["gate"])
        else:
            gate.begin({"chair_i": Interval(value=0.5, low=0.0, high=1.0)})
        schedule = Schedule([Phase(**{**phase, "replay": replay_of(phase, root)}) for phase in self.phases])
        if len(reports) >= schedule.num_rounds or (reports and gate.stops(reports[-1])):
            return
        world = World(fuse, good, self.chairs)
        (root / "initial").mkdir(exist_ok=True)
        checkpoints = Checkpoints(root / "checkpoints", initial_policy=root / "initial", good=good, keep=self.keep)
        stages = dict.fromkeys(("prompts", "rollouts", "feedback", "learner", "weights", "tracker"), world)
        parts = RunComponents(
            schedule=schedule,
            **stages,
            builder=registry.examples.make("all_pairs"),
            replay=registry.replay.make("none"),
            fingerprint="the world",
            evaluate=world.evaluate,
            gate=gate,
            journal=journal,
            checkpoints=checkpoints,
        )
        for _ in run_rounds(parts, first=len(reports), version=world.version):
            fuse()

    def in_a_process(self, root, at=None, *, kills=True):
        """How often the fuse was passed; `None` if the process did not come to its end."""
        count = root.with_suffix(".count")
        count.unlink(missing_ok=True)
        child = os.fork()
        if child == 0:
            fuse = Fuse(at, kills=kills)
            try:
                self.run(root, fuse)
                count.write_text(json.dumps(fuse.passed))
            finally:
                os._exit(0)
        end = time.monotonic() + LONGEST_S
        while os.waitpid(child, os.WNOHANG) == (0, 0):
            if time.monotonic() > end:
                os.kill(child, KILLED)
                os.waitpid(child, 0)
                raise TimeoutError(f"hangs when stopped at {at}")
            time.sleep(0.002)
        return json.loads(count.read_text()) if count.exists() else None


def whole_rounds(root, journal):
    """Reports of the rounds that are done, and the checkpoint to go on from."""
    reports = []
    for round in journal.rounds():
        found = list(journal.read(round, RoundReport))
        if not found:
            break
        reports += found
    while reports:
        good = root / "checkpoints" / f"round-{len(reports) - 1:04d}"
        if good.exists():
            return reports, good
        reports.pop()
    return [], None


def outcome(root):
    """Everything of a run that must not depend on how often it was stopped."""
    journal, found = Journal(root / "journal"), []
    for report in whole_rounds(root, journal)[0]:
        pairs = [
            (pair.prompt.id, pair.chosen.text, pair.rejected.text, pair.chosen.sampled.policy_version)
            for pair in journal.read(report.round, PreferencePair)
        ]
        weights = root / "checkpoints" / f"round-{report.round:04d}" / "policy" / "weights"
        found.append(
            (
                report.policy_version,
                report.accepted,
                report.staleness,
                report.num_responses,
                report.replayed,
                pairs,
                weights.read_text() if weights.exists() else None,
            )
        )
    return found


def stopped_runs(root, seed, kills):
    """What an undisturbed run came to, and what runs came to that were stopped a few times."""
    scenario = Scenario(seed)
    passed = scenario.in_a_process(root / "undisturbed")
    found = []
    for attempt in range(2):
        stopped = root / f"stopped-{attempt}"
        for _ in range(scenario.draw.randint(1, 3)):
            scenario.in_a_process(stopped, scenario.draw.randint(1, passed), kills=kills)
        scenario.in_a_process(stopped)
        found.append(outcome(stopped))
    return outcome(root / "undisturbed"), found


@pytest.fixture(scope="module")
def elsewhere():
    """A process without threads: it may be forked."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield pool


@pytest.mark.parametrize("kills", [True, False], ids=["killed", "failed"])
@pytest.mark.parametrize("seed", range(8))
def test_a_run_that_was_stopped_ends_as_one_that_was_not(elsewhere, tmp_path, seed, kills):
    expected, found = elsewhere.submit(stopped_runs, tmp_path, seed, kills).result()
    assert expected and found == [expected, expected]
