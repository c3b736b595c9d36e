"""The workers as plain classes, on the scripted engine; and ordered runs over a crew that is all in one thread."""

import numpy as np
import pytest

from actors.critic import CriticWorker
from actors.engines.scripted import END, Scripted
from actors.ordered import OrderedRun, Task
from actors.rollout import RolloutTask, RolloutWorker, candidates_per_temperature, merged
from rlsys import wire
from rlsys.errors import ConfigError, WorkerDied
from rlsys.feedback.critique import CritiqueFeedback
from rlsys.records import Completion, Image, Prompt, RolloutGroup, Sampling, Turn, Verdict
from rlsys.seeding import child_seed
from rlsys.streams import Stream
from tests.fakes import make_plan

PICTURE = Image(pixels=np.zeros((2, 2, 3), np.uint8))


def prompts(count):
    return [Prompt(id=f"p{i}", turns=(Turn(role="user", text=f"q{i}"),), images=(PICTURE,)) for i in range(count)]


def scripted(seed=0, version=0):
    return RolloutWorker(engine=Scripted(), model="", version=version, seed=seed)


def answer(worker, asked, plan, start=0):
    frame, seconds = worker.rollout(wire.encode_many(asked), RolloutTask.of(plan, start))
    assert seconds >= 0
    return wire.decode_many(frame, RolloutGroup)


# ---------------------------------------------------------------- rollouts


def test_candidates_are_shared_between_temperatures():
    assert candidates_per_temperature(8, 3) == [3, 3, 2]
    assert candidates_per_temperature(1, 2) == [1, 0]


def test_identical_candidates_are_kept_once_with_their_count_and_their_first_temperature():
    def completion(*tokens):
        return Completion(
            text="x",
            token_ids=np.array(tokens, np.int32),
            logprobs=np.zeros(len(tokens), np.float32),
            finish_reason="stop",
        )

    hot, cold = Sampling(temperature=1.0, seed=5), Sampling(temperature=0.5, seed=6)
    found = merged([(completion(1, 2), hot), (completion(3), hot), (completion(1, 2), cold)])
    assert [(r.token_ids.tolist(), r.count, r.temperature, r.seed) for r in found] == [
        ([1, 2], 2, 1.0, 5),
        ([3], 1, 1.0, 5),
    ]


def test_a_group_says_where_it_comes_from_and_leaves_its_images_behind():
    worker = scripted(seed=9, version=4)
    groups = answer(worker, prompts(3), make_plan(round=6, num_candidates=5, temperatures=(0.5, 1.0)), start=32)
    assert [group.index for group in groups] == [32, 33, 34]
    for group, prompt in zip(groups, prompts(3), strict=True):
        assert (group.round, group.policy_version, group.failed) == (6, 4, 0)
        assert group.prompt.id == prompt.id and group.prompt.images == ()
        assert sum(rollout.count for rollout in group.rollouts) == 5
        seeds = {0.5: child_seed(9, "rollout", 6, prompt.id, 0), 1.0: child_seed(9, "rollout", 6, prompt.id, 1)}
        assert all(rollout.seed == seeds[rollout.temperature] for rollout in group.rollouts)


def test_a_temperature_without_a_share_is_not_asked():
    worker = scripted()
    [group] = answer(worker, prompts(1), make_plan(num_candidates=1, temperatures=(0.5, 1.0)))
    assert [rollout.temperature for rollout in group.rollouts] == [0.5] and group.failed == 0


def test_answers_depend_on_seed_round_and_prompt_only():
    def texts(seed, round, chosen):
        groups = answer(scripted(seed), chosen, make_plan(round=round, max_tokens=30))
        return {group.prompt.id: [rollout.text for rollout in group.rollouts] for group in groups}

    three = texts(1, 0, prompts(3))
    assert texts(1, 0, prompts(3)[2:]) == {"p2": three["p2"]}
    assert texts(2, 0, prompts(3)) != three and texts(1, 1, prompts(3)) != three


