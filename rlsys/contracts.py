"""What the parts of a run promise each other. Each Protocol says what it consumes, produces, waits for and raises.

The loop (`rounds.py`) knows only the stages below; Ray, vLLM and DeepSpeed stand behind them in `actors` and `learners`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

from rlsys.journal import Past
from rlsys.records import (
    Ask,
    FitReport,
    Generation,
    Interval,
    Probe,
    Prompt,
    Response,
    RolloutGroup,
    RoundPlan,
    RoundReport,
    Sampling,
    ScoredGroup,
    SyncReport,
    TokenIds,
    Verdict,
)

Request = tuple[Prompt, Sampling]
T = TypeVar("T")


@runtime_checkable
class PromptSource(Protocol):
    """A plug-in of group `prompts`: an ordered collection of prompts that can be entered at any place."""

    def take(self, start: int, count: int) -> Iterator[Prompt]:
        """Prompts `start .. start + count - 1`; the same position always gives the same prompt.

        Raises:
            PromptsExhausted: the source ends before `start + count`.
        """


Asking = Generator[list[Ask], list[Generation], T]
"""A small program that asks engines and returns a value: it yields a wave of questions, is sent their generations in order,
and may yield the next wave. A program depends on its input and the generations only, never on timing, so that a run can be
repeated; a generation that did not come has no completions. Programs are composed by `yield from`."""


@runtime_checkable
class Feedback(Protocol):
    """A plug-in of group `feedback`: turns responses into verdicts, by asking engines or by computing alone."""

    roles: Sequence[str]
    """Engines that it asks, such as `("judge",)`; empty if it only computes."""

    def judge(self, group: RolloutGroup) -> Asking[tuple[Verdict, ...]]:
        """One verdict per response. A judgement that cannot be read is counted as failed, never scored.

        The program of a feedback without roles runs in a process of its own, to which the plug-in goes by pickle: its class
        must be importable there by its module's name.
        """


@runtime_checkable
class Conversation(Protocol):
    """A plug-in of group `conversation`: how the policy responds to a prompt, in one turn or in several."""

    roles: Sequence[str]
    """Engines besides the policy that it asks, for example `("user",)`."""

    def respond(self, prompt: Prompt, plan: RoundPlan, seed: int) -> Asking[tuple[TokenIds, tuple[Response, ...]]]:
        """The prompt's tokens and distinct responses to it, `plan.num_candidates` in all if none failed.

        Args:
            seed: root seed of the run; seeds of requests are made from it by `rlsys.seeding.child_seed`.
        """


@runtime_checkable
class ExampleBuilder(Protocol):
    """A plug-in of group `examples`: what of a scored group an objective learns from."""

    produces: type
    """Record class of the examples, registered by `rlsys.records.example`; the objective's `consumes` must be the same."""

    def __call__(self, scored: ScoredGroup) -> list[Any]:
        """Examples of one group, in a fixed order. A group whose responses have no scores gives none."""


@runtime_checkable
class Replay(Protocol):
    """A plug-in of group `replay`: examples for a round's training that do not come from the round (all rounds before, a data
    set, people's corrections)."""

    sources: Sequence[str]
    """Names under which it brings examples; empty if it brings none."""
    produces: type | None
    """Record class of what it brings, which must be the objective's `consumes`; `None` if it follows the round's own."""

    def check(self) -> None:
        """See, before anything is started, that what it brings is there.

        Raises:
            ConfigError: it is not.
        """

    def mix(self, examples: Iterator[Any], plan: RoundPlan, past: Past) -> Iterator[Any]:
        """All of the round's own examples in their order, passed through as soon as they come, and others among them, each as
        `Replayed`. What is brought, and where, depends on the options and the past only, never on timing, so that a resumed
        run trains on the same.
        """


class Engine(Protocol):
    """A model that generates, on one device or a tensor-parallel group of them (`actors/engines/`)."""

    def generate(self, requests: Sequence[Request]) -> list[Generation]:
        """Continuations for every request, in order; none for a prompt that the model does not take. Why not may stand in a
        list `notes` of the engine, which whoever tells it empties.

        Raises:
            EngineError: the engine failed; nothing of the batch is delivered.
        """

    def stream(self, requests: Sequence[Request]) -> Iterator[list[Generation]]:
        """As `generate`, but each soon after it and those before it are there; those that are handed over at once are one list.

        Raises:
            EngineError: the engine failed; what was delivered before is whole.
        """

    def logprobs(self, probes: Sequence[Probe]) -> list[Any]:
        """float32 [T] log-probabilities of every probe's response tokens."""

    def connect(self, offer: dict[str, Any]) -> None:
        """Join a transport's group of sender and receivers."""

    def begin_update(self) -> None:
        """Get ready for new weights."""

    def receive(self, manifest: dict[str, Any]) -> None:
        """Take all packed buckets of an update, described by a manifest (`rlsys.transports.buckets`)."""

    def end_update(self, version: int) -> dict[str, Any]:
        """Load what came, reset the prefix, multimodal and encoder caches, and report `names`, `num_tensors`, `num_bytes`,
        `digest` and `version`."""

    def close(self) -> None:
        """Free the device."""


