"""The loop with hand-written stages: order, overlap, versions, refusals, and going on after a stop."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from rlsys import registry
from rlsys.checkpoints import checkpoint
from rlsys.checkpoints.run import Checkpoints
from rlsys.errors import CheckpointError, LearnerError
from rlsys.journal import Journal
from rlsys.prompts.fingerprint import Fingerprint
from rlsys.records import (
    FitReport,
    Interval,
    PreferencePair,
    RolloutGroup,
    RoundPlan,
    RoundReport,
    ScoredGroup,
    SyncReport,
    Turn,
)
from rlsys.rounds import run_rounds
from rlsys.run.components import RunComponents
from rlsys.schedules.gate import GateConfig, MetricGate
from rlsys.schedules.phases import Phase, Schedule
from tests.fakes import make_prompt, make_verdict, sampled_response

registry.discover()


def seal(round):
    """Of the answers to three prompts a round."""
    asked = "3 x 2 at 1, top_p 1, 16 tokens, at most 0 rounds ahead"
    prompts = Fingerprint(make_prompt(f"p{3 * round + place}") for place in range(3)).hex
    return f"groups {asked}, from prompt {3 * round} on, of the world, to prompts {prompts}"


class World:
    """Stages without models: answers are numbered by the version that gave them, longer answers score higher."""

    def __init__(self, *, chair=None, hold=None):
        self.version = 0
        self.events = []
        self.chair = chair or {}
        self.hold = hold  # generation of later prompts waits for this
        self.trained = []
        self.versions = []
        self.busy = set()  # real workers do one round's work at a time

    @contextmanager
    def alone(self, stage):
        assert stage not in self.busy, f"two rounds' {stage} at once"
        self.busy.add(stage)
        try:
            yield
        finally:
            self.busy.remove(stage)

    def take(self, start, count):
        return (make_prompt(f"p{start + i}") for i in range(count))

    def stream(self, source, plan=None):
        of_feedback = not isinstance(plan, RoundPlan)  # options of the feedback
        with self.alone("feedback" if of_feedback else "rollout"):
            yield from self._feedback(source) if of_feedback else self._rollouts(source, plan)

    def _rollouts(self, prompts, plan):
        for index, prompt in enumerate(prompts):
            if self.hold is not None and index == plan.num_prompts - 1:
                assert self.hold.wait(5.0), "training never began while generation was going on"
            self.events.append(("rollout", plan.round, index, self.version))
            texts = [f"{'x' * (n + 1)}{self.version}" for n in range(plan.num_candidates)]
            rollouts = tuple(sampled_response(text, policy_version=self.version) for text in texts)
            yield RolloutGroup(
                prompt=prompt,
                round=plan.round,
                index=index,
                policy_version=self.version,
                prompt_token_ids=rollouts[0].token_ids,
                responses=rollouts,
            )

    def _feedback(self, groups):
        for group in groups:
            scores = [float(len(rollout.text)) for rollout in group.responses]
            verdicts = tuple(make_verdict(score, "ok") for score in scores)
            yield ScoredGroup(group=group, verdicts=verdicts)

    def count(self, round):
        return {"seconds": 0.0, "failed_workers": 0.0, "failed_held_out": 0.0}

    def fit(self, pairs, plan, *, version):
        taken = []
        for pair in pairs:
            taken.append(pair)
            if self.hold is not None:
                self.hold.set()
        self.trained.append(taken)
        self.versions.append(version)
        self.events.append(("fit", plan.round))
        metrics = {"kl": 0.0}
        return FitReport(num_examples=len(taken), num_steps=1, loss=0.5, metrics=metrics, seconds=0.0)

    def save(self, directory):
        policy = Path(directory) / "policy"
        policy.mkdir()
        (policy / "weights").write_text(str(len(self.trained)))

    def load(self, directory):
        self.events.append(("load", Path(directory).name))

    def publish(self, version):
        self.events.append(("publish", version))
        self.version = version
        return SyncReport(
            version=version,
            num_tensors=1,
            num_bytes=4,
            digest="d",
            seconds=0.0,
            max_logprob_gap=0.0,
            num_probe_tokens=1,
        )

    def evaluate(self, round, *, ends=False):
        if ends:
            self.events.append(("evaluate at the end", round))
        if round not in self.chair and not ends:
            return {}
        return {"chair_i": Interval(value=self.chair.get(round, 0.3), low=0.0, high=1.0)}

    def track(self, stage, items, total):
        yield from items


def parts(world, root, phases, gate=None, replay=None):
    initial = root / "initial"
    initial.mkdir(exist_ok=True, parents=True)
    return RunComponents(
        schedule=Schedule(phases),
        prompts=world,
        fingerprint="the world",
        rollouts=world,
        feedback=world,
        builder=registry.examples.make("all_pairs"),
        replay=replay or registry.replay.make("none"),
        learner=world,
        weights=world,
        evaluate=world.evaluate,
        gate=MetricGate(config=gate or GateConfig(), directions={"chair_i": -1}),
        journal=Journal(root / "journal"),
        checkpoints=Checkpoints(root / "checkpoints", initial_policy=initial),
        tracker=world,
    )


def phase(rounds, **changes):
    return Phase(**{"rounds": rounds, "num_prompts": 3, "num_candidates": 2, **changes})


def test_a_round_reports_what_it_did_and_engines_change_version_last(tmp_path):
    world = World()
    first, second = run_rounds(parts(world, tmp_path, [phase(2)]))
    assert (first.num_prompts, first.num_responses, first.num_examples, first.staleness) == (3, 6, 3, 0)
    assert (first.policy_version, second.policy_version) == (1, 2)
    kinds = [event[:2] for event in world.events]
    assert kinds == [("rollout", 0)] * 3 + [("fit", 0), ("publish", 1)] + [("rollout", 1)] * 3 + [
        ("fit", 1),
        ("publish", 2),
    ]
    assert {pair.chosen.sampled.policy_version for pair in world.trained[1]} == {1}


def test_training_begins_while_prompts_are_still_being_answered(tmp_path):
    world = World(hold=threading.Event())
    (report,) = run_rounds(parts(world, tmp_path, [phase(1)]))
    assert report.num_examples == 3


def test_lag_one_generates_a_round_ahead_and_no_further(tmp_path):
    world = World()
    reports = list(run_rounds(parts(world, tmp_path, [phase(4, lag=1)])))
    assert [report.staleness for report in reports] == [0, 1, 1, 1]
    versions = {event[1]: event[3] for event in world.events if event[0] == "rollout"}
    assert versions == {0: 0, 1: 0, 2: 1, 3: 2}


class Slow(Checkpoints):
    """A commit that waits until the next round's last answer was asked for, and looks at what the journal has sealed."""

    def __init__(self, world, root, error=None):
        super().__init__(root / "checkpoints", initial_policy=root / "initial")
        self.world, self.root, self.error = world, root, error
        self.sealed = []

    def commit(self, report, **options):
        following = report.round + 1
        if following < 3:
            assert self.world.answered.setdefault(following, threading.Event()).wait(5.0), (
                "nothing is answered meanwhile"
            )
            time.sleep(0.05)  # time enough for a seal that does not wait
            log = Journal(self.root / "journal")
            self.sealed.append(log.is_sealed(following, seal(following)))
        if self.error is not None:
            raise self.error
        return super().commit(report, **options)


