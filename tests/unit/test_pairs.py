"""Pairs and their scale: literal values from MM-RLHF's formula and hand-made groups."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlsys.examples.all_pairs import AllPairs
from rlsys.examples.best_worst import BestWorst
from rlsys.examples.scaling import beta_scale
from rlsys.records import Prompt, RolloutGroup, ScoredGroup, Turn
from tests.fakes import make_verdict, sampled_response


def scored(scores: list[float | None], *, texts: list[str] | None = None, prompt_id: str = "p") -> ScoredGroup:
    """A group with one answer per score, named a, b, c, ...; `None` is an answer whose critique failed."""
    rollouts = tuple(
        sampled_response(
            text=texts[i] if texts else chr(ord("a") + i),
            token_ids=np.array([i, 99], np.int32),
            logprobs=np.array([-0.5, -0.25], np.float32),
            seed=i,
            policy_version=2,
        )
        for i in range(len(scores))
    )
    group = RolloutGroup(
        prompt=Prompt(id=prompt_id, turns=(Turn(role="user", text="What is there?"),)),
        round=2,
        index=0,
        policy_version=2,
        prompt_token_ids=np.array([1, 2, 3], np.int32),
        responses=rollouts,
    )
    verdicts = tuple(map(make_verdict, scores))
    return ScoredGroup(group=group, verdicts=verdicts)


def names(pairs) -> list[str]:
    return [pair.chosen.text + pair.rejected.text for pair in pairs]


@pytest.mark.parametrize(
    ("margin", "beta"),
    [(0, 0.1), (1, 0.119673), (2, 0.131606), (4, 0.143233), (10, 0.149663), (-1, 0.1), (math.inf, 0.15)],
)
def test_beta_follows_the_papers_formula(margin, beta):
    assert 0.1 * beta_scale(margin, 0.5, 0.5) == pytest.approx(beta, abs=5e-7)


@pytest.mark.parametrize(("w", "k"), [(0.0, 0.5), (0.5, 0.0)])
def test_without_w_or_k_the_scale_is_exactly_one(w, k):
    assert [beta_scale(margin, w, k) for margin in (-3.0, 0.0, 0.1, 50.0)] == [1.0, 1.0, 1.0, 1.0]


@given(st.floats(0, 20), st.floats(0.01, 5))
def test_scale_grows_with_the_margin_and_stays_below_its_limit(margin, step):
    assert 1.0 <= beta_scale(margin, 0.5, 0.5) < beta_scale(margin + step, 0.5, 0.5) <= 1.5


@pytest.mark.parametrize(("w", "k", "message"), [(-0.1, 0.5, "w must .* -0.1"), (0.5, float("nan"), "k must .* nan")])
def test_scale_refuses_a_negative_or_undefined_option(w, k, message):
    with pytest.raises(ValueError, match=message):
        beta_scale(1.0, w, k)


@pytest.mark.parametrize(
    ("scores", "count"), [([1, 2, 2, 4], 5), ([1, 2, 3, 4], 6), ([3, 3, 3, 3], 0), ([1], 0), ([], 0)]
)
def test_all_pairs_counts(scores, count):
    assert len(AllPairs()(scored(scores))) == count


def test_all_pairs_prefers_the_higher_score_in_the_order_of_the_answers():
    assert names(AllPairs()(scored([2.0, 1.0, 3.0]))) == ["ab", "ca", "cb"]


def test_a_pair_carries_margin_and_scale_side_by_side():
    (pair,) = AllPairs()(scored([1.0, 3.0]))
    assert (pair.chosen_score, pair.rejected_score, pair.margin) == (3.0, 1.0, 2.0)
    assert pair.beta_scale == pytest.approx(1.316060, abs=1e-6)
    assert (pair.round, pair.chosen.sampled.policy_version, pair.prompt.id) == (2, 2, "p")
    assert pair.prompt_token_ids.tolist() == [1, 2, 3]


def test_min_margin_keeps_pairs_at_it_and_drops_those_below():
    assert names(AllPairs(min_margin=1.0)(scored([0.0, 0.5, 1.5]))) == ["ca", "cb"]


def test_an_answer_without_a_score_is_in_no_pair():
    assert names(AllPairs()(scored([1.0, None, 2.0]))) == ["ca"]
    assert names(BestWorst()(scored([None, 1.0, 2.0]))) == ["cb"]


def test_answers_that_read_the_same_are_no_pair():
    group = scored([1.0, 2.0, 3.0], texts=["x", "x", "y"])
    assert names(AllPairs()(group)) == ["yx", "yx"]
    assert BestWorst()(scored([1.0, 2.0], texts=["x", "x"])) == []


def test_the_limit_keeps_a_repeatable_choice_that_differs_between_prompts():
    build = AllPairs(max_per_prompt=3)
    choices = [names(build(scored([1, 2, 3, 4, 5], prompt_id=f"p{i}"))) for i in range(20)]
    again = [names(build(scored([1, 2, 3, 4, 5], prompt_id=f"p{i}"))) for i in range(20)]
    everything = names(AllPairs()(scored([1, 2, 3, 4, 5])))
    assert choices == again
    assert all(len(set(choice)) == 3 for choice in choices)
    assert all(choice == [name for name in everything if name in choice] for choice in choices)
    assert {name for choice in choices for name in choice} == set(everything)


def test_best_worst_takes_the_first_of_equals():
    (pair,) = BestWorst()(scored([0.1, 0.9, 0.5, 0.9]))
    assert (pair.chosen.text, pair.rejected.text) == ("b", "a")
    assert pair.margin == pytest.approx(0.8)
    (pair,) = BestWorst()(scored([0.9, 0.1, 0.5, 0.1]))
    assert (pair.chosen.text, pair.rejected.text) == ("a", "b")


def test_best_worst_gives_nothing_for_ties_small_margins_and_lone_answers():
    assert BestWorst()(scored([1.0, 1.0])) == []
    assert BestWorst(min_margin=1.0)(scored([1.0, 1.5])) == []
    assert BestWorst()(scored([1.0, None])) == []


def test_a_margin_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="margin must be a number, got nan"):
        beta_scale(float("nan"), 0.5, 0.5)
    assert beta_scale(float("inf"), 0.5, 0.0) == 1.0


def test_the_choice_of_pairs_follows_the_runs_seed():
    build = AllPairs(max_per_prompt=3)
    group = scored([1, 2, 3, 4, 5])
    responses = tuple(
        replace(response, sampled=replace(response.sampled, seed=response.sampled.seed + 1))
        for response in group.group.responses
    )
    other = replace(group, group=replace(group.group, responses=responses))
    assert names(build(group)) != names(build(other))


@pytest.mark.parametrize("builder", [AllPairs(), BestWorst()])
@pytest.mark.parametrize("temperatures", [(0.7, 1.0), (1.0, 0.7)])
def test_an_answer_of_two_temperatures_takes_part_once_and_as_the_one_at_temperature_1(builder, temperatures):
    group = scored([1.0, 0.0, 1.0], texts=["good", "bad", "good"])
    first, second, third = group.group.responses
    again = replace(third, token_ids=first.token_ids, sampled=replace(third.sampled, temperature=temperatures[1]))
    cold = replace(first, sampled=replace(first.sampled, temperature=temperatures[0]))
    responses = (cold, second, again)
    (pair,) = builder(replace(group, group=replace(group.group, responses=responses)))
    assert (pair.chosen.text, pair.chosen.sampled.temperature, pair.rejected.text) == ("good", 1.0, "bad")
