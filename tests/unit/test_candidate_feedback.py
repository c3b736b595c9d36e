"""Feedbacks that read candidate tokens, and sums of feedbacks: values worked out by hand."""

import math

import numpy as np
import pytest

from rlsys import registry
from rlsys.asking.candidates import candidates, probabilities, spellings
from rlsys.asking.driver import run_program
from rlsys.errors import ConfigError
from rlsys.feedback.pairwise_judge import PairwiseJudge
from rlsys.feedback.weighted import Weighted
from rlsys.feedback.yes_no import YesNo
from rlsys.records import Generation
from tests.fakes import make_completion, make_generation, make_group

registry.discover()

NONE = Generation(prompt_token_ids=np.zeros(0, np.int32), completions=())


def values(ask, **logits) -> Generation:
    """The engine's answer whose first position has these values for the lower-case word (or the label) alone."""
    row = [logits.get(token, -math.inf) for token in ask.sampling.candidate_tokens]
    completion = make_completion("?", candidate_values=np.array([row], np.float32))
    return Generation(prompt_token_ids=np.array([1], np.int32), completions=(completion,))


def test_words_are_read_in_all_their_spellings():
    assert spellings("yes") == ("yes", "Yes", "YES", " yes", " Yes", " YES")
    assert spellings("A") == ("A", " A")
    tokens = candidates("yes", "no")
    assert len(tokens) == 12
    row = np.full((2, 12), -np.inf, np.float32)
    row[0, tokens.index("Yes")] = math.log(0.2)
    row[0, tokens.index(" yes")] = math.log(0.1)
    row[0, tokens.index("no")] = math.log(0.1)
    found = probabilities(make_generation("x", candidate_values=row), "yes", "no")
    assert found == pytest.approx([0.75, 0.25])


def test_a_constant_on_all_values_changes_no_probability():
    """Raw logits and log-probabilities differ by one."""
    row = np.full((1, 12), -np.inf, np.float32)
    row[0, 0], row[0, 6] = 2.0, 1.0
    plain = probabilities(make_generation("x", candidate_values=row), "yes", "no")
    shifted = probabilities(make_generation("x", candidate_values=row - 7.5), "yes", "no")
    assert plain == pytest.approx([1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1))])
    assert shifted == pytest.approx(plain)


def test_yes_no_scores_the_probability_of_yes():
    replies = [{"yes": math.log(0.3), "no": math.log(0.1)}, {"yes": -2.0, "no": -2.0}]
    feedback = YesNo()
    group = make_group(("a cube", "a ball"))

    def answer(asks):
        assert [ask.role for ask in asks] == ["judge", "judge"]
        assert all("a cube" in asks[0].prompt.question and ask.sampling.max_tokens == 1 for ask in asks)
        return [[values(ask, **reply) for ask, reply in zip(asks, replies, strict=True)]]

    verdicts = run_program(feedback.judge(group), answer)
    assert [verdict.score for verdict in verdicts] == [pytest.approx(0.75), pytest.approx(0.5)]


def test_a_reply_that_cannot_be_read_has_failed_and_is_no_number():
    unreadable = [NONE, make_generation("x"), None]

    def answer(asks):
        return [[values(ask) if reply is None else reply for ask, reply in zip(asks, unreadable, strict=True)]]

    verdicts = run_program(YesNo().judge(make_group(("a", "b", "c"))), answer)
    assert [(verdict.score, verdict.failed) for verdict in verdicts] == [(None, 1)] * 3


def prefers(table):
    """Answers comparisons: `table[(a, b)]` is the probability of A when a is shown first; `None` does not come."""

    def answer(asks):
        found = []
        for ask in asks:
            lines = ask.prompt.question.split("\n")
            shown = lines[lines.index("[Response A]") + 1], lines[lines.index("[Response B]") + 1]
            p = table[shown]
            found.append(NONE if p is None else values(ask, A=math.log(p), B=math.log(1 - p)))
        return [found]

    return answer


def test_a_round_robin_averages_both_orders():
    table = {
        ("x", "y"): 0.9, ("y", "x"): 0.3,  # x wins by (0.9 + 0.7) / 2 = 0.8
        ("x", "z"): 0.6, ("z", "x"): 0.6,  # a judge that prefers the first place: 0.5
        ("y", "z"): 0.2, ("z", "y"): 0.6,  # (0.2 + 0.4) / 2 = 0.3
    }  # fmt: skip
    verdicts = run_program(PairwiseJudge().judge(make_group(("x", "y", "z"))), prefers(table))
    assert [verdict.score for verdict in verdicts] == pytest.approx([0.65, 0.25, 0.6])
    assert sum(verdict.score for verdict in verdicts) == pytest.approx(1.5), "every comparison gives away one"


