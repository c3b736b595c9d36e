"""Worker processes under Ray: order, independence from their number, replacement after a kill, nothing left behind."""

import math
import os
import signal
import time
from dataclasses import replace

import numpy as np
import psutil
import pytest
import ray

from actors.engines import discover
from actors.engines import engine as engines
from actors.feedback import FeedbackStage
from actors.ordered import Task
from actors.partial import PartialResult
from actors.pool import WorkerPool
from actors.remote import Spec
from actors.roles import EngineRole
from actors.stages import RolloutStage
from rlsys.conversations.scripted import Scripted
from rlsys.errors import ConfigError, EngineError, WorkerDied
from rlsys.feedback.critique import CritiqueFeedback
from rlsys.feedback.pairwise_judge import PairwiseJudge
from rlsys.feedback.weighted import Weighted
from rlsys.feedback.yes_no import YesNo
from rlsys.placement import Placement
from rlsys.records import Prompt, Turn
from tests.fakes import make_group, make_plan, make_verdict
from tests.integration.small_model import Transformers, make_prompts, make_small


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
    yield
    ray.shutdown()


def text_prompts(count):
    return [Prompt(id=f"t{i}", turns=(Turn(role="user", text=f"question {i}"),)) for i in range(count)]


def scripted(**options):
    discover()
    return engines.make("scripted", **options)


def places(count):
    return [Placement(num_cpus=0.5) for _ in range(count)]


def rollouts(count=2, version=0, batch=2, held_out_batch=None, probe_prompts=(), **options):
    return RolloutStage(
        engine=scripted(**options),
        current=lambda: ("nowhere", version),
        placements=places(count),
        seed=3,
        batch=batch,
        held_out_batch=held_out_batch or batch,
        deadline_s=60,
        probe_prompts=probe_prompts,
    )


PLAN = make_plan(round=2, num_candidates=5, temperatures=(0.5, 1.0), max_tokens=6)


def test_groups_come_in_order_and_are_the_same_for_any_number_of_workers():
    prompts = text_prompts(9)
    one, three = rollouts(1), rollouts(3)
    try:
        alone = list(one.stream(prompts, PLAN))
        together = list(three.stream(prompts, PLAN))
    finally:
        one.close()
        three.close()
    assert alone == together
    assert [group.prompt for group in alone] == prompts
    assert [group.index for group in alone] == list(range(9))
    for group in alone:
        assert (group.round, group.policy_version, group.failed) == (2, 0, 0)
        assert sum(rollout.count for rollout in group.responses) == 5
        assert {rollout.sampled.temperature for rollout in group.responses} == {0.5, 1.0}
        assert len({rollout.token_ids.tobytes() for rollout in group.responses}) == len(group.responses)
    assert one.count(2)["failed_workers"] == 0


def test_an_evaluation_asks_for_more_prompts_in_a_call_than_a_round():
    stage = rollouts(1, batch=2, held_out_batch=5, seconds_per_call=0.5)  # of a call, whatever it holds
    try:
        held_out = replace(PLAN, round=-1)
        groups = {plan.round: list(stage.stream(text_prompts(8), plan)) for plan in (PLAN, held_out)}
        num_calls = [round(2 * stage.count(number)["seconds"]) for number in groups]
    finally:
        stage.close()
    assert num_calls == [4, 2]
    assert [[group.index for group in found] for found in groups.values()] == [list(range(8))] * 2


def test_a_killed_worker_is_replaced_and_nothing_is_missing():
    undisturbed = rollouts(2, batch=1, seconds_per_call=0.3)
    wounded = rollouts(2, batch=1, seconds_per_call=0.3)
    try:
        expected = list(undisturbed.stream(text_prompts(8), PLAN))
        stream = wounded.stream(text_prompts(8), PLAN)
        got = [next(stream)]
        before = wounded.members()
        os.kill(wounded.pids()[1], signal.SIGKILL)
        got += stream
        assert got == expected
        assert wounded.count(2)["failed_workers"] == 1
        assert wounded.members() != before and len(wounded.members()) == 2
        assert list(wounded.stream(text_prompts(3), PLAN)) == expected[:3]
    finally:
        undisturbed.close()
        wounded.close()


