"""The workers as plain classes, on the scripted engine; and ordered runs over a pool that is all in one thread."""

import time
from dataclasses import replace

import numpy as np
import pytest

from actors.engines.scripted import END, Scripted
from actors.feedback import FeedbackStage
from actors.ordered import OrderedRun, Task
from actors.partial import PartialResult
from actors.roles import EngineWorker, Respondent
from actors.rollout import RolloutWorker
from rlsys import wire
from rlsys.common.streams import Stream
from rlsys.conversations.single_turn import candidates_per_temperature, merged
from rlsys.errors import ConfigError, WorkerDied
from rlsys.feedback.critique import CritiqueFeedback
from rlsys.records import Completion, Image, Prompt, RolloutGroup, Sampling, Turn, Verdict
from rlsys.seeding import child_seed
from tests.fakes import make_ask, make_plan

PICTURE = Image(pixels=np.zeros((2, 2, 3), np.uint8))


def prompts(count):
    return [Prompt(id=f"p{i}", turns=(Turn(role="user", text=f"q{i}"),), images=(PICTURE,)) for i in range(count)]


def scripted(seed=0, version=0):
    return RolloutWorker(engine=Scripted(), model="", version=version, seed=seed)


def records(parts, record):
    """Of a call, all parts together."""
    return [one for part in parts for one in part.records(record)]


def answer(worker, asked, plan, start=0):
    return records(worker.rollout(wire.encode_many(asked), plan, start), RolloutGroup)


# ---------------------------------------------------------------- rollouts


def test_candidates_are_shared_between_temperatures():
    assert candidates_per_temperature(8, 3) == [3, 3, 2]
    assert candidates_per_temperature(1, 2) == [1, 0]


def test_identical_candidates_of_one_temperature_are_kept_once_with_their_count():
    """Of two temperatures they stay apart: what a response says of its sampling is true of all its copies."""

    def completion(*tokens):
        return Completion(
            text="x",
            token_ids=np.array(tokens, np.int32),
            logprobs=np.zeros(len(tokens), np.float32),
            finish_reason="stop",
        )

    hot, cold = Sampling(temperature=1.0, seed=5), Sampling(temperature=0.5, seed=6)
    asked = [(completion(1, 2), hot), (completion(3), hot), (completion(1, 2), hot), (completion(1, 2), cold)]
    found = merged((one, sampling, 7) for one, sampling in asked)
    assert [(one.token_ids.tolist(), one.count, one.sampled.temperature, one.sampled.seed) for one in found] == [
        ([1, 2], 2, 1.0, 5),
        ([3], 1, 1.0, 5),
        ([1, 2], 1, 0.5, 6),
    ]
    assert [one.id for one in found] == ["0", "1", "2"] and {one.sampled.policy_version for one in found} == {7}


def test_a_group_says_where_it_comes_from_and_leaves_its_images_behind():
    worker = scripted(seed=9, version=4)
    groups = answer(worker, prompts(3), make_plan(round=6, num_candidates=5, temperatures=(0.5, 1.0)), start=32)
    assert [group.index for group in groups] == [32, 33, 34]
    for group, prompt in zip(groups, prompts(3), strict=True):
        assert (group.round, group.policy_version, group.failed) == (6, 4, 0)
        assert group.prompt.id == prompt.id and group.prompt.images == ()
        assert sum(rollout.count for rollout in group.responses) == 5
        seeds = {0.5: child_seed(9, "rollout", 6, prompt.id, 0), 1.0: child_seed(9, "rollout", 6, prompt.id, 1)}
        assert all(rollout.sampled.seed == seeds[rollout.sampled.temperature] for rollout in group.responses)


def test_a_temperature_without_a_share_is_not_asked():
    worker = scripted()
    [group] = answer(worker, prompts(1), make_plan(num_candidates=1, temperatures=(0.5, 1.0)))
    assert [rollout.sampled.temperature for rollout in group.responses] == [0.5] and group.failed == 0


def test_answers_depend_on_seed_round_and_prompt_only():
    def texts(seed, round, chosen):
        groups = answer(scripted(seed), chosen, make_plan(round=round, max_tokens=30))
        return {group.prompt.id: [rollout.text for rollout in group.responses] for group in groups}

    three = texts(1, 0, prompts(3))
    assert texts(1, 0, prompts(3)[2:]) == {"p2": three["p2"]}
    assert texts(2, 0, prompts(3)) != three and texts(1, 1, prompts(3)) != three


