"""A conversation whose further user turns are known before it begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from rlsys import registry
from rlsys.asking.driver import together
from rlsys.contracts import Asking
from rlsys.conversations.single_turn import completions_of, first_samplings, sampled_as
from rlsys.records import Ask, Completion, Generation, Prompt, Response, RoundPlan, Sampling, TokenIds, Turn
from rlsys.seeding import child_seed


@registry.conversation("scripted")
@dataclass(kw_only=True)
class Scripted:
    """After every response of the policy comes the next user turn of the prompt (`Prompt.script`), until there is none or a
    response was cut at the token limit. A prompt without a script is one turn.

    A conversation is one response whose loss mask leaves out the user's turns. Its text has a line per further turn, with
    the speaker's name before it. Sampled tokens are handed on as they are, never tokenized again.
    """

    roles: ClassVar[tuple[str, ...]] = ()

    def respond(self, prompt: Prompt, plan: RoundPlan, seed: int) -> Asking[tuple[TokenIds, tuple[Response, ...]]]:
        """One response per candidate; equal first turns are not merged, since the turns after them differ."""
        samplings = first_samplings(prompt, plan, seed)
        generations = yield [Ask(role="policy", prompt=prompt, sampling=sampling) for sampling in samplings]
        prompt_ids = generations[0].prompt_token_ids
        begun = [
            _Conversation.begun(prompt, prompt_ids, *first, number=number)
            for number, first in enumerate(completions_of(generations, samplings))
        ]
        ended = yield from together([_continued(one, prompt.script, plan, seed) for one in begun])
        return prompt_ids, tuple(one.response() for one in ended if one is not None)


@dataclass(kw_only=True)
class _Conversation:
    """A conversation that goes on. T tokens so far, after those of the prompt."""

    prompt: Prompt
    """With the turns so far."""
    start: int
    """Number of tokens of the first prompt."""
    number: int
    """Number of the candidate among the candidates of its prompt."""
    sampling: Sampling
    version: int
    texts: list[str] = field(default_factory=list)
    tokens: list[np.ndarray] = field(default_factory=list)
    logprobs: list[np.ndarray] = field(default_factory=list)
    masks: list[np.ndarray] = field(default_factory=list)
    finish_reason: str = "stop"

    @classmethod
    def begun(
        cls, prompt: Prompt, prompt_ids: np.ndarray, one: Completion, sampling: Sampling, version: int, *, number: int
    ) -> _Conversation:
        """After the policy's first turn."""
        conversation = cls(prompt=prompt, start=len(prompt_ids), number=number, sampling=sampling, version=version)
        conversation.add(one)
        return conversation

    def add(self, one: Completion) -> None:
        """Take a turn of the policy."""
        self._append(one.token_ids, one.logprobs, policy=True)
        self.texts.append(one.text if not self.texts else f"assistant: {one.text}")
        self.finish_reason = one.finish_reason
        turn = Turn(role="assistant", text=one.text, token_ids=tuple(one.token_ids.tolist()))
        self.prompt = replace(self.prompt, turns=(*self.prompt.turns, turn))

    def ask(self, turn: Turn) -> Prompt:
        """The prompt of the policy's next turn, after a user's."""
        self.texts.append(f"{turn.role}: {turn.text}")
        self.prompt = replace(self.prompt, turns=(*self.prompt.turns, turn))
        return self.prompt

    def shown(self, prompt_ids: np.ndarray) -> None:
        """Take the tokens between the policy's turns from the engine's own prompt.

        Raises:
            ValueError: the engine did not see the conversation so far as it was sampled.
        """
        known = self.start + sum(map(len, self.tokens))
        so_far = np.concatenate(self.tokens)
        if not np.array_equal(prompt_ids[self.start : known], so_far):
            raise ValueError(f"prompt {self.prompt.id!r}: the tokens of an earlier turn came back changed")
        between = prompt_ids[known:].astype(np.int32)
        self._append(between, np.zeros(len(between), np.float32), policy=False)

    def response(self) -> Response:
        """The whole conversation as one response."""
        return Response(
            id=str(self.number),
            text="\n".join(self.texts),
            token_ids=np.concatenate(self.tokens).astype(np.int32),
            loss_mask=np.concatenate(self.masks),
            finish_reason=self.finish_reason,
            sampled=sampled_as(self.sampling, np.concatenate(self.logprobs), self.version),
        )

    def _append(self, token_ids: np.ndarray, logprobs: np.ndarray, *, policy: bool) -> None:
        self.tokens.append(token_ids)
        self.logprobs.append(logprobs)
        self.masks.append(np.full(len(token_ids), policy, np.uint8))


def _continued(
    conversation: _Conversation, script: Sequence[Turn], plan: RoundPlan, seed: int
) -> Asking[_Conversation | None]:
    """Take the further turns; `None` if one of them did not come."""
    for number, turn in enumerate(script, 1):
        if conversation.finish_reason == "length":
            return conversation
        prompt = conversation.ask(turn)
        own = child_seed(seed, "turn", plan.round, prompt.id, conversation.number, number)
        sampling = replace(conversation.sampling, num_samples=1, seed=own)
        generation: Generation
        (generation,) = yield [Ask(role="policy", prompt=prompt, sampling=sampling)]
        if not generation.completions:
            return None
        conversation.shown(generation.prompt_token_ids)
        conversation.add(generation.completions[0])
    return conversation