def test_groups_come_while_their_call_is_in_work_and_stay_when_its_worker_is_killed():
    options = {"batch": 4, "at_once": 2, "seconds_per_call": 2.0}  # two requests a prompt: one group every half second
    undisturbed, wounded = rollouts(1, batch=4), rollouts(1, **options)
    try:
        expected = list(undisturbed.stream(text_prompts(4), PLAN))
        started = time.monotonic()
        stream = wounded.stream(text_prompts(4), PLAN)
        got = [next(stream)]
        assert time.monotonic() - started < 1.5
        os.kill(wounded.pids()[0], signal.SIGKILL)
        got += stream
    finally:
        undisturbed.close()
        wounded.close()
    assert got == expected
    assert wounded.count(2)["failed_workers"] == 1
    assert 2.0 < wounded.count(2)["seconds"] < 4.0


def test_groups_that_came_before_a_prompt_that_kills_every_worker_stay():
    # What a worker hands over in its last moment may be lost with it: there is a quarter of a second between.
    stage = rollouts(1, batch=4, at_once=2, seconds_per_call=1.0, fatal_prompts=["t2"])
    try:
        groups = list(stage.stream(text_prompts(6), PLAN))
    finally:
        stage.close()
    assert [group.index for group in groups] == [0, 1, 2, 3, 4, 5]
    assert [group.failed for group in groups] == [0, 0, 5, 5, 0, 0]
    assert stage.count(2)["failed_workers"] == 2


def test_an_abandoned_call_leaves_its_worker_fit_for_the_next():
    stage = rollouts(1, batch=4, at_once=2, seconds_per_call=1.0)
    try:
        stream = stage.stream(text_prompts(4), PLAN)
        next(stream)
        stream.close()
        assert [group.prompt.id for group in stage.stream(text_prompts(2), PLAN)] == ["t0", "t1"]
        assert stage.versions() == [0]
    finally:
        stage.close()


def test_prompts_that_kill_every_worker_are_delivered_without_rollouts():
    stage = rollouts(1, batch=2, fatal_prompts=["t2"])
    try:
        groups = list(stage.stream(text_prompts(6), PLAN))
    finally:
        stage.close()
    assert [len(group.responses) > 0 for group in groups] == [True, True, False, False, True, True]
    assert [group.failed for group in groups] == [0, 0, 5, 5, 0, 0]
    assert stage.count(2)["failed_workers"] == 2


def test_what_fails_in_an_evaluation_counts_for_the_round_before_it():
    stage = rollouts(1, batch=2, fatal_prompts=["t2"])
    try:
        list(stage.stream(text_prompts(2), PLAN))
        groups = list(stage.stream(text_prompts(6), replace(PLAN, round=-1, num_candidates=2)))
    finally:
        stage.close()
    assert sum(group.failed for group in groups) == 4
    assert (stage.count(2)["failed_workers"], stage.count(2)["failed_held_out"]) == (2, 4)


def test_what_fails_in_an_evaluation_while_a_later_round_is_answered_counts_for_the_round_that_is_reported():
    stage = rollouts(1, batch=2, fatal_prompts=["t2"])
    try:
        list(stage.stream(text_prompts(2), replace(PLAN, round=3)))  # ahead of round 2, which is evaluated next
        list(stage.stream(text_prompts(6), replace(PLAN, round=-1, num_candidates=2)))
    finally:
        stage.close()
    assert (stage.count(2)["failed_workers"], stage.count(2)["failed_held_out"]) == (2, 4)
    assert (stage.count(3)["failed_workers"], stage.count(3)["failed_held_out"]) == (0, 0)


class StartsOnce:
    """A worker whose replacement is never ready."""

    def __init__(self, *, marker):
        if marker.exists():
            time.sleep(600)
        marker.touch()

    def work(self, skip):
        yield PartialResult(num_items=1, frame=b"", seconds=0.0)
        time.sleep(600)


def test_a_replacement_that_does_not_start_in_time_ends_the_run(tmp_path):
    spec = Spec(name="worker", worker=StartsOnce, options={"marker": tmp_path / "marker"})
    pool = WorkerPool(spec, [Placement(num_cpus=0.5)], deadline_s=10.0)
    try:
        results = pool.run("work", [Task(key="task", arguments=(), num_items=2)])
        assert next(results)[0] == "task"
        os.kill(pool.pids()[0], signal.SIGKILL)
        started = time.monotonic()
        with pytest.raises(WorkerDied, match=r"worker-0\.1 did not start in time"):
            next(results)
        assert 9.0 < time.monotonic() - started < 40.0
    finally:
        pool.close()