def test_the_scripted_engine_ends_answers_that_are_not_cut():
    [group] = answer(scripted(), prompts(1), make_plan(num_candidates=50))
    assert {rollout.finish_reason for rollout in group.responses} == {"stop", "length"}
    for rollout in group.responses:
        assert (rollout.token_ids[-1] == END) == (rollout.finish_reason == "stop")
    with pytest.raises(ConfigError, match=r"engine\.vocabulary must be above 2, got 2"):
        Scripted(vocabulary=2)


# ---------------------------------------------------------------- verdicts


class InProcess:
    """The engines of one role in this process; keeps how many questions came in each call."""

    def __init__(self, worker, loses=()):
        self.worker, self.calls, self.loses = worker, [], loses

    def ask(self, frame, num_asks):
        self.calls.append(num_asks)
        if len(self.calls) - 1 in self.loses:
            yield None
        else:
            yield from self.worker.respond(frame)


def engine_role(**options):
    return InProcess(EngineWorker(engine=Scripted(), model="", raw_logits=True), **options)


def judged(groups, feedback, role, batch):
    stage = FeedbackStage(feedback=feedback, roles={"judge": role}, batch=batch)
    found = list(stage.stream(groups))
    assert [scored.group for scored in found] == groups
    return [scored.verdicts for scored in found]


def test_one_call_judges_many_groups_and_gives_each_its_verdicts():
    groups = answer(scripted(), prompts(4), make_plan(num_candidates=3))
    feedback = CritiqueFeedback(num_critiques=2, temperature=1.0, max_tokens=30)
    role = engine_role()
    together = judged(groups, feedback, role, batch=3)
    assert role.calls == [sum(len(group.responses) for group in some) for some in (groups[:3], groups[3:])]
    assert together == judged(groups, feedback, engine_role(), batch=1)
    assert [len(verdicts) for verdicts in together] == [len(group.responses) for group in groups]
    read = [sum(critique.score is not None for critique in one.critiques) for some in together for one in some]
    failed = [one.failed for some in together for one in some]
    assert [number + lost for number, lost in zip(read, failed, strict=True)] == [2] * len(read) and any(read)


def test_a_group_that_asks_nothing_has_its_place_among_the_verdicts():
    groups = answer(scripted(), prompts(3), make_plan(num_candidates=2))
    groups[1] = replace(groups[1], responses=(), failed=2)
    found = judged(groups, CritiqueFeedback(), engine_role(), batch=2)
    assert [len(verdicts) for verdicts in found] == [len(group.responses) for group in groups]
    assert found[1] == ()


def test_judgements_that_did_not_come_are_counted_and_absent():
    groups = answer(scripted(), prompts(2), make_plan(num_candidates=2))
    first, second = judged(groups, CritiqueFeedback(num_critiques=1), engine_role(loses=(0,)), batch=1)
    assert all((one.score, one.failed, one.critiques) == (None, 1, ()) for one in first)
    assert all(len(one.critiques) == 1 for one in second)


def test_a_round_may_set_options_of_the_feedback():
    groups = answer(scripted(), prompts(1), make_plan(num_candidates=2))
    stage = FeedbackStage(feedback=CritiqueFeedback(seed=3), roles={"judge": engine_role()})
    options = {"num_critiques": 2, "temperature": 1.0}
    (scored,) = stage.stream(groups, options)
    assert all(len(verdict.critiques) == 2 for verdict in scored.verdicts)


class TwoRoles:
    """Asks one role, then another one as many questions as came back."""

    roles = ("judge", "labeller")

    def judge(self, group):
        first = yield [make_ask(f"{group.prompt.id} {i}", role="judge") for i in range(len(group.responses))]
        again = yield [make_ask(one.completions[0].text, role="labeller") for one in first]
        return tuple(Verdict(scores={"score": float(len(one.completions[0].text))}) for one in again)


