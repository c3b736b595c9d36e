"""Judges: what they ask and how their answers are read, on hand-made generations."""

import numpy as np
import pytest
from omegaconf import OmegaConf

from rlsys.asking.driver import run_program
from rlsys.asking.prompts import judge_prompt
from rlsys.errors import ConfigError
from rlsys.feedback.critique import CritiqueFeedback
from rlsys.feedback.text_judge import TextJudge
from rlsys.records import Completion, Critique, Generation, Image, Prompt, RolloutGroup, Turn
from tests.fakes import sampled_response

IMAGE = Image(pixels=np.zeros((2, 2, 3), np.uint8))
TEMPLATE = "Q {question} A {answer}"


def group(*texts: str, round: int = 0) -> RolloutGroup:
    rollouts = tuple(
        sampled_response(
            text=text, token_ids=np.array([i], np.int32), logprobs=np.array([-1.0], np.float32), count=1,
            finish_reason="stop", temperature=1.0, seed=i,
        )
        for i, text in enumerate(texts)
    )  # fmt: skip
    return RolloutGroup(
        prompt=Prompt(id="scene-7", turns=(Turn(role="user", text="What is there?"),), images=(IMAGE,)),
        round=round, index=0, policy_version=0, prompt_token_ids=np.array([1], np.int32), responses=rollouts,
    )  # fmt: skip


def completion(text: str, *, reason: str = "stop_token", logits: list[float] | None = None) -> Completion:
    return Completion(
        text=text,
        token_ids=np.array([4, 5], np.int32),
        logprobs=np.array([-0.1, -0.2], np.float32),
        finish_reason=reason,
        score_logits=None if logits is None else np.array(logits, np.float32),
    )


def asked(feedback, group) -> list[tuple]:
    """The first wave of questions, all to the judge."""
    program = feedback.judge(group)
    asks = next(program)
    assert {ask.role for ask in asks} == {"judge"}
    return [(ask.prompt, ask.sampling) for ask in asks]


def verdicts_of(feedback, group, generations) -> tuple:
    """The verdicts after one wave that is answered by `generations`."""
    return run_program(feedback.judge(group), lambda asks: [generations])


def generation(*completions: Completion) -> Generation:
    return Generation(prompt_token_ids=np.array([1, 2], np.int32), completions=completions)


def test_the_judge_sees_the_images_the_question_and_the_answer():
    prompt = judge_prompt("judge {a: 1}: [{question}] [{answer}]", group("x").prompt, "a {question} in red")
    assert prompt.turns == (Turn(role="user", text="judge {a: 1}: [What is there?] [a {question} in red]"),)
    assert prompt.images == (IMAGE,)
    assert prompt.id == judge_prompt("other {question} {answer}", group("x").prompt, "a {question} in red").id
    assert prompt.id.startswith("scene-7/judge/")


def test_the_judge_sees_a_whole_conversation():
    turns = (Turn(role="user", text="Hi"), Turn(role="assistant", text="Yes?"), Turn(role="user", text="Red?"))
    assert judge_prompt(TEMPLATE, Prompt(id="c", turns=turns), "No").question == (
        "Q user: Hi\nassistant: Yes?\nuser: Red? A No"
    )


def test_critique_asks_once_per_answer_up_to_the_score_token():
    feedback = CritiqueFeedback(template=TEMPLATE, num_critiques=3, temperature=0.7, max_tokens=40, score_token="<s>")
    (prompt_a, sampling_a), (prompt_b, sampling_b) = asked(feedback, group("a", "b"))
    assert (prompt_a.question, prompt_b.question) == ("Q What is there? A a", "Q What is there? A b")
    assert prompt_a.id != prompt_b.id
    assert (sampling_a.num_samples, sampling_a.temperature, sampling_a.max_tokens) == (3, 0.7, 40)
    assert (sampling_a.stop_token, sampling_a.score_token) == ("<s>", "<s>")
    assert sampling_a.seed != sampling_b.seed
    assert asked(feedback, group("a", "b")) == asked(feedback, group("a", "b"))
    assert asked(feedback, group("a", round=1))[0][1].seed != sampling_a.seed


def test_critique_reads_the_logit_of_the_score_token_alone():
    verdicts = verdicts_of(
        CritiqueFeedback(),
        group("a", "b"),
        [generation(completion(" no cube. ", logits=[9.0, -1.5])), generation(completion("fine", logits=[0.0, 2.25]))],
    )
    assert [verdict.critiques for verdict in verdicts] == [
        (Critique(text="no cube.", score=-1.5),),
        (Critique(text="fine", score=2.25),),
    ]
    assert [verdict.failed for verdict in verdicts] == [0, 0]


