"""Conversations: which tokens are the policy's, and what is asked."""

from dataclasses import replace

import numpy as np
import pytest

from rlsys.asking.driver import run_program
from rlsys.conversations.scripted import Scripted
from rlsys.conversations.single_turn import SingleTurn, candidates_per_temperature
from rlsys.records import Generation, Turn
from tests.fakes import make_completion, make_plan, make_prompt

PLAN = make_plan(num_candidates=2)
START = np.array([1, 2, 3], np.int32)
"""Tokens of the first prompt."""
BETWEEN = [7, 8]
"""Tokens of a user's turn and what stands around it."""


class Policy:
    """Says one letter a turn, other letters for other candidates; sees the tokens that a template would make."""

    def __init__(self):
        self.asks = []

    def __call__(self, asks):
        self.asks.append(asks)
        yield [self._generation(ask) for ask in asks]

    def _generation(self, ask):
        ids = list(START)
        for turn in ask.prompt.turns[1:]:
            ids += turn.token_ids if turn.role == "assistant" else BETWEEN
        texts = [chr(ord("a") + number + len(ask.prompt.turns)) for number in range(ask.sampling.num_samples)]
        completions = tuple(make_completion(text) for text in texts)
        return Generation(prompt_token_ids=np.array(ids, np.int32), completions=completions, version=4)


def respond(conversation, prompt, policy, plan=PLAN):
    return run_program(conversation.respond(prompt, plan, 0), policy)


def test_candidates_are_shared_evenly_between_temperatures():
    assert candidates_per_temperature(8, 3) == [3, 3, 2]
    assert candidates_per_temperature(2, 2) == [1, 1]


def test_a_single_turn_merges_copies_and_records_how_they_were_sampled():
    policy = Policy()
    prompt_ids, responses = respond(SingleTurn(), make_prompt(), policy)
    assert prompt_ids.tolist() == [1, 2, 3]
    assert [(one.text, one.count, one.sampled.policy_version, one.loss_mask) for one in responses] == [
        ("b", 1, 4, None),
        ("c", 1, 4, None),
    ]
    assert len(policy.asks) == 1


def test_a_script_brings_in_the_users_turns_and_masks_them():
    prompt = replace(make_prompt(), script=(Turn(role="user", text="really ?"), Turn(role="user", text="sure ?")))
    policy = Policy()
    prompt_ids, responses = respond(Scripted(), prompt, policy)
    assert prompt_ids.tolist() == [1, 2, 3]
    assert [len(wave) for wave in policy.asks] == [1, 2, 2], "one request for both candidates, then one for each"
    first, second = responses
    assert first.text == "b\nuser: really ?\nassistant: d\nuser: sure ?\nassistant: f"
    assert first.token_ids.tolist() == [ord("b"), 7, 8, ord("d"), 7, 8, ord("f")]
    assert first.loss_mask.tolist() == [1, 0, 0, 1, 0, 0, 1]
    assert first.sampled.logprobs.tolist() == [-0.5, 0, 0, -0.5, 0, 0, -0.5]
    assert second.token_ids[0] == ord("c") and (first.id, second.id) == ("0", "1")
    later = [ask.prompt.turns for ask in policy.asks[2]]
    assert [turn.role for turn in later[0]] == ["user", "assistant", "user", "assistant", "user"]
    assert later[0][1].token_ids == (ord("b"),) and later[1][1].token_ids == (ord("c"),)
    seeds = {ask.sampling.seed for wave in policy.asks for ask in wave}
    assert len(seeds) == 5, "every turn of every candidate has a seed of its own"


def test_a_prompt_without_a_script_is_one_turn():
    _, responses = respond(Scripted(), make_prompt(), Policy())
    assert [one.token_ids.tolist() for one in responses] == [[ord("b")], [ord("c")]]
    assert responses[0].loss_mask.tolist() == [1]


def test_a_response_that_was_cut_ends_its_conversation():
    prompt = replace(make_prompt(), script=(Turn(role="user", text="really ?"),))

    def cut(asks):
        (ask,) = asks
        completions = tuple(make_completion("x", finish_reason="length") for _ in range(ask.sampling.num_samples))
        yield [Generation(prompt_token_ids=START, completions=completions)]

    _, responses = respond(Scripted(), prompt, cut)
    assert [(one.text, one.finish_reason) for one in responses] == [("x", "length")] * 2


def test_a_turn_that_did_not_come_leaves_the_conversation_out():
    prompt = replace(make_prompt(), script=(Turn(role="user", text="really ?"),))
    policy = Policy()

    def loses_one(asks):
        (ready,) = policy(asks)
        yield [ready[0], replace(ready[1], completions=())] if len(ready) == 2 else ready

    _, responses = respond(Scripted(), prompt, loses_one)
    assert [one.id for one in responses] == ["0"]


def test_earlier_turns_that_come_back_changed_are_an_error():
    prompt = replace(make_prompt(), script=(Turn(role="user", text="really ?"),))
    policy = Policy()

    def tokenizes_again(asks):
        (ready,) = policy(asks)
        changed = [
            replace(one, prompt_token_ids=np.where(one.prompt_token_ids > 90, 5, one.prompt_token_ids)) for one in ready
        ]
        yield changed

    with pytest.raises(ValueError, match="the tokens of an earlier turn came back changed"):
        respond(Scripted(), prompt, tokenizes_again)