def test_a_program_may_ask_two_roles_in_two_waves():
    groups = answer(scripted(), prompts(3), make_plan(num_candidates=2))
    roles = {"judge": engine_role(), "labeller": engine_role()}
    found = list(FeedbackStage(feedback=TwoRoles(), roles=roles, batch=3).stream(groups))
    asked = [sum(len(group.responses) for group in groups)]
    assert roles["judge"].calls == roles["labeller"].calls == asked
    alone = [
        one for group in groups for one in FeedbackStage(feedback=TwoRoles(), roles=roles, batch=1).stream([group])
    ]
    assert [scored.verdicts for scored in found] == [scored.verdicts for scored in alone]


def test_a_role_without_an_engine_is_named():
    groups = answer(scripted(), prompts(1), make_plan(num_candidates=2))
    with pytest.raises(ConfigError, match="no engine has the role 'labeller'; there are: judge"):
        list(FeedbackStage(feedback=TwoRoles(), roles={"judge": engine_role()}).stream(groups))


def test_a_wave_in_calls_of_a_size_keeps_its_order():
    asks = [make_ask(f"q{number}", max_tokens=9) for number in range(10)]
    role = engine_role()
    whole = [one for some in Respondent({"judge": role})(asks) for one in some]
    cut = [one for some in Respondent({"judge": role}, size=3, num_workers=2)(asks) for one in some]
    assert sorted(role.calls) == [1, 3, 3, 3, 10]
    texts = [[one.completions[0].text for one in found] for found in (whole, cut)]
    assert texts[0] == texts[1]


def test_two_roles_of_one_wave_answer_in_the_order_of_the_questions():
    asks = [make_ask(f"q{number}", role=("judge", "labeller")[number % 2]) for number in range(6)]
    roles = {"judge": engine_role(), "labeller": engine_role()}
    (found,) = Respondent(roles)(asks)
    alone = [next(iter(Respondent(roles)([ask])))[0] for ask in asks]
    assert [one.completions[0].text for one in found] == [one.completions[0].text for one in alone]


# ---------------------------------------------------------------- parts


def test_groups_are_handed_over_when_their_last_answer_is_there():
    plan = make_plan(num_candidates=4, temperatures=(0.5, 1.0))  # two requests a prompt
    whole = answer(scripted(), prompts(4), plan, start=8)
    worker = RolloutWorker(engine=Scripted(at_once=3), model="", version=0, seed=0)
    parts = list(worker.rollout(wire.encode_many(prompts(4)), plan, 8))
    assert [part.num_items for part in parts] == [1, 2, 1]
    assert all(part.seconds >= 0 for part in parts)
    assert records(parts, RolloutGroup) == whole


def test_what_was_delivered_before_is_not_handed_over_again():
    plan = make_plan(num_candidates=3)
    worker = RolloutWorker(engine=Scripted(at_once=2), model="", version=0, seed=0)
    parts = list(worker.rollout(wire.encode_many(prompts(7)), plan, 0, 3))
    assert [part.num_items for part in parts] == [1, 2, 1]
    assert [group.index for group in records(parts, RolloutGroup)] == [3, 4, 5, 6]


def test_busy_seconds_are_those_between_the_parts():
    worker = RolloutWorker(engine=Scripted(at_once=1, seconds_per_call=0.2), model="", version=0, seed=0)
    call = worker.rollout(wire.encode_many(prompts(2)), make_plan(), 0)
    first = next(call)
    time.sleep(0.3)
    second = next(call)
    assert 0.1 <= first.seconds < 0.3 and 0.1 <= second.seconds < 0.3


# ---------------------------------------------------------------- ordered runs


class WorkerHandle:
    starting = None

    def __init__(self, pool, number):
        self.pool, self.number, self.name = pool, number, f"worker-{number}"

    def arrived(self):
        return True

    def stream(self, method, *arguments):
        number, skip = arguments
        stream = (self.number, len(self.pool.begun))
        self.pool.begun.append(number)
        self.pool.left[stream] = self.pool.script(number)[skip:]
        return stream


class Pool:
    """Its newest call speaks first; every result is a part of its own. A call dies where its script says so, once for
    every time that it is said."""

    deadline_s = 60.0
    speaks = staticmethod(max)

    def __init__(self, count, scripts=None):
        self.workers = [WorkerHandle(self, number) for number in range(count)]
        self.scripts, self.begun, self.left, self.restarted = scripts or {}, [], {}, []

    def script(self, number):
        return self.scripts.get(number, ["a", "b"])

    def wait(self, streams, timeout_s):
        return [self.speaks(streams, key=lambda stream: stream[1])]

    def part(self, stream):
        if not self.left[stream]:
            return None
        result = self.left[stream].pop(0)
        if result == "death":
            self.scripts[self.begun[stream[1]]].remove("death")
            raise WorkerDied("dead")
        return PartialResult(num_items=1, frame=result, seconds=0.0)

    def restart(self, slot, name):
        self.restarted.append(slot.number)