def test_close_comparisons_are_ties():
    table = {("x", "y"): 0.58, ("y", "x"): 0.5}
    assert [v.score for v in run_program(PairwiseJudge(tie=0.05).judge(make_group(("x", "y"))), prefers(table))] == [
        0.5,
        0.5,
    ]
    assert [
        v.score for v in run_program(PairwiseJudge().judge(make_group(("x", "y"))), prefers(table))
    ] == pytest.approx([0.54, 0.46])


def test_a_comparison_that_did_not_come_counts_for_neither():
    table = {
        ("x", "y"): 0.9, ("y", "x"): None,
        ("x", "z"): 0.8, ("z", "x"): 0.2,
        ("y", "z"): 0.5, ("z", "y"): 0.5,
    }  # fmt: skip
    x, y, z = run_program(PairwiseJudge().judge(make_group(("x", "y", "z"))), prefers(table))
    assert (x.score, x.failed) == (pytest.approx(0.8), 1)
    assert (y.score, y.failed) == (pytest.approx(0.5), 1)
    assert (z.score, z.failed) == (pytest.approx(0.35), 0)


def test_a_lone_response_is_compared_with_nothing():
    (verdict,) = run_program(PairwiseJudge().judge(make_group(("x",))), prefers({}))
    assert (verdict.score, verdict.failed) == (None, 0)


def weighted(**parts) -> Weighted:
    return Weighted(parts=parts)


def test_a_weighted_sum_asks_in_one_wave_and_keeps_the_parts_scores():
    feedback = weighted(right={"name": "yes_no"}, preferred={"name": "pairwise_judge", "weight": -2})
    assert feedback.roles == ("judge",)
    waves = []

    def answer(asks):
        waves.append(len(asks))
        yes = {"yes": math.log(0.75), "no": math.log(0.25)}
        return [
            [values(ask, **(yes if "yes" in ask.sampling.candidate_tokens else {"A": 0.0, "B": 0.0})) for ask in asks]
        ]

    verdicts = run_program(feedback.judge(make_group(("x", "y"))), answer)
    assert waves == [4]
    assert [verdict.scores for verdict in verdicts] == [
        pytest.approx({"right": 0.75, "preferred": 0.5, "score": -0.25})
    ] * 2


def test_a_sum_that_lacks_a_part_is_no_score():
    feedback = weighted(right={"name": "yes_no"}, preferred={"name": "pairwise_judge"})
    (verdict,) = run_program(
        feedback.judge(make_group(("x",))), lambda asks: [[values(ask, yes=0.0, no=0.0) for ask in asks]]
    )
    assert verdict.score is None and verdict.scores == {"right": 0.5}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (None, "feedback.parts must name at least one feedback"),
        ({"score": {"name": "yes_no"}}, "'score' is the name of the sum"),
        ({"a": {"weight": 1}}, "feedback.parts.a must be such as"),
        ({"a": {"name": "yes_no", "weight": 0}}, "feedback.parts.a.weight must be a finite number other than 0, got 0"),
        ({"a": {"name": "yes_no", "weight": math.nan}}, "feedback.parts.a.weight must be a finite number"),
        ({"a": {"name": "nothing"}}, "no feedback named 'nothing'"),
        ({"a": {"name": "yes_no", "yess": "y"}}, "yess"),
    ],
)
def test_wrong_parts_are_refused_in_one_line(parts, message):
    with pytest.raises(ConfigError, match=message):
        Weighted(parts=parts)


def test_a_sum_hands_its_seed_to_the_parts_that_have_one():
    feedback = weighted(words={"name": "text_judge", "temperature": 1.0}, right={"name": "yes_no"})
    feedback.seed = 5
    assert feedback.feedbacks["words"].seed == 5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: YesNo(yes="no", no="No"), "must be different words, got 'no', 'No'"),
        (lambda: YesNo(template="{question}"), r"feedback.template must contain \{answer\}"),
        (lambda: PairwiseJudge(tie=0.5), r"feedback.tie must be in \[0, 0.5\), got 0.5"),
        (lambda: PairwiseJudge(template="{question} {a}"), r"feedback.template must contain \{b\}"),
    ],
)
def test_wrong_options_are_refused_by_name(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
