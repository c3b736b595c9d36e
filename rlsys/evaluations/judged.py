"""A judge compares the policy's responses with those of the policy that the run started from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import ClassVar

import numpy as np

from rlsys import registry, wire
from rlsys.asking.prompts import check_at_least
from rlsys.common import files
from rlsys.contracts import Asking
from rlsys.errors import ConfigError, PromptsExhausted
from rlsys.evaluations.bootstrap import Bootstrap
from rlsys.evaluations.held_out import RESAMPLE_SEED, HeldOut, responses_of
from rlsys.feedback.pairwise_judge import PairwiseJudge
from rlsys.records import Interval, Prompt, Response, RolloutGroup

REFUSAL = re.compile(
    r"\b(i am|i'm|i’m) (sorry|unable|not able)\b|\bi (can ?not|can't|can’t|won't|won’t|must decline)\b|\bas an ai\b",
    re.IGNORECASE,
)
"""Pattern of a refusal: a response that matches it within its first `REFUSAL_WORDS` words counts as a refusal."""
REFUSAL_WORDS = 20


@registry.evaluation("judged")
@dataclass(kw_only=True)
class Judged(HeldOut):
    """Win rate against the starting policy on held-out prompts, judged in both orders, with length and refusal shares.

    The first measurement of a run, before its first round, samples the starting policy itself: its responses become the
    baseline, and its win rate is one half by definition. A comparison that lacks one of its two orders is absent and counted in
    `judge_failed`. The judge compares in the same way as the feedback `pairwise_judge`.
    """

    roles: ClassVar[tuple[str, ...]] = ("policy", "judge")
    directions: ClassVar[dict[str, int]] = {"win_rate": +1, "mean_length": 0, "refusal_share": -1, "judge_failed": -1}

    path: str = ""
    """A JSON-lines file of prompts that no round trains on, as `prompts=jsonl` reads it."""
    num_prompts: int = 200
    """Number of prompts, from the file's beginning; fewer if the file has fewer."""
    tie: float = 0.0
    """A mean probability within this distance of one half is a tie."""
    against: str = ""
    """A file of responses that another run kept (`evaluations/<name>/baseline.msgpack` in its folder), which become the
    baseline. If empty, the baseline is the first responses that this run measures.
    """
    folder: str | None = None
    """Folder that keeps the first responses, so that a resumed run has the same baseline; the run sets it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._first: list[RolloutGroup] = []
        check_at_least("evaluation", self, num_prompts=1)
        if not self.path:
            raise ConfigError("evaluation.path must name a file of held-out prompts, got ''")
        PairwiseJudge(tie=self.tie)

    def prompts(self) -> list[Prompt]:
        """
        Raises:
            ConfigError: the file has no prompt.
        """
        source = registry.prompts.make("jsonl", path=self.path)
        for count in range(self.num_prompts, 0, -1):
            try:
                return list(source.take(0, count))
            except PromptsExhausted:
                continue
        raise ConfigError(f"evaluation.path: {self.path} has no prompts")

    def check_alone(self) -> None:
        """
        Raises:
            ConfigError: a measurement outside a run would have no responses to compare with.
        """
        if not self.against:
            raise ConfigError("evaluations.judged.against must name the responses to compare with, got ''")

    def run(self) -> Asking[dict[str, Interval]]:
        """Sample the policy's responses, then let the judge compare each with the baseline's response, in one wave.

        Raises:
            ConfigError: the baseline has responses to other prompts, or the policy has moved before a baseline was kept.
        """
        asks = [self.ask(prompt) for prompt in self.prompts()]
        generations = yield asks
        groups = [responses_of(ask, one) for ask, one in zip(asks, generations, strict=True)]
        baseline = self._baseline([group.prompt.id for group in groups])
        if not baseline:
            version = max(group.policy_version for group in groups)
            if version > 0:
                raise ConfigError(
                    f"evaluations.judged.against: the policy is at version {version} and no responses of version 0 were kept; "
                    "name those of another run"
                )
            self._keep(groups)
            return self._intervals(groups, [0.5 if group.responses else None for group in groups])
        judge = PairwiseJudge(tie=self.tie)
        found = yield from _compared(judge, groups, baseline)
        return self._intervals(groups, found)

    def _baseline(self, ids: Sequence[str]) -> list[RolloutGroup]:
        """The baseline's responses to the prompts of these ids; empty if this is the first measurement.

        Raises:
            ConfigError: `against` is not a file, or the baseline has responses to other prompts.
        """
        path = Path(self.against) if self.against else self._file
        if path is None or not path.exists():
            if self.against:
                raise ConfigError(f"evaluation.against: no file {self.against!r}")
            return self._first
        baseline = wire.decode_many(path.read_bytes(), RolloutGroup)
        known = [group.prompt.id for group in baseline]
        if known != list(ids):
            pairs = zip_longest(known, ids)
            number, (theirs, ours) = next((n, pair) for n, pair in enumerate(pairs) if pair[0] != pair[1])
            raise ConfigError(
                f"evaluations.judged: {path} has responses to other prompts: prompt {number} is {theirs!r} there and "
                f"{ours!r} in {self.path}"
            )
        return baseline

    def _keep(self, groups: list[RolloutGroup]) -> None:
        self._first = groups
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            files.replace(self._file, wire.encode_many(groups))

    @property
    def _file(self) -> Path | None:
        return None if self.folder is None else Path(self.folder) / "baseline.msgpack"

    def _intervals(self, groups: Sequence[RolloutGroup], wins: Sequence[float | None]) -> dict[str, Interval]:
        texts = [group.responses[0].text if group.responses else None for group in groups]
        there = np.array([text is not None for text in texts], float)
        rows = {
            "win_rate": ([win or 0.0 for win in wins], [win is not None for win in wins]),
            "mean_length": ([len((text or "").split()) for text in texts], there),
            "refusal_share": ([text is not None and refuses(text) for text in texts], there),
            "judge_failed": ([win is None for win in wins], np.ones(len(wins))),
        }
        bootstrap = Bootstrap.draw(len(groups), resamples=self.resamples, seed=RESAMPLE_SEED)
        found = {
            name: bootstrap.ratio(np.array(top, float), np.array(bottom, float)) for name, (top, bottom) in rows.items()
        }
        return {name: interval for name, interval in found.items() if interval is not None}


def _compared(
    judge: PairwiseJudge, groups: Sequence[RolloutGroup], baseline: Sequence[RolloutGroup]
) -> Asking[list[float | None]]:
    """For each prompt, the probability that the new response is preferred; one half where both texts are equal, `None` where
    the comparison failed.
    """
    pairs = [_pair(group, other) for group, other in zip(groups, baseline, strict=True)]
    asks = [ask for pair in pairs if pair is not None and _differ(pair) for ask in judge.comparisons(pair)]
    left = iter((yield asks))
    found: list[float | None] = []
    for pair in pairs:
        if pair is None:
            found.append(None)
        elif not _differ(pair):
            found.append(0.5)
        else:
            found.append(judge.preferred([next(left), next(left)]))
    return found


def _pair(group: RolloutGroup, other: RolloutGroup) -> RolloutGroup | None:
    """Both responses as one group, the new one first."""
    if not group.responses or not other.responses:
        return None
    responses: tuple[Response, ...] = (group.responses[0], other.responses[0])
    return RolloutGroup(
        prompt=group.prompt,
        round=group.round,
        index=0,
        policy_version=group.policy_version,
        prompt_token_ids=group.prompt_token_ids,
        responses=responses,
    )


def _differ(pair: RolloutGroup) -> bool:
    return pair.responses[0].text != pair.responses[1].text


def refuses(text: str) -> bool:
    """Whether the beginning of a response declines to help."""
    return bool(REFUSAL.search(" ".join(text.split()[:REFUSAL_WORDS])))