class Watched(World):
    def __init__(self, **options):
        super().__init__(**options)
        self.answered = {}

    def _rollouts(self, prompts, plan):
        yield from super()._rollouts(prompts, plan)
        self.answered.setdefault(plan.round, threading.Event()).set()


def test_the_next_round_is_answered_while_its_weights_are_put_on_disk_and_sealed_after(tmp_path):
    world = Watched()
    made = parts(world, tmp_path, [phase(3, max_tokens=16)])
    slow = Slow(world, tmp_path)
    reports = list(run_rounds(replace(made, checkpoints=slow)))
    assert [report.staleness for report in reports] == [0, 0, 0]
    assert slow.sealed == [False, False]
    assert [made.journal.is_sealed(round, seal(round)) for round in range(3)] == [True] * 3


def test_answers_of_weights_that_never_came_to_disk_are_not_taken_again(tmp_path):
    world = Watched()
    made = parts(world, tmp_path, [phase(3, max_tokens=16)])
    with pytest.raises(OSError, match="no space left"):
        list(run_rounds(replace(made, checkpoints=Slow(world, tmp_path, OSError("no space left")))))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("sampling", "judging", "saving"))]
    again = World()
    list(run_rounds(parts(again, tmp_path, [phase(2, max_tokens=16)])))
    assert {event[1:] for event in again.events if event[0] == "rollout"} == {(1, index, 1) for index in range(3)}