def run(pool, source, window=4):
    tasks = Stream((Task(key=number, arguments=(number,), num_items=2) for number in source), ahead=2)
    for number, part in OrderedRun(pool, "anything", tasks, window=window).results():
        yield number, part and part.frame


def test_results_come_in_the_order_of_the_tasks_whatever_finishes_first():
    pool = Pool(3)
    assert list(run(pool, range(10))) == [(number, letter) for number in range(10) for letter in "ab"]
    assert pool.restarted == []


def test_parts_of_the_oldest_task_are_delivered_while_it_is_in_work():
    pool = Pool(1)
    results = run(pool, range(2))
    assert next(results) == (0, "a")
    assert pool.left == {(0, 0): ["b"]}


def test_a_task_whose_worker_died_is_done_again_and_its_result_keeps_its_place():
    pool = Pool(2, scripts={1: ["death", "a", "b"]})
    assert list(run(pool, range(3))) == [(0, "a"), (0, "b"), (1, "a"), (1, "b"), (2, "a"), (2, "b")]
    assert pool.begun.count(1) == 2 and len(pool.restarted) == 1


def test_what_came_before_its_worker_died_is_not_delivered_twice():
    pool = Pool(1, scripts={0: ["a", "death", "b"]})
    assert list(run(pool, range(2))) == [(0, "a"), (0, "b"), (1, "a"), (1, "b")]
    assert pool.begun == [0, 0, 1]


def test_a_task_that_kills_twice_ends_with_what_came():
    pool = Pool(2, scripts={0: ["a", "death", "death", "b"], 1: ["death", "death", "a", "b"]})
    assert list(run(pool, range(3))) == [(0, "a"), (0, None), (1, None), (2, "a"), (2, "b")]
    assert len(pool.restarted) == 4


def test_a_call_that_ends_too_early_is_an_error():
    with pytest.raises(RuntimeError, match="anything ended after 1 of 2 results"):
        list(run(Pool(1, scripts={0: ["a"]}), range(1)))


def test_a_worker_that_spoke_in_time_is_not_taken_for_dead_because_nobody_listened():
    pool = Pool(2)
    pool.deadline_s, pool.speaks = 0.2, min
    results = run(pool, range(4))
    found = [next(results)]
    assert pool.left == {(0, 0): ["b"], (1, 1): ["a", "b"]}  # both have more to say
    time.sleep(0.3)
    assert found + list(results) == [(number, letter) for number in range(4) for letter in "ab"]
    assert pool.restarted == []


def test_who_has_started_is_not_waited_for_while_there_is_nothing_to_do():
    pool = Pool(2)
    second = pool.workers[1]
    second.starting = "its start"
    asked = []

    def arrived():
        asked.append(second.starting)
        second.starting = None
        return True

    second.arrived = arrived
    assert list(run(pool, [])) == []
    assert asked == ["its start"]


def test_a_replacement_that_does_not_start_ends_the_run():
    pool = Pool(1, scripts={0: ["death", "a", "b"]})

    def late():
        raise WorkerDied("rollout-0.1 did not start in time")

    def restart(slot, name):
        slot.starting, slot.arrived = "never", late

    pool.restart = restart
    with pytest.raises(WorkerDied, match="did not start in time"):
        list(run(pool, range(2)))


def test_no_more_tasks_are_begun_than_the_window_allows():
    pool = Pool(1)
    results = run(pool, range(100), window=4)
    next(results)
    assert len(pool.begun) <= 5


def test_an_error_of_the_source_comes_after_the_results_of_what_it_gave():
    def source():
        yield from range(2)
        raise OSError("disk")

    results = run(Pool(2), source())
    assert [next(results) for _ in range(4)] == [(0, "a"), (0, "b"), (1, "a"), (1, "b")]
    with pytest.raises(OSError, match="disk"):
        next(results)
