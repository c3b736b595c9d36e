"""What is made of a scored group for other objectives than those on pairs, in numbers worked out by hand."""

import numpy as np
import pytest

from rlsys.errors import ConfigError
from rlsys.examples.desirable import Desirable
from rlsys.examples.group_normalized import GroupNormalized
from rlsys.examples.rejection_sampling import RejectionSampling
from rlsys.examples.rloo import RLOO
from rlsys.records import ScoredGroup
from tests.fakes import make_group, make_verdict, sampled_response


def scored(scores, *, counts=None):
    """A group with one response per score, named a, b, c, ...; `None` is one without a score."""
    names = [chr(ord("a") + number) for number in range(len(scores))]
    responses = tuple(
        sampled_response(name, count=counts[number] if counts else 1) for number, name in enumerate(names)
    )
    return ScoredGroup(group=make_group(round=3, responses=responses), verdicts=tuple(map(make_verdict, scores)))


def advantages(examples):
    return [example.advantage for example in examples]


def test_leave_one_out_advantages_are_from_the_mean_of_the_others():
    examples = RLOO()(scored([1.0, 2.0, 3.0, 6.0]))
    assert advantages(examples) == pytest.approx([-8 / 3, -4 / 3, 0, 4])
    assert (examples[0].response.text, examples[0].score, examples[0].round) == ("a", 1.0, 3)
    assert examples[0].prompt_token_ids.tolist() == [1, 2]


@pytest.mark.parametrize(("ddof", "size"), [(0, 0.99998), (1, 0.8660104)])
def test_normalized_advantages_by_either_deviation(ddof, size):
    found = advantages(GroupNormalized(ddof=ddof)(scored([1.0, 0.0, 0.0, 1.0])))
    assert found == pytest.approx([size, -size, -size, size], abs=1e-6)


@pytest.mark.parametrize(("ddof", "size"), [(0, 1.0), (1, 0.70711)])
@pytest.mark.parametrize("gap", [1.0, 100.0])
def test_two_candidates_are_as_far_apart_whatever_their_scores(ddof, size, gap):
    assert advantages(GroupNormalized(ddof=ddof)(scored([gap, 0.0]))) == pytest.approx([size, -size], abs=3e-5)


def test_normalized_advantages_of_scores_in_other_units_are_the_same():
    one = advantages(GroupNormalized()(scored([1.0, 2.0, 4.0])))
    assert advantages(GroupNormalized()(scored([103.0, 106.0, 112.0]))) == pytest.approx(one, abs=1e-4)


def test_equal_scores_are_no_advantage():
    assert advantages(GroupNormalized()(scored([2.0, 2.0, 2.0]))) == [0, 0, 0]
    assert advantages(RLOO()(scored([2.0, 2.0, 2.0]))) == [0, 0, 0]


@pytest.mark.parametrize("build", [RLOO(), GroupNormalized()])
def test_copies_count_as_candidates_and_come_as_often(build):
    together = build(scored([1.0, 0.0], counts=[3, 1]))
    apart = build(scored([1.0, 1.0, 1.0, 0.0]))
    assert advantages(together) == pytest.approx(advantages(apart))
    assert [example.response.text for example in together] == ["a", "a", "a", "b"]


@pytest.mark.parametrize("build", [RLOO(), GroupNormalized()])
def test_responses_without_a_score_are_no_candidates(build):
    assert advantages(build(scored([1.0, None, 0.0]))) == pytest.approx(advantages(build(scored([1.0, 0.0]))))
    assert build(scored([1.0, None])) == []


def test_the_best_response_is_imitated():
    (example,) = RejectionSampling()(scored([0.1, None, 0.9, 0.9]))
    assert (example.response.text, example.score, example.round) == ("c", 0.9, 3)
    np.testing.assert_array_equal(example.prompt_token_ids, [1, 2])
    assert (
        RejectionSampling(min_score=0.9)(scored([0.1, 0.9])) and RejectionSampling(min_score=1.0)(scored([0.9])) == []
    )
    assert RejectionSampling()(scored([None])) == []


def ratings(examples):
    return [(example.response.text, example.is_desirable) for example in examples]


def test_responses_are_rated_by_the_median_of_their_group():
    assert ratings(Desirable()(scored([1.0, 2.0, 5.0]))) == [("a", False), ("c", True)]
    assert ratings(Desirable()(scored([1.0, None, 2.0]))) == [("a", False), ("c", True)]
    assert ratings(Desirable()(scored([1.0, 2.0, 5.0], counts=[3, 1, 1]))) == [("b", True), ("c", True)]
    assert Desirable()(scored([2.0, 2.0])) == [] and Desirable()(scored([])) == []


def test_responses_are_rated_by_a_threshold():
    build = Desirable(threshold=3.0, min_margin=1.0)
    assert ratings(build(scored([1.0, 2.5, 3.0, 4.0]))) == [("a", False), ("d", True)]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: GroupNormalized(eps=0.0), "examples.eps must be > 0, got 0.0"),
        (lambda: GroupNormalized(ddof=2), "examples.ddof must be 0 or 1, got 2"),
        (lambda: Desirable(min_margin=-1.0), "examples.min_margin must be at least 0, got -1.0"),
    ],
)
def test_wrong_options_are_named(make, words):
    with pytest.raises(ConfigError, match=words):
        make()