def test_answers_are_not_sealed_before_the_report_of_the_round_that_made_their_weights(tmp_path):
    """A run whose last report is missing goes on one round earlier, and trains those weights again."""

    class Late(Journal):
        def append(self, round, *records):
            if isinstance(records[0], RoundReport) and round == 0:
                assert world.answered.setdefault(1, threading.Event()).wait(5.0)
                time.sleep(0.05)
                sealed.append(self.is_sealed(1, seal(1)))
            super().append(round, *records)

    world, sealed = Watched(), []
    made = parts(world, tmp_path, [phase(2, max_tokens=16)])
    list(run_rounds(replace(made, journal=Late(tmp_path / "journal"))))
    assert sealed == [False]


def test_a_run_that_stops_answers_nothing_more(tmp_path):
    world = World(chair={0: 0.2, 1: 0.3})
    assert len(list(run_rounds(parts(world, tmp_path, [phase(5)], GateConfig(patience=1))))) == 2
    assert {event[1] for event in world.events if event[0] == "rollout"} == {0, 1}


def test_a_worker_that_is_replaced_waits_for_its_weights_and_reads_them_in_peace(tmp_path):
    world, may_write = World(), threading.Event()

    class Writer:
        def save(self, directory):
            assert may_write.wait(5.0)
            world.save(directory)

    checkpoints = parts(world, tmp_path, [phase(1)]).checkpoints
    assert checkpoints.current() == (tmp_path / "initial", 0)
    with ThreadPoolExecutor(2) as executor:
        checkpoints.stage(Writer(), 1, executor=executor)
        asked = executor.submit(checkpoints.current)
        time.sleep(0.05)
        assert not asked.done()
        may_write.set()
        policy, version = asked.result(5.0)
    (report,) = run_rounds(parts(World(), tmp_path / "other", [phase(1)]))
    checkpoints.commit(report, gate=MetricGate(config=GateConfig()), cursor=3, started=0.0)
    assert version == 1
    assert (policy / "weights").read_text() == "0"
    assert checkpoints.current() == (tmp_path / "checkpoints" / "round-0000" / "policy", 1)
    checkpoints.close()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["round-0000"]


def test_a_file_system_without_hard_links_gets_copies(tmp_path, monkeypatch):
    def unable(source, target):
        raise OSError("no hard links here")

    monkeypatch.setattr("os.link", unable)
    list(run_rounds(parts(World(chair={0: 0.2, 1: 0.4}), tmp_path, [phase(2)], GateConfig(refuse=True))))
    weights = [(tmp_path / "checkpoints" / f"round-000{round}" / "policy" / "weights").read_text() for round in (0, 1)]
    assert weights == ["1", "1"]


def test_a_worker_may_still_be_reading_refused_weights_when_the_learner_goes_back(tmp_path):
    world = World()
    world.reset = lambda: world.trained.clear()
    checkpoints = Checkpoints(tmp_path / "checkpoints", initial_policy=tmp_path / "initial")
    with ThreadPoolExecutor(1) as executor:
        world.trained.append([])
        checkpoints.stage(world, 1, executor=executor)
        refused, version = checkpoints.current()
        checkpoints.go_back(world, 2)
        assert version == 1 and (refused / "weights").read_text() == "1"
        policy, version = checkpoints.current()
        assert version == 2 and (policy / "weights").read_text() == "0"
        checkpoints.stage(world, 3, executor=executor)
        assert checkpoints.current()[1] == 3
    assert not refused.exists() and not policy.exists()
    checkpoints.close()
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_weights_that_were_written_where_nobody_sees_them_are_no_checkpoint(tmp_path):
    """As of a learner on a machine with another disk."""
    world = World()
    world.save = lambda directory: None
    checkpoints = Checkpoints(tmp_path / "checkpoints", initial_policy=tmp_path / "initial")
    with ThreadPoolExecutor(1) as executor:
        checkpoints.stage(world, 1, executor=executor)
        with pytest.raises(CheckpointError, match=r"must be on storage that every node sees \(output\.runs_dir\)"):
            checkpoints.current()


def test_weights_that_could_not_be_written_end_the_run(tmp_path):
    class Full(World):
        def save(self, directory):
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        list(run_rounds(parts(Full(), tmp_path, [phase(2)])))


