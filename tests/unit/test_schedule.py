import math
from dataclasses import replace

import pytest

from rlsys.errors import ConfigError, RoundRefused
from rlsys.records import Interval, RoundReport, SyncReport
from rlsys.schedules.gate import GateConfig, MetricGate
from rlsys.schedules.phases import Phase, Schedule, ramp


def test_ramps_hit_both_ends():
    linear = {"start": 1.0, "end": 3.0}
    assert [ramp(linear, i, 3, key="lr") for i in range(3)] == [1.0, 2.0, 3.0]
    cosine = {"start": 0.0, "end": 1.0, "shape": "cosine"}
    assert [round(ramp(cosine, i, 5, key="lr"), 6) for i in range(5)] == [0.0, 0.146447, 0.5, 0.853553, 1.0]
    assert ramp(linear, 0, 1, key="lr") == 1.0


@pytest.mark.parametrize("value", ["hot", True, None, {"start": 1}, {"start": 1, "end": 2, "shap": "x"}])
def test_wrong_ramps_name_the_key(value):
    with pytest.raises(ConfigError, match="lr"):
        ramp(value, 0, 2, key="lr")


def test_phases_follow_each_other_and_take_prompts_in_turn():
    schedule = Schedule([Phase(rounds=2, num_prompts=10, lr=1e-5), Phase(rounds=1, num_prompts=4, lr=5e-6, lag=1)])
    assert schedule.num_rounds == 3
    assert [schedule.plan(r).lr for r in range(3)] == [1e-5, 1e-5, 5e-6]
    assert [schedule.first_prompt(r) for r in range(3)] == [0, 10, 20]
    assert schedule.plan(2).round == 2 and schedule.plan(2).lag == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reference": "other"}, "reference must be one of initial, previous, ema, got 'other'"),
        ({"objective": 0.2}, "objective must be options such as {name: value}, got 0.2"),
        ({"objective": {"beta": {"start": "a", "end": 1}}}, "objective.beta.start must be a number, got 'a'"),
        ({"examples": {"min_margin": {"start": 0, "end": 1, "shap": "x"}}}, "examples.min_margin: a ramp has the keys"),
        ({"replay": 3}, "replay must be options such as {name: value}, got 3"),
        ({"lag": -1}, "lag must be >= 0, got -1"),
        ({"num_candidates": 3, "temperatures": [0.7, 1.0]}, "multiple of the 2 temperatures, got 3"),
        ({"lag": 0.5}, "lag must be a whole number, got 0.5"),
        ({"epochs": 0}, "epochs must be >= 1, got 0"),
        ({"top_p": 1.5}, "top_p must be > 0 and <= 1, got 1.5"),
        ({"rounds": "three"}, "rounds must be a whole number of at least 1, got 'three'"),
        ({"temperatures": 1.0}, "temperatures must be a list of numbers, got 1.0"),
        ({"temperatures": [-0.1]}, "temperatures.0 must be >= 0, got -0.1"),
        ({"lr": float("nan")}, "lr must be a number or a ramp"),
        ({"lr": {"start": "a", "end": 1}}, "lr.start must be a number, got 'a'"),
        ({"lr": {"start": 1e-5, "end": -1e-5}}, "lr must be >= 0, got -1e-05"),
    ],
)
def test_a_wrong_phase_is_refused_when_it_is_made(options, message):
    with pytest.raises(ConfigError, match=message):
        Phase(**options)


def report(chair, *, round=0, kl=0.0):
    sync = SyncReport(
        version=1, num_tensors=1, num_bytes=1, digest="", seconds=0.0, max_logprob_gap=0.0, num_probe_tokens=1
    )
    return RoundReport(
        round=round,
        policy_version=1,
        num_prompts=1,
        num_responses=1,
        num_examples=1,
        failed={},
        staleness=0,
        loss=0.0,
        kl=0.0,
        metrics={"kl_initial": kl},
        sync=sync,
        eval={"chair_i": Interval(value=chair, low=chair, high=chair)},
        seconds={},
    )


def test_gate_refuses_what_got_worse_and_remembers_the_best():
    gate = make_gate(refuse=True, tolerance=0.01)
    gate.begin({"chair_i": Interval(value=0.3, low=0.2, high=0.4)})
    assert gate.accepts(report(0.2))
    assert gate.accepts(report(0.205))
    assert not gate.accepts(report(0.22))
    assert gate.best == 0.2