def test_an_error_of_ours_is_raised_and_not_counted():
    stage = rollouts(2, batch=1, refused_prompts=["t1"])
    try:
        with pytest.raises(EngineError, match="prompt 't1' is refused"):
            list(stage.stream(text_prompts(4), PLAN))
        assert stage.count(2)["failed_workers"] == 0
        assert len(list(stage.stream(text_prompts(1), PLAN))) == 1
    finally:
        stage.close()


def test_an_engine_that_cannot_open_says_why():
    discover()
    with pytest.raises(EngineError, match="no model in /nowhere"):
        RolloutStage(
            engine=engines.make("vllm"), current=lambda: ("/nowhere", 0), placements=places(1), seed=0, deadline_s=60
        )


def test_options_are_checked():
    with pytest.raises(ConfigError, match="batch must be at least 1, got 0"):
        rollouts(1, batch=0)
    with pytest.raises(ConfigError, match="num_actors must be at least 1"):
        rollouts(0)


def test_a_source_that_fails_ends_the_stream_with_its_error():
    def source():
        yield from text_prompts(3)
        raise OSError("disk")

    stage = rollouts(1, batch=1)
    try:
        stream = stage.stream(source(), PLAN)
        assert len([next(stream) for _ in range(3)]) == 3
        with pytest.raises(OSError, match="disk"):
            next(stream)
    finally:
        stage.close()


def test_prompts_are_taken_a_bounded_number_ahead():
    taken = []

    def source():
        for prompt in text_prompts(100):
            taken.append(prompt.id)
            yield prompt

    stage = rollouts(1, batch=1)
    try:
        stream = stage.stream(source(), PLAN)
        next(stream)
        time.sleep(1)
        assert len(taken) < 10
        stream.close()
        assert len(list(stage.stream(text_prompts(2), PLAN))) == 2
    finally:
        stage.close()


def test_close_leaves_no_process():
    stage = rollouts(2)
    processes = stage.pids()
    assert all(psutil.pid_exists(pid) for pid in processes)
    stage.close()
    assert not any(psutil.pid_exists(pid) for pid in processes)


def test_a_worker_is_pinned_and_has_its_thread_counts():
    from actors.pool import WorkerPool
    from actors.remote import Spec

    core = min(os.sched_getaffinity(0))
    placement = Placement(num_cpus=0.5, cores=(core,), num_threads=1, env={"RLSYS_TEST": "yes"})
    pool = WorkerPool(Spec(name="look", worker=Looking, options={}), [placement], deadline_s=60)
    try:
        [(affinity, threads, environment)] = pool.all("look", [()])
    finally:
        pool.close()
    assert (affinity, threads, environment) == ({core}, "1", "yes")


class Looking:
    def look(self):
        return os.sched_getaffinity(0), os.environ["OMP_NUM_THREADS"], os.environ["RLSYS_TEST"]

    def close(self):
        pass


class Judging:
    """A stage that judges, with the engines of its judge."""

    def __init__(self, feedback, engine, model="", count=1, batch=3):
        raw = bool(getattr(feedback, "raw_logits", ()))
        self._judge = EngineRole(
            "judge", engine=engine, model=model, placements=places(count), raw_logits=raw, deadline_s=120
        )
        self._stage = FeedbackStage(
            feedback=feedback, roles={"judge": self._judge}, own=[self._judge], num_workers=count, batch=batch
        )
        self.stream, self.count, self.pids = self._stage.stream, self._stage.count, self._stage.pids
        self.close = self._judge.close

    def with_feedback(self, feedback):
        """Another stage on the same engines."""
        return FeedbackStage(feedback=feedback, roles={"judge": self._judge}, batch=4)


class Longer:
    """Feedback that asks no judge."""

    roles = ()

    def judge(self, group):
        yield from ()
        return tuple(make_verdict(float(len(response.text))) for response in group.responses)


def test_feedback_without_a_judge_gives_every_answer_its_own_verdict():
    groups = [make_group(texts=("long answer", "short")), make_group(texts=("a",))]
    stage = FeedbackStage(feedback=Longer())
    try:
        scored = list(stage.stream(iter(groups)))
    finally:
        stage.close()
    assert all(one.group is group for one, group in zip(scored, groups, strict=True))
    assert [[verdict.score for verdict in one.verdicts] for one in scored] == [[11.0, 5.0], [1.0]]
    assert stage.count(groups[0].round)["seconds"] > 0


