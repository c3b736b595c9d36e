"""An engine without a model, for tests of everything around an engine and for scaling benchmarks."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from actors.engines import engine
from rlsys.common.lazy import torch
from rlsys.contracts import Request
from rlsys.errors import ConfigError, EngineError
from rlsys.records import Completion, Generation, Probe, Prompt, Sampling
from rlsys.seeding import generator
from rlsys.transports.base import Receiver, open_receiver

END = 1
"""Token that ends a response."""
FIRST = 2
"""First token of the vocabulary that is a word."""


@engine("scripted")
@dataclass(kw_only=True)
class Scripted:
    """An engine whose responses are drawn from the request's seed, the prompt and the candidate's number. The weights change
    only the logprobs of probes."""

    dtype: str = "float32"
    vocabulary: int = 100
    """Number of tokens."""
    seconds_per_call: float = 0.0
    """Simulated computation time of a call."""
    at_once: int = 0
    """Number of requests of a call that are ready at the same time; 0 for all."""
    kv_cache_gib: float = 0.0
    fatal_prompts: list[str] = field(default_factory=list)
    """Ids of prompts that end the process."""
    refused_prompts: list[str] = field(default_factory=list)
    """Ids of prompts for which the engine raises an error."""

    def __post_init__(self) -> None:
        if self.vocabulary <= FIRST:
            raise ConfigError(f"engine.vocabulary must be above {FIRST}, got {self.vocabulary}")
        for name in ("seconds_per_call", "at_once"):
            if getattr(self, name) < 0:
                raise ConfigError(f"engine.{name} must be at least 0, got {getattr(self, name)}")

    @property
    def receivers(self) -> int:
        """Number of processes of one engine that take part in a weight update."""
        return 1

    def open(self, model: str, *, version: int = 0, raw_logits: bool = False) -> ScriptedEngine:
        """Make an engine; the arguments `model` and `raw_logits` are ignored."""
        return ScriptedEngine(self, version)


class ScriptedEngine:
    """The engine, an implementation of `rlsys.contracts.Engine`."""

    def __init__(self, options: Scripted, version: int) -> None:
        self.version = version
        self._options = options
        self._receiver: Receiver | None = None
        self._sum = 0.0
        """Sum of all received weights, on which the logprobs of probes depend."""

    def generate(self, requests: Sequence[Request]) -> list[Generation]:
        """One generation per request, in order.

        Raises:
            EngineError: a prompt is one of the refused prompts.
        """
        return [one for ready in self.stream(requests) for one in ready]

    def stream(self, requests: Sequence[Request]) -> Iterator[list[Generation]]:
        """As `generate`, but the generations are yielded in lists of `at_once`."""
        size = self._options.at_once or max(1, len(requests))
        for start in range(0, len(requests), size):
            now = requests[start : start + size]
            yield self._answers(now, self._options.seconds_per_call * len(now) / len(requests))

    def _answers(self, requests: Sequence[Request], seconds: float) -> list[Generation]:
        time.sleep(seconds)
        for prompt, _ in requests:
            if prompt.id in self._options.fatal_prompts:
                os._exit(1)
            if prompt.id in self._options.refused_prompts:
                raise EngineError(f"prompt {prompt.id!r} is refused")
        return [
            Generation(
                prompt_token_ids=_prompt_tokens(prompt),
                completions=tuple(self._completion(prompt, wanted, number) for number in range(wanted.num_samples)),
            )
            for prompt, wanted in requests
        ]

    def logprobs(self, probes: Sequence[Probe]) -> list[np.ndarray]:
        """float32 [T] for every probe; see `expected_logprobs`."""
        return [expected_logprobs(probe, self._sum) for probe in probes]

    def connect(self, offer: dict[str, Any]) -> None:
        """Join the weight sender that made `offer`."""
        if self._receiver is not None:
            self._receiver.close()
        self._receiver = open_receiver(offer, torch.device("cpu"))

    def begin_update(self) -> None:
        """Reset the sum of the received weights."""
        self._sum = 0.0

    def receive(self, manifest: dict[str, Any]) -> None:
        """Receive all buckets of an update, and add up their values."""
        if self._receiver is None:
            raise EngineError("weights are sent to an engine that has not joined a sender")
        for bucket in self._receiver.receive(manifest):
            self._sum += sum(float(tensor.double().sum()) for _, tensor in bucket)

    def end_update(self, version: int) -> dict[str, Any]:
        """Return the report of the received weights."""
        self.version = version
        return {**self._receiver.report(), "version": version}

    def close(self) -> None:
        """Leave the weight sender."""
        if self._receiver is not None:
            self._receiver.close()

    def _completion(self, prompt: Prompt, wanted: Sampling, number: int) -> Completion:
        rng = generator(wanted.seed, prompt.id, number if wanted.temperature > 0 else 0, str(wanted.temperature))
        words = rng.integers(FIRST, self._options.vocabulary, size=int(rng.integers(1, wanted.max_tokens + 1)))
        full = len(words) == wanted.max_tokens
        tokens = words if full else np.append(words, END)
        ending = "stop" if wanted.stop_token is None else "stop_token"
        scores = np.where(tokens == END, rng.normal(size=len(tokens)), np.nan)
        return Completion(
            text=" ".join(f"w{word}" for word in words),
            token_ids=tokens.astype(np.int32),
            logprobs=np.full(len(tokens), -np.log(self._options.vocabulary), np.float32),
            finish_reason="length" if full else ending,
            score_logits=None if wanted.score_token is None else scores.astype(np.float32),
            candidate_values=_candidate_values(wanted, prompt, len(tokens)),
        )


def _candidate_values(wanted: Sampling, prompt: Prompt, num_tokens: int) -> np.ndarray | None:
    """Values of the candidate tokens, float32 [T, C]. They depend on the question and the candidates, and not on the sampled
    tokens."""
    if not wanted.candidate_tokens:
        return None
    rng = generator(0, prompt.question, *wanted.candidate_tokens)
    return rng.normal(size=(num_tokens, len(wanted.candidate_tokens))).astype(np.float32)


def expected_logprobs(probe: Probe, weight_sum: float) -> np.ndarray:
    """float32 [T]: the logprobs of a probe from an engine whose received weights have the sum `weight_sum`. A fake learner can
    compute the same values."""
    tokens = np.asarray(probe.response_token_ids, np.float64)
    return (-0.01 * tokens - 0.001 * (weight_sum % 97.0)).astype(np.float32)


def _prompt_tokens(prompt: Prompt) -> np.ndarray:
    return np.frombuffer(prompt.question.encode(), np.uint8).astype(np.int32)