@pytest.mark.parametrize(
    "unreadable",
    [
        completion("cut", reason="length", logits=[0.0, 3.0]),
        completion("ended without a score", reason="stop", logits=[0.0, 3.0]),
        completion("not finite", logits=[0.0, float("nan")]),
        completion("not finite", logits=[0.0, float("inf")]),
        completion("no logits"),
    ],
)
def test_a_critique_that_cannot_be_read_is_absent_and_counted(unreadable):
    (verdict,) = verdicts_of(CritiqueFeedback(), group("a"), [generation(unreadable)])
    assert (verdict.critiques, verdict.failed, verdict.score) == (
        (Critique(text=unreadable.text, score=None),),
        1,
        None,
    )


def test_several_critiques_are_averaged_over_those_that_could_be_read():
    feedback = CritiqueFeedback(num_critiques=4, temperature=1.0)
    delivered = generation(
        completion("x", logits=[0.0, 1.0]),
        completion("y", reason="length", logits=[0.0, 9.0]),
        completion("z", logits=[0.0, 4.0]),
    )
    (verdict,) = verdicts_of(feedback, group("a"), [delivered])
    assert (verdict.score, len(verdict.critiques), verdict.failed) == (2.5, 3, 2)


def test_verdicts_refuse_a_wrong_number_of_generations():
    with pytest.raises(ValueError, match="a wave of 2 questions did not get as many generations"):
        verdicts_of(CritiqueFeedback(), group("a", "b"), [])


def test_answers_that_read_the_same_are_judged_once_and_share_the_verdict():
    feedback, same = CritiqueFeedback(), group("a", "b", "a")
    assert [prompt.question.count("[Answer]\na\n") for prompt, _ in asked(feedback, same)] == [1, 0]
    delivered = [generation(completion(text, logits=[score])) for text, score in (("good", 2.0), ("bad", -1.0))]
    found = verdicts_of(feedback, same, delivered)
    assert [verdict.score for verdict in found] == [2.0, -1.0, 2.0]


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("Good.\nScore: 8", 8.0),
        ("clarity score: 3, truth score 2.\n**Score:** 4.5/10", 4.5),
        ("the score is 7", 7.0),
        ("score of 10.", 10.0),
        ("Score: 11", None),
        ("Score: -3", None),
        ("eight out of ten", None),
        ("", None),
    ],
)
def test_text_judge_reads_the_last_number_within_its_range(text, score):
    (verdict,) = verdicts_of(TextJudge(), group("a"), [generation(completion(text, reason="stop"))])
    assert (verdict.score, verdict.failed) == (score, 0 if score is not None else 1)


def test_text_judge_believes_no_judgement_cut_in_its_number():
    (verdict,) = verdicts_of(TextJudge(), group("a"), [generation(completion("Score: 1", reason="length"))])
    assert (verdict.score, verdict.failed) == (None, 1)


def test_text_judge_with_a_pattern_and_range_of_its_own():
    judge = TextJudge(template=TEMPLATE, pattern=r"rating=(\S+)", low=None, high=None)
    texts = ["rating=-250.5", "rating=high", "rating=nan", "rating=1e999"]
    verdicts = verdicts_of(judge, group(*"abcd"), [generation(completion(text, reason="stop")) for text in texts])
    assert [verdict.score for verdict in verdicts] == [-250.5, None, None, None]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CritiqueFeedback(template="{answer}"), r"template must contain \{question\}"),
        (lambda: CritiqueFeedback(num_critiques=0), "num_critiques must be at least 1, got 0"),
        (lambda: CritiqueFeedback(max_tokens=-1), "max_tokens must be at least 1, got -1"),
        (lambda: CritiqueFeedback(temperature=float("nan")), "temperature must be finite .* nan"),
        (lambda: CritiqueFeedback(num_critiques=2), "num_critiques is 2 at feedback.temperature 0"),
        (lambda: CritiqueFeedback(score_token=""), "score_token must name a token"),
        (lambda: TextJudge(pattern="("), "pattern is no regular expression"),
        (lambda: TextJudge(pattern=r"(\d)(\d)"), "exactly one group, has 2"),
        (lambda: TextJudge(low=5, high=1), "low must be below feedback.high, got 5 and 1"),
    ],
)
def test_a_wrong_option_is_named_with_its_value(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_options_compose_as_a_structured_config():
    config = OmegaConf.merge(OmegaConf.structured(TextJudge), {"low": None, "num_critiques": 2, "temperature": 0.5})
    judge = OmegaConf.to_object(config)
    assert isinstance(judge, TextJudge)
    assert (judge.low, judge.high, judge.num_critiques) == (None, 10.0, 2)