def test_feedback_keeps_the_order_and_counts_a_killed_worker():
    stage = rollouts(1)
    feedback = CritiqueFeedback(num_critiques=2, temperature=1.0, max_tokens=50)
    alone = Judging(feedback, scripted(seconds_per_call=0.2))
    wounded = Judging(feedback, scripted(seconds_per_call=0.2), count=2)
    try:
        groups = list(stage.stream(text_prompts(10), PLAN))
        expected = list(alone.stream(groups))
        stream = wounded.stream(iter(groups))
        got = [next(stream)]
        os.kill(wounded.pids()[0], signal.SIGKILL)
        got += stream
    finally:
        for one in (stage, alone, wounded):
            one.close()
    assert got == expected and [scored.group for scored in got] == groups
    assert all(len(scored.verdicts) == len(scored.group.responses) for scored in got)
    assert any(verdict.score is not None for scored in got for verdict in scored.verdicts)
    assert wounded.count(2)["failed_workers"] == 1 and wounded.count(2)["seconds"] > 0


def test_answers_that_kill_the_judge_have_failed_verdicts():
    stage = rollouts(1)
    groups = list(stage.stream(text_prompts(2), PLAN))
    stage.close()
    feedback = CritiqueFeedback(num_critiques=2, temperature=1.0)
    fatal = next(feedback.judge(groups[0]))[0].prompt.id
    judge = Judging(feedback, scripted(fatal_prompts=[fatal]), batch=1)
    try:
        first, second = judge.stream(groups)
    finally:
        judge.close()
    assert all(verdict.critiques == () and verdict.failed == 2 for verdict in first.verdicts)
    assert any(verdict.score is not None for verdict in second.verdicts)


# ---------------------------------------------------------------- the real engine


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_small(tmp_path_factory.mktemp("model") / "policy")


def real(folder, count, batch):
    discover()
    return RolloutStage(
        engine=engines.make("vllm", max_model_len=256, max_num_batched_tokens=2048, kv_cache_gib=0.25),
        current=lambda: (str(folder), 4),
        placements=places(count),
        seed=3,
        batch=batch,
        deadline_s=240,
        probe_prompts=make_prompts(2, seed=9),
    )


def test_two_real_engines_give_what_one_gives_and_a_kill_changes_nothing(folder):
    prompts = make_prompts(12, seed=4)
    plan = make_plan(round=1, num_candidates=4, max_tokens=24)
    stage = real(folder, 2, batch=2)
    try:
        expected = list(stage.stream(prompts, plan))
        assert stage.versions() == [4, 4]
        [first, second] = stage.logprobs(stage.probes())
        assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
        stream = stage.stream(prompts, plan)
        got = [next(stream)]
        os.kill(stage.pids()[1], signal.SIGKILL)
        got += stream
        assert got == expected
        assert stage.count(1)["failed_workers"] == 1
        left = stage.pids()
    finally:
        stage.close()
    assert not any(psutil.pid_exists(pid) for pid in left if pid)
    assert all(group.policy_version == 4 and group.prompt.images for group in got)


def test_a_real_judge_scores_by_the_raw_logit_of_its_score_token(folder):
    discover()
    truth = Transformers(folder)
    stage = rollouts(1)
    groups = list(stage.stream(make_prompts(4), make_plan(num_candidates=4, max_tokens=6)))
    stage.close()
    engine = engines.make("vllm", max_model_len=512, max_num_batched_tokens=2048, kv_cache_gib=0.25)
    feedback = CritiqueFeedback(num_critiques=2, temperature=1.0, max_tokens=200, template="{question} {answer}")
    judge = Judging(feedback, engine, str(folder), batch=4)
    try:
        scored = list(judge.stream(groups))
    finally:
        judge.close()
    requests = [ask.prompt for group in groups for ask in next(feedback.judge(group))]
    verdicts = [verdict for one in scored for verdict in one.verdicts]
    checked = 0
    score = truth.processor.tokenizer.convert_tokens_to_ids("<score>")
    for prompt, verdict in zip(requests, verdicts, strict=True):
        for critique in verdict.critiques:
            if critique.score is None:
                continue
            words = truth.processor.tokenizer(critique.text, add_special_tokens=False)["input_ids"]
            logits = truth.logits(prompt, np.array([*words, score]))
            assert math.isclose(float(logits[-1, score]), critique.score, abs_tol=1e-4)
            checked += 1
    assert checked > 5