def test_a_refused_round_goes_back_to_the_last_good_weights(tmp_path):
    world = World(chair={0: 0.2, 1: 0.4, 2: 0.1})
    made = parts(world, tmp_path, [phase(3)], GateConfig(refuse=True))
    reports = list(run_rounds(made))
    assert [report.accepted for report in reports] == [True, False, True]
    assert ("load", "round-0000") in world.events
    assert [report.policy_version for report in reports] == [1, 3, 4]
    weights = [(tmp_path / "checkpoints" / f"round-000{r}" / "policy" / "weights").read_text() for r in range(3)]
    assert weights == ["1", "1", "3"]


def test_patience_ends_a_run(tmp_path):
    world = World(chair={0: 0.2, 1: 0.3, 2: 0.3, 3: 0.1})
    made = parts(world, tmp_path, [phase(5)], GateConfig(patience=2))
    assert len(list(run_rounds(made))) == 3


def test_accumulated_data_brings_the_earlier_pairs_again(tmp_path):
    world = World()
    list(run_rounds(parts(world, tmp_path, [phase(3, replay="accumulated")])))
    assert [len(pairs) for pairs in world.trained] == [3, 6, 9]
    assert [pair.round for pair in world.trained[2]] == [2] * 3 + [0] * 3 + [1] * 3


def texts(world):
    """Chosen texts of every round that was trained, in order; those of the round's own are of one prompt each."""
    return [" ".join(pair.chosen.text for pair in pairs) for pairs in world.trained]


def test_offline_pairs_go_on_from_round_to_round_and_in_a_resumed_run(tmp_path):
    rows = [{"prompt": "?", "response": f"bad {n}", "correction": f"c{n}"} for n in range(5)]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"path": str(tmp_path / "c.jsonl"), "share": 0.4, "shuffle": False}
    corrections = registry.replay.make("corrections", **options)

    undisturbed = World()
    reports = list(run_rounds(parts(undisturbed, tmp_path / "a", [phase(3)], replay=corrections)))
    assert texts(undisturbed) == ["xx0 xx0 c0 xx0 c1", "xx1 xx1 c2 xx1 c3", "xx2 xx2 c4 xx2 c0"]
    assert [(report.num_examples, report.replayed) for report in reports] == [(3, {"corrections": 2})] * 3
    journal = Journal(tmp_path / "a" / "journal")
    assert [len(list(journal.read(round, PreferencePair))) for round in range(3)] == [3, 3, 3], "its own alone"

    going = run_rounds(parts(World(), tmp_path / "b", [phase(3)], replay=corrections))
    next(going)
    going.close()
    again = World()
    again.version = 1
    list(run_rounds(parts(again, tmp_path / "b", [phase(3)], replay=corrections), first=1, version=1))
    assert texts(again) == texts(undisturbed)[1:]


def test_a_phase_chooses_its_replay_and_the_learner_is_told(tmp_path):
    class Told(World):
        def fit(self, pairs, plan, *, version):
            told.append(plan.brings_others)
            return super().fit(pairs, plan, version=version)

    told = []
    reports = list(run_rounds(parts(Told(), tmp_path, [phase(2), phase(1, replay="accumulated")])))
    assert told == [False, False, True]
    assert [report.replayed for report in reports] == [{}, {}, {"earlier_rounds": 6}]


def test_a_run_that_goes_on_takes_the_pairs_that_were_sampled_ahead(tmp_path):
    undisturbed = World()
    (tmp_path / "a").mkdir()
    list(run_rounds(parts(undisturbed, tmp_path / "a", [phase(4, lag=1)])))

    stopped = World()
    (tmp_path / "b").mkdir()
    going = run_rounds(parts(stopped, tmp_path / "b", [phase(4, lag=1)]))
    next(going), next(going)
    going.close()

    again = World()
    again.version = 2
    list(run_rounds(parts(again, tmp_path / "b", [phase(4, lag=1)]), first=2, version=2))
    assert again.trained == undisturbed.trained[2:]