DIRECTIONS = {"chair_i": -1, "unparsable": -1, "recall": +1, "of_a_plug_in": +1, "mean_length": 0}


def make_gate(best=None, rounds_without_gain=0, **rules):
    return MetricGate(
        config=GateConfig(**rules), directions=DIRECTIONS, best=best, rounds_without_gain=rounds_without_gain
    )


@pytest.mark.parametrize("metric", ["unparsable", "recall", "of_a_plug_in"])
def test_gate_knows_which_way_a_metric_gets_better(metric):
    falls = metric == "unparsable"

    def found(value):
        return replace(report(0.0), eval={metric: Interval(value=value, low=value, high=value)})

    gate = make_gate(metric=metric, refuse=True, tolerance=0.05, patience=1)
    gate.begin(found(0.5).eval)
    assert gate.accepts(found(0.25 if falls else 0.75)) and gate.rounds_without_gain == 0
    assert gate.accepts(found(0.28 if falls else 0.72)) and gate.rounds_without_gain == 1
    assert not gate.accepts(found(0.4 if falls else 0.6))
    assert gate.best == (0.25 if falls else 0.75)


def test_a_metric_without_a_better_way_is_no_gate():
    with pytest.raises(ConfigError, match=r"gate\.metric=mean_length is neither better lower nor better higher"):
        make_gate(metric="mean_length", refuse=True)


@pytest.mark.parametrize("rule", [{"refuse": True}, {"patience": 1}])
def test_a_metric_that_the_evaluation_does_not_know_is_refused_and_the_known_ones_are_named(rule):
    known = "chair_i, mean_length, of_a_plug_in, recall, unparsable"
    with pytest.raises(ConfigError, match=f"gate.metric=recal is no metric of the evaluation; there are: {known}"):
        make_gate(metric="recal", **rule)
    assert make_gate(metric="recal").stops(report(0.2)) is None


def test_gate_gives_up_after_too_many_refusals():
    gate = make_gate(best=0.1, refuse=True, max_refusals=1)
    assert not gate.accepts(report(0.2))
    with pytest.raises(RoundRefused, match=r"chair_i 0\.3 is worse than the best 0\.1; 2 rounds"):
        gate.accepts(report(0.3))


def test_patience_and_budget_stop_a_run():
    gate = make_gate(best=0.1, patience=2, kl_budget=5.0)
    for value, stops in ((0.2, False), (0.3, True)):
        gate.accepts(report(value))
        assert bool(gate.stops(report(value))) is stops
    gate.accepts(report(0.05, kl=5.5))
    assert gate.stops(report(0.05, kl=5.5)) == "KL from the initial policy 5.500 has reached the budget 5"


def test_gate_state_survives_a_restart():
    gate = make_gate(best=0.1, patience=3)
    gate.accepts(report(0.2))
    other = make_gate(patience=3)
    other.restore(gate.state())
    assert other.state() == {"metric": "chair_i", "best": 0.1, "rounds_without_gain": 1, "refusals": 0}


def test_a_gate_that_goes_on_with_another_metric_does_not_compare_the_two():
    state = make_gate(best=0.05, rounds_without_gain=2, refuse=True).state()
    evaluated = [{"recall": Interval(value=value, low=0.0, high=1.0)} for value in (0.9, 0.8)]
    gate = make_gate(refuse=True, metric="recall")
    gate.restore(state, evaluated)
    assert gate.state() == {"metric": "recall", "best": 0.8, "rounds_without_gain": 0, "refusals": 0}
    with pytest.raises(ConfigError, match=r"gate\.metric 'unparsable' is not measured"):
        make_gate(refuse=True, metric="unparsable").restore(state, evaluated)
    gate = make_gate(refuse=True, metric="recall")
    gate.restore(
        state, [*evaluated, {"chair_i": Interval(value=0.1, low=0.0, high=1.0)}]
    )  # the last says nothing of it
    assert gate.best == 0.8
    same = make_gate(refuse=True)
    same.restore(state, evaluated)  # a policy that has collapsed had no chair_i
    assert (same.best, same.rounds_without_gain) == (0.05, 2)
    older = make_gate()
    older.restore({"best": 0.1, "rounds_without_gain": 1, "refusals": 0})  # of a checkpoint that names no metric
    assert (older.best, older.rounds_without_gain) == (0.1, 1)