def test_yes_or_no_of_a_real_judge_is_that_of_the_stock_model(folder):
    """p(yes) by candidate tokens, from a role's engine and from the policy's own engines alike."""
    truth = Transformers(folder)
    policy = real(folder, 1, batch=2)
    feedback = YesNo(template="{question} {answer}")
    labels = {"template": "{question} {a} {b}", "first": "red", "second": "blue"}
    both = Weighted(
        parts={
            "right": {"name": "yes_no", "template": "{question} {answer}"},
            "preferred": {"name": "pairwise_judge", "weight": 2.0, **labels},
        }
    )
    judge = Judging(
        feedback, engines.make("vllm", max_model_len=256, max_num_batched_tokens=2048, kv_cache_gib=0.25), str(folder)
    )
    try:
        groups = list(policy.stream(make_prompts(4), make_plan(num_candidates=2, max_tokens=6)))
        found = list(judge.stream(groups))
        itself = list(FeedbackStage(feedback=feedback, roles={"judge": policy}, batch=4).stream(groups))
        summed = list(judge.with_feedback(both).stream(groups))
    finally:
        policy.close()
        judge.close()
    tokens = [truth.processor.tokenizer.convert_tokens_to_ids(word) for word in ("yes", "no")]
    asks = [ask for group in groups for ask in next(feedback.judge(group))]
    scores = [verdict.score for one in found for verdict in one.verdicts]
    for ask, score in zip(asks, scores, strict=True):
        yes, no = truth.logits(ask.prompt, np.array([0]))[0, tokens].tolist()
        assert math.isclose(1 / (1 + math.exp(no - yes)), score, abs_tol=1e-5)
    assert [verdict.score for one in itself for verdict in one.verdicts] == pytest.approx(scores, abs=1e-5)
    # The comparisons of a group, by the stock model: p(red) with either response first, both orders averaged.
    words = [truth.processor.tokenizer.convert_tokens_to_ids(word) for word in ("red", "blue")]
    compared = 0
    for one in summed:
        if len(one.group.responses) != 2:
            continue
        logits = [
            truth.logits(ask.prompt, np.array([0]))[0, words] for ask in PairwiseJudge(**labels).comparisons(one.group)
        ]
        straight, swapped = (float(pair.softmax(0)[0]) for pair in logits)
        preferred = (straight + 1 - swapped) / 2
        found = [verdict.scores for verdict in one.verdicts]
        assert [each["preferred"] for each in found] == pytest.approx([preferred, 1 - preferred], abs=1e-5)
        assert all(math.isclose(each["score"], each["right"] + 2 * each["preferred"], abs_tol=1e-9) for each in found)
        compared += 1
    assert compared


def test_a_scripted_conversation_on_the_real_engine_is_masked_and_scored_as_one_sequence(folder):
    truth = Transformers(folder)
    script = (Turn(role="user", text="what is the color"),)
    prompts = [replace(prompt, script=script) for prompt in make_prompts(3, seed=5)]
    discover()
    stage = RolloutStage(
        engine=engines.make("vllm", max_model_len=256, max_num_batched_tokens=2048, kv_cache_gib=0.25),
        current=lambda: (str(folder), 4),
        placements=places(1),
        seed=3,
        batch=2,
        deadline_s=240,
        conversation=Scripted(),
    )
    try:
        groups = list(stage.stream(prompts, make_plan(round=1, num_candidates=2, max_tokens=64)))
    finally:
        stage.close()
    two_turns = [(group, one) for group in groups for one in group.responses if one.loss_mask.min() == 0]
    assert two_turns, "a response that ended by itself goes on"
    for group, response in two_turns:
        expected = truth.logprobs(group.prompt, response.token_ids)
        own = response.loss_mask.astype(bool)
        np.testing.assert_allclose(response.sampled.logprobs[own], expected[own], atol=2e-4)
        assert (response.sampled.logprobs[~own] == 0).all() and "user: what is the color" in response.text