def test_nothing_is_published_when_a_round_ahead_could_not_be_answered(tmp_path):
    """The resumed run would answer its prompts with weights that they were not to come from."""

    class Full(World):
        def _rollouts(self, prompts, plan):
            for group in super()._rollouts(prompts, plan):
                if plan.round == 2 and group.index == 1:
                    raise OSError("no space left")
                yield group

    undisturbed, stopped = World(), Full()
    list(run_rounds(parts(undisturbed, tmp_path / "a", [phase(4, lag=1)])))
    with pytest.raises(OSError, match="no space left"):
        list(run_rounds(parts(stopped, tmp_path / "b", [phase(4, lag=1)])))
    assert [event[1] for event in stopped.events if event[0] == "publish"] == [1]
    again = World()
    again.version = 1
    list(run_rounds(parts(again, tmp_path / "b", [phase(4, lag=1)]), first=1, version=1))
    assert again.trained == undisturbed.trained[1:]


def test_answers_that_were_sampled_ahead_are_not_taken_by_a_run_that_may_not(tmp_path):
    going = run_rounds(parts(World(), tmp_path, [phase(4, lag=1)]))
    next(going), next(going)
    going.close()
    again = World()
    again.version = 2
    reports = list(run_rounds(parts(again, tmp_path, [phase(4)]), first=2, version=2))
    assert [report.staleness for report in reports] == [0, 0]


def test_everything_that_passed_is_in_the_journal(tmp_path):
    world = World()
    list(run_rounds(parts(world, tmp_path, [phase(1)])))
    journal = Journal(tmp_path / "journal")
    assert [group.index for group in journal.read(0, RolloutGroup)] == [0, 1, 2]
    assert list(journal.read(0, PreferencePair)) == world.trained[0]
    assert len(list(journal.read(0, ScoredGroup))) == 3


def test_an_error_of_the_learner_ends_the_run_and_its_threads(tmp_path):
    class Broken(World):
        def fit(self, pairs, plan, *, version):
            next(iter(pairs))
            raise LearnerError("rank 1 died")

    with pytest.raises(LearnerError, match="rank 1 died"):
        list(run_rounds(parts(Broken(), tmp_path, [phase(2, num_prompts=500)])))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("sampling")]


def test_answers_are_taken_again_only_if_they_were_asked_for_alike(tmp_path):
    rounds = run_rounds(parts(World(), tmp_path, [phase(2)]))
    next(rounds)
    rounds.close()
    for changes, again in (({}, False), ({"lr": 1e-3}, False), ({"num_candidates": 4}, True), ({"top_p": 0.9}, True)):
        world = World()
        list(run_rounds(parts(world, tmp_path, [phase(1, **changes)])))
        assert bool([event for event in world.events if event[0] == "rollout"]) == again, changes


@pytest.mark.parametrize(
    ("changed", "again"),
    [
        ({}, False),
        ({"fingerprint": "another world"}, True),
        ({"schedule": Schedule([phase(1)]).going_on(0, 1)}, True),
    ],
    ids=["nothing", "prompts, seed or policy", "place in the prompts"],
)
def test_answers_are_taken_again_only_if_they_are_to_the_same_prompts_and_of_the_same_run(tmp_path, changed, again):
    rounds = run_rounds(parts(World(), tmp_path, [phase(1)]))
    next(rounds)
    rounds.close()
    world = World()
    list(run_rounds(replace(parts(world, tmp_path, [phase(1)]), **changed)))
    assert bool([event for event in world.events if event[0] == "rollout"]) == again


def test_a_checkpoint_says_where_the_prompts_go_on(tmp_path):
    list(run_rounds(parts(World(), tmp_path, [phase(2), phase(1, num_prompts=5)])))
    states = [checkpoint.load_state(tmp_path / "checkpoints" / f"round-000{round}") for round in range(3)]
    assert [state["cursor"] for state in states] == [3, 6, 11]


def test_staleness_counts_rounds_though_a_refusal_uses_two_versions(tmp_path):
    world = World(chair={0: 0.2, 1: 0.4, 2: 0.5, 3: 0.1, 4: 0.1, 5: 0.1})
    made = parts(world, tmp_path, [phase(6, lag=2)], GateConfig(refuse=True))
    reports = list(run_rounds(made))
    assert [report.accepted for report in reports] == [True, False, False, True, True, True]
    assert [report.policy_version for report in reports] == [1, 3, 5, 6, 7, 8]
    assert world.versions == [0, 1, 3, 5, 6, 7]
    assert [pairs[0].chosen.sampled.policy_version for pairs in world.trained] == [0, 0, 0, 1, 3, 5]
    assert [report.staleness for report in reports] == [0, 1, 2, 2, 2, 2]


