"""What every feedback in the registry promises: repeatable programs, one verdict per response, failures not scored."""

import numpy as np
import pytest

from rlsys import registry
from rlsys.asking.driver import run_program
from rlsys.contracts import Feedback
from rlsys.records import Completion, Generation, Image, Prompt, RolloutGroup, Turn
from tests.fakes import sampled_response

registry.discover()
OPTIONS = {"weighted": {"parts": {"right": {"name": "yes_no"}, "words": {"name": "text_judge", "weight": 0.1}}}}
"""Options of plug-ins that cannot be made without any."""


def make(name: str) -> Feedback:
    return registry.feedback.make(name, **OPTIONS.get(name, {}))


ASKING = sorted(name for name in registry.feedback if make(name).roles)


def group(num_responses: int) -> RolloutGroup:
    responses = tuple(
        sampled_response(
            text=f"answer {i}", token_ids=np.array([i], np.int32), logprobs=np.array([-1.0], np.float32), seed=i
        )
        for i in range(num_responses)
    )
    image = Image(pixels=np.full((4, 4, 3), 7, np.uint8))
    return RolloutGroup(
        prompt=Prompt(id="p", turns=(Turn(role="user", text="What?"),), images=(image,)), round=0, index=0,
        policy_version=0, prompt_token_ids=np.array([1], np.int32), responses=responses,
    )  # fmt: skip


def first_wave(name: str, num_responses: int) -> list:
    return next(make(name).judge(group(num_responses)), [])


def answered(name: str, num_responses: int, answer) -> tuple:
    return run_program(make(name).judge(group(num_responses)), lambda asks: [[answer(ask) for ask in asks]])


@pytest.mark.parametrize("name", sorted(registry.feedback))
def test_feedback_is_a_plug_in(name):
    assert isinstance(make(name), Feedback)


@pytest.mark.parametrize("name", ASKING)
def test_questions_are_repeatable_of_its_roles_and_show_the_images(name):
    asks = first_wave(name, 3)
    assert asks and asks == first_wave(name, 3)
    assert {ask.role for ask in asks} <= set(make(name).roles)
    assert all(ask.prompt.images == group(1).prompt.images for ask in asks)
    assert len({(ask.prompt.id, ask.sampling.candidate_tokens) for ask in asks}) == len(asks)


@pytest.mark.parametrize("name", ASKING)
def test_a_group_without_responses_gets_no_verdict(name):
    silent = Generation(prompt_token_ids=np.array([1], np.int32), completions=())
    assert answered(name, 0, lambda ask: silent) == ()


@pytest.mark.parametrize("name", ASKING)
def test_nothing_delivered_is_no_score(name):
    silent = Generation(prompt_token_ids=np.array([1], np.int32), completions=())
    verdicts = answered(name, 3, lambda ask: silent)
    assert len(verdicts) == 3
    assert [verdict.score for verdict in verdicts] == [None, None, None]
    assert all(verdict.failed >= 1 for verdict in verdicts)


@pytest.mark.parametrize("name", ASKING)
def test_babble_is_no_score(name):
    babble = Completion(
        text="lorem ipsum", token_ids=np.array([1, 2], np.int32), logprobs=np.array([-1, -1], np.float32),
        finish_reason="length", score_logits=np.array([3.0, 3.0], np.float32),
    )  # fmt: skip

    def answer(ask):
        return Generation(prompt_token_ids=np.array([1], np.int32), completions=(babble,) * ask.sampling.num_samples)

    assert [verdict.score for verdict in answered(name, 2, answer)] == [None, None]