class RolloutStage(Protocol):
    """prompts -> rollout groups, on any number of workers."""

    def stream(self, prompts: Iterable[Prompt], plan: RoundPlan) -> Iterator[RolloutGroup]:
        """One group per prompt, in prompt order, all from one version of the weights. A worker that dies is replaced and
        its unfinished prompts are done again, once; a prompt that fails twice is delivered as a group without rollouts."""

    def logprobs(self, probes: Sequence[Probe]) -> list[list[Any]]:
        """For every worker, log-probabilities of the probes."""

    def count(self, round: int) -> dict[str, float]:
        """Counters of a round: `seconds` (busy, mean over workers), `failed_workers`, and `failed_held_out`: answers to
        held-out prompts that did not come."""


class FeedbackStage(Protocol):
    """rollout groups -> scored groups."""

    def stream(self, groups: Iterable[RolloutGroup], options: Mapping[str, Any] | None = None) -> Iterator[ScoredGroup]:
        """One scored group per group, in order. `options` of the feedback hold for this call."""

    def count(self, round: int) -> dict[str, float]:
        """Counters of a round: `seconds`, `failed_workers`."""


class Learner(Protocol):
    """examples -> new weights."""

    def fit(self, examples: Iterable[Any], plan: RoundPlan, *, version: int) -> FitReport:
        """Take the optimizer steps of a round; begins at the first full batch.

        Args:
            examples: of the record class that the plan's objective learns from.
            version: of the weights that the steps start from.

        Raises:
            LearnerError: a loss is not finite, a reference does not match, or a rank died.
        """

    def logprobs(self, probes: Sequence[Probe]) -> list[Any]:
        """float32 [T] log-probabilities of every probe's response tokens under the current weights."""

    def save(self, directory: str) -> None:
        """Write the policy as a Hugging Face folder `policy/` and the optimizer beside it."""

    def load(self, directory: str) -> None:
        """Go back to what `save` wrote."""

    def reset(self) -> None:
        """Go back to the weights it started from, with a fresh optimizer."""


class Weights(Protocol):
    """The way from the learner to the engines."""

    def publish(self, version: int) -> SyncReport:
        """Send, load, reset caches, prove.

        Raises:
            SyncError: what arrived is not what was sent, or the probe gap is above tolerance.
            SyncTimeout: not done before the deadline.
        """


class Evaluation(Protocol):
    """A plug-in of group `evaluation`: what a policy is worth, measured on its own questions."""

    roles: Sequence[str]
    """Engines that it asks: `policy`, and a judge if it needs one."""
    directions: Mapping[str, int]
    """Every metric that it may return: +1 if higher is better, -1 if lower is, 0 if neither."""

    def run(self) -> Asking[dict[str, Interval]]:
        """Metrics, each with its bootstrap 95 % interval."""


class Evaluate(Protocol):
    """Measures the engines' current weights on the held-out prompts."""

    def __call__(self, round: int, *, ends: bool = False) -> dict[str, Interval]:
        """Held-out metrics after a round; empty if it is not that round's turn.

        Args:
            ends: the run ends with this round, which makes it its turn.
        """


class Gate(Protocol):
    """Decides after every round whether its weights stay and whether the run goes on."""

    def accepts(self, report: RoundReport) -> bool:
        """Whether the round's weights stay. Called once per round."""

    def stops(self, report: RoundReport) -> str | None:
        """Why the run ends here, or `None`. Changes nothing. Asked after `accepts`, and of a round that was not evaluated also
        before: one that the run ends with is then evaluated."""

    def state(self) -> dict[str, Any]:
        """What a resumed run needs to go on deciding, JSON values only."""


class Tracker(Protocol):
    """Shows how far a stage has come."""

    def track(self, stage: str, items: Iterable[Any], total: int | None) -> Iterator[Any]:
        """Pass `items` through."""
