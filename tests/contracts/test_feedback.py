"""What every feedback in the registry promises: pure halves, one verdict per answer, failures counted, not scored."""

import numpy as np
import pytest

from rlsys import registry
from rlsys.contracts import Feedback
from rlsys.records import Completion, Generation, Image, Prompt, RolloutGroup, Turn
from tests.fakes import sampled_response

registry.discover()
ENGINE_JUDGES = sorted(name for name, plugin in registry.feedback.items() if plugin.needs_engine)


def group(num_answers: int) -> RolloutGroup:
    rollouts = tuple(
        sampled_response(
            text=f"answer {i}", token_ids=np.array([i], np.int32), logprobs=np.array([-1.0], np.float32), count=1,
            finish_reason="stop", temperature=1.0, seed=i,
        )
        for i in range(num_answers)
    )  # fmt: skip
    image = Image(pixels=np.full((4, 4, 3), 7, np.uint8))
    return RolloutGroup(
        prompt=Prompt(id="p", turns=(Turn(role="user", text="What?"),), images=(image,)), round=0, index=0,
        policy_version=0, prompt_token_ids=np.array([1], np.int32), responses=rollouts,
    )  # fmt: skip


@pytest.mark.parametrize("name", sorted(registry.feedback))
def test_feedback_is_a_plug_in(name):
    assert isinstance(registry.feedback.make(name), Feedback)


@pytest.mark.parametrize("name", ENGINE_JUDGES)
def test_requests_are_repeatable_and_show_the_picture(name):
    feedback = registry.feedback.make(name)
    requests = feedback.requests(group(3))
    assert requests == feedback.requests(group(3))
    assert feedback.requests(group(0)) == []
    assert all(prompt.images == group(1).prompt.images for prompt, _ in requests)
    assert len({prompt.id for prompt, _ in requests}) == len(requests)


@pytest.mark.parametrize("name", ENGINE_JUDGES)
def test_nothing_delivered_is_no_score(name):
    feedback = registry.feedback.make(name)
    silent = [Generation(prompt_token_ids=np.array([1], np.int32), completions=()) for _ in feedback.requests(group(3))]
    verdicts = feedback.verdicts(group(3), silent)
    assert len(verdicts) == 3
    assert [verdict.score for verdict in verdicts] == [None, None, None]
    assert all(verdict.failed >= 1 for verdict in verdicts)


@pytest.mark.parametrize("name", ENGINE_JUDGES)
def test_babble_is_no_score(name):
    feedback = registry.feedback.make(name)
    babble = Completion(
        text="lorem ipsum", token_ids=np.array([1, 2], np.int32), logprobs=np.array([-1, -1], np.float32),
        finish_reason="length", score_logits=np.array([3.0, 3.0], np.float32),
    )  # fmt: skip
    generations = [
        Generation(prompt_token_ids=np.array([1], np.int32), completions=(babble,) * sampling.num_samples)
        for _, sampling in feedback.requests(group(2))
    ]
    assert [verdict.score for verdict in feedback.verdicts(group(2), generations)] == [None, None]