def test_staleness_of_a_run_that_goes_on_is_that_of_one_that_was_not_stopped(tmp_path):
    chair = {0: 0.2, 1: 0.4, 2: 0.5, 3: 0.1}
    going = run_rounds(parts(World(chair=chair), tmp_path, [phase(5, lag=2)], GateConfig(refuse=True)))
    next(going), next(going)
    going.close()
    again = World(chair=chair)
    again.version = 3
    made = parts(again, tmp_path, [phase(5, lag=2)], GateConfig(refuse=True))
    made.gate.best = 0.2
    good = tmp_path / "checkpoints" / "round-0001"
    made = replace(made, checkpoints=Checkpoints(good.parent, initial_policy=tmp_path / "initial", good=good))
    reports = list(run_rounds(made, first=2, version=3))
    assert [pairs[0].chosen.sampled.policy_version for pairs in again.trained] == [0, 1, 3]
    assert [report.staleness for report in reports] == [2, 2, 2]


def test_weights_change_only_when_a_later_round_is_judged(tmp_path):
    class Slow(World):
        def _feedback(self, groups):
            for scored in super()._feedback(groups):
                time.sleep(0.005)
                self.events.append(("judged", scored.group.round, self.version))
                yield scored

    world = Slow()
    list(run_rounds(parts(world, tmp_path, [phase(5, lag=2, num_prompts=4)])))
    versions = {}
    for event in world.events:
        if event[0] == "judged":
            versions.setdefault(event[1], set()).add(event[2])
    assert versions == {0: {0}, 1: {0}, 2: {0}, 3: {1}, 4: {2}}


def test_nothing_is_published_when_a_round_ahead_could_not_be_judged(tmp_path):
    class Broken(World):
        def _feedback(self, groups):
            for scored in super()._feedback(groups):
                if scored.group.round == 1:
                    raise OSError("no space left")
                yield scored

    world = Broken()
    with pytest.raises(OSError, match="no space left"):
        list(run_rounds(parts(world, tmp_path, [phase(3, lag=1)])))
    assert not [event for event in world.events if event[0] == "publish"]


class Drifting(World):
    """Three nats further from the initial policy every round."""

    def fit(self, pairs, plan, *, version):
        found = super().fit(pairs, plan, version=version)
        return replace(found, metrics={"kl": 0.0, "kl_initial": 3.0 * (plan.round + 1)})


@pytest.mark.parametrize("lag", [0, 1])
def test_the_round_that_a_gate_stops_a_run_with_is_evaluated(tmp_path, lag):
    world = Drifting()
    reports = list(run_rounds(parts(world, tmp_path, [phase(5, lag=lag)], GateConfig(kl_budget=5.0))))
    assert [report.eval.get("chair_i") for report in reports] == [None, Interval(value=0.3, low=0.0, high=1.0)]
    assert [event for event in world.events if event[0] == "evaluate at the end"] == [("evaluate at the end", 1)]
    assert list(Journal(tmp_path / "journal").read(1, RoundReport)) == [reports[-1]]


def test_the_evaluation_of_the_last_round_may_refuse_it(tmp_path):
    world = Drifting(chair={0: 0.1})
    gate = GateConfig(kl_budget=5.0, refuse=True)
    reports = list(run_rounds(parts(world, tmp_path, [phase(5)], gate)))
    assert [report.accepted for report in reports] == [True, False]
    assert [report.policy_version for report in reports] == [1, 3]


def test_answers_to_prompts_that_were_edited_since_are_not_taken_again(tmp_path):
    class Edited(World):
        def take(self, start, count):
            for prompt in super().take(start, count):
                yield replace(prompt, turns=(Turn(role="user", text="what else is there ?"),))

    rounds = run_rounds(parts(World(), tmp_path, [phase(2)]))
    next(rounds)
    rounds.close()
    for world, again in ((World(), False), (Edited(), True)):
        list(run_rounds(parts(world, tmp_path, [phase(1)])))
        assert bool([event for event in world.events if event[0] == "rollout"]) == again


def test_the_learner_is_told_the_version_it_starts_from(tmp_path):
    world = World(chair={0: 0.2, 1: 0.4, 2: 0.1})
    list(run_rounds(parts(world, tmp_path, [phase(3, lag=1)], GateConfig(refuse=True))))
    assert world.versions == [0, 1, 3]
    resumed = World()
    list(run_rounds(parts(resumed, tmp_path, [phase(4, lag=1)]), first=3, version=4))
    assert resumed.versions == [4]