def test_rounds_that_were_not_evaluated_change_nothing():
    gate = make_gate(best=0.1, refuse=True, patience=1)
    unseen = replace(report(0.5), eval={})
    assert gate.accepts(unseen) and gate.stops(unseen) is None
    assert gate.state() == {"metric": "chair_i", "best": 0.1, "rounds_without_gain": 0, "refusals": 0}


def test_a_gate_says_at_once_that_its_metric_is_not_measured():
    gate = make_gate(patience=1, metric="recall")
    with pytest.raises(ConfigError, match=r"gate\.metric 'recall' is not measured; there are: \['chair_i'\]"):
        gate.begin({"chair_i": Interval(value=0.3, low=0.2, high=0.4)})


@pytest.mark.parametrize("found", [{}, {"chair_i": Interval(value=math.nan, low=0.0, high=0.0)}])
def test_a_policy_that_says_nothing_to_be_measured_is_refused(found):
    collapsed = replace(report(0.0), eval={"unparsable": Interval(value=1.0, low=1.0, high=1.0), **found})
    gate = make_gate(best=0.1, refuse=True, max_refusals=1)
    assert not gate.accepts(collapsed)
    assert gate.state() == {"metric": "chair_i", "best": 0.1, "rounds_without_gain": 1, "refusals": 1}
    with pytest.raises(RoundRefused, match=r"chair_i could not be measured and is worse than the best 0\.1; 2 rounds"):
        gate.accepts(collapsed)
    patient = make_gate(best=0.1, patience=1)
    assert patient.accepts(collapsed) and patient.stops(collapsed)


def test_a_metric_that_is_not_a_number_is_no_gain():
    gate = make_gate(patience=1)
    gate.begin({"chair_i": Interval(value=math.nan, low=0.0, high=0.0)})
    gate.accepts(report(math.nan))
    assert gate.stops(report(math.nan)) == "chair_i has not got better for 1 rounds (never measured)"


def test_every_number_may_ramp():
    def ramp(start, end):
        return {"start": start, "end": end}

    phase = Phase(
        rounds=3,
        temperatures=[ramp(1.0, 0.5), 0.7],
        top_p=ramp(1.0, 0.8),
        max_tokens=ramp(32, 64),
        epochs=ramp(1, 3),
        lag=ramp(2, 0),
    )
    plans = [phase.plan(step, step) for step in range(3)]
    assert [plan.temperatures for plan in plans] == [(1.0, 0.7), (0.75, 0.7), (0.5, 0.7)]
    assert [plan.top_p for plan in plans] == [1.0, 0.9, 0.8]
    assert [(plan.max_tokens, plan.epochs, plan.lag) for plan in plans] == [(32, 1, 2), (48, 2, 1), (64, 3, 0)]


def test_options_of_plug_ins_may_ramp_and_a_name_stands_for_another_plug_in():
    phase = Phase(rounds=3, objective={"beta": {"start": 0.1, "end": 0.5}}, examples="best_worst")
    plans = [phase.plan(step, step) for step in range(3)]
    assert [plan.options["objective"]["beta"] for plan in plans] == pytest.approx([0.1, 0.3, 0.5])
    assert [plan.options["examples"] for plan in plans] == [{"name": "best_worst"}] * 3
    assert all("feedback" not in plan.options for plan in plans)
    assert Phase().plan(0, 0).options == {}


def test_a_run_that_goes_on_by_another_schedule_takes_the_prompts_after_those_it_has_taken():
    later = Schedule([Phase(rounds=6, num_prompts=128)]).going_on(4, 1024)
    assert [later.first_prompt(round) for round in (4, 5, 6)] == [1024, 1152, 1280]
    assert later.num_prompts == 1280 and later.plan(4).num_prompts == 128


def test_the_prompts_of_a_schedule_are_counted():
    schedule = Schedule([Phase(rounds=2, num_prompts=10), Phase(rounds=3, num_prompts=7)])
    assert (schedule.num_prompts, schedule.first_prompt(3)) == (41, 27)