def test_the_scripted_engine_ends_answers_that_are_not_cut():
    [group] = answer(scripted(), prompts(1), make_plan(num_candidates=50))
    assert {rollout.finish_reason for rollout in group.rollouts} == {"stop", "length"}
    for rollout in group.rollouts:
        assert (rollout.token_ids[-1] == END) == (rollout.finish_reason == "stop")
    with pytest.raises(ConfigError, match=r"engine\.vocabulary must be above 2, got 2"):
        Scripted(vocabulary=2)


# ---------------------------------------------------------------- verdicts


def test_one_call_judges_many_groups_and_gives_each_its_verdicts():
    groups = answer(scripted(), prompts(4), make_plan(num_candidates=3))
    feedback = CritiqueFeedback(num_critiques=2, temperature=1.0, max_tokens=30)
    worker = CriticWorker(feedback=feedback, engine=Scripted(), model="")
    frame, _ = worker.judge(wire.encode_many(groups))
    together = wire.decode_many(frame, Verdict)
    apart = [v for group in groups for v in wire.decode_many(worker.judge(wire.encode_many([group]))[0], Verdict)]
    assert len(together) == sum(len(group.rollouts) for group in groups)
    assert together == apart
    assert all(len(verdict.critiques) + verdict.failed == 2 for verdict in together)
    assert any(verdict.critiques for verdict in together)


# ---------------------------------------------------------------- ordered runs


class Slot:
    starting = None

    def __init__(self, crew, number):
        self.crew, self.number = crew, number

    def arrived(self):
        return True

    def call(self, method, *arguments):
        reference = (self.number, len(self.crew.begun))
        self.crew.begun.append(arguments[0])
        self.crew.waiting[reference] = arguments[0]
        return reference


class Crew:
    """Finishes the newest call first; a call of a fatal argument kills its worker."""

    deadline_s = 60.0

    def __init__(self, count, fatal=()):
        self.slots = [Slot(self, number) for number in range(count)]
        self.begun, self.waiting, self.fatal, self.restarted = [], {}, list(fatal), []

    def wait(self, references, timeout_s):
        return [max(references, key=lambda reference: reference[1])]

    def outcome(self, reference):
        argument = self.waiting.pop(reference)
        if argument in self.fatal:
            self.fatal.remove(argument)
            raise WorkerDied(str(argument))
        return argument * 10

    def restart(self, slot):
        self.restarted.append(slot.number)


def run(crew, source, window=4):
    tasks = Stream((Task(key=number, arguments=(number,)) for number in source), ahead=2)
    return OrderedRun(crew, "anything", tasks, window=window).results()


def test_results_come_in_the_order_of_the_tasks_whatever_finishes_first():
    crew = Crew(3)
    assert list(run(crew, range(10))) == [(number, number * 10) for number in range(10)]
    assert crew.restarted == []


def test_a_task_whose_worker_died_is_done_again_and_its_result_keeps_its_place():
    crew = Crew(2, fatal=[1])
    assert list(run(crew, range(4))) == [(0, 0), (1, 10), (2, 20), (3, 30)]
    assert crew.begun.count(1) == 2 and len(crew.restarted) == 1


def test_a_task_that_kills_twice_has_no_result():
    crew = Crew(2, fatal=[1, 1])
    assert list(run(crew, range(3))) == [(0, 0), (1, None), (2, 20)]
    assert len(crew.restarted) == 2


def test_no_more_tasks_are_begun_than_the_window_allows():
    crew = Crew(1)
    results = run(crew, range(100), window=4)
    next(results)
    assert len(crew.begun) <= 5


def test_an_error_of_the_source_comes_after_the_results_of_what_it_gave():
    def source():
        yield from range(3)
        raise OSError("disk")

    results = run(Crew(2), source())
    assert [next(results) for _ in range(3)] == [(0, 0), (1, 10), (2, 20)]
    with pytest.raises(OSError, match="disk"):
        next(results)
