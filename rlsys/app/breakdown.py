"""Where the time of a run's rounds went: a table with a row per stage, and advice on what would shorten a round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from rlsys.records import RoundReport

OVERLAPPED = ("rollout", "feedback", "learn")
"""Stages that run at the same time. The weight update comes after them; the checkpoint is written while the next round's first
responses are sampled.
"""
WORTH_A_WORD = 0.1
"""Share of a round above which the advice names a stage that runs after the overlapped ones."""
SATURATED = 0.85
"""Share of busy cores above which the cores limit a run without GPUs: in the mean, more of them are never busy."""
SECTIONS = {"rollout": "rollout", "feedback": "engines.judge"}
"""Section of the configuration that decides the resources of a stage of actors."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage's part in a round, medians over the measured rounds."""

    name: str
    seconds: float
    """Busy seconds, mean over the stage's workers. A worker that waits for a core it shares counts as busy."""
    work: float
    unit: str
    cores: float | None = None
    """Cores that the stage kept busy, mean over the round; `None` where its processes are not all on this machine."""

    @property
    def rate(self) -> float:
        return self.work / self.seconds if self.seconds else 0.0


def stages(
    reports: Sequence[RoundReport], work: Sequence[dict[str, float]], laps: Sequence[dict[str, float]] = ()
) -> list[Stage]:
    """The medians over the measured rounds of what every stage did.

    Args:
        reports: reports of the measured rounds.
        work: per round, `tokens` sampled and `critiques` written.
        laps: per round, the cores that stages kept busy; empty if they are not known.
    """

    def middle(values: Sequence[float]) -> float:
        return float(median(values))

    done = {
        "rollout": (middle([counts["tokens"] for counts in work]), "tokens"),
        "feedback": (middle([counts["critiques"] for counts in work]), "critiques"),
        "learn": (middle([report.num_examples for report in reports]), "examples"),
        "sync": (middle([report.sync.num_bytes / 1e6 for report in reports]), "MB"),
        "checkpoint": (1.0, "checkpoints"),
    }
    return [
        Stage(
            name=name,
            seconds=middle([report.seconds[name] for report in reports]),
            work=amount,
            unit=unit,
            cores=middle([lap[name] for lap in laps]) if laps and name in laps[0] else None,
        )
        for name, (amount, unit) in done.items()
    ]


def advice(found: Sequence[Stage], round_seconds: float, *, judges: bool = True, num_cores: float = 0.0) -> str:
    """A few sentences that say where the time goes.

    Args:
        found: the stages of a round.
        round_seconds: median duration of a round.
        judges: whether the feedback has workers of its own.
        num_cores: cores of a single machine without GPUs; 0 for any other cluster.
    """
    by_name = {stage.name: stage for stage in found}
    busy = {name: by_name[name].cores for name in OVERLAPPED}
    if num_cores and all(cores is not None for cores in busy.values()):
        text = _of_cores(busy, num_cores, judges=judges)
    else:
        text = _of_stages({name: stage.seconds / round_seconds for name, stage in by_name.items()}, judges=judges)
    for name, meanwhile in (
        ("sync", "and nothing runs beside it"),
        ("checkpoint", "and the next round is answered meanwhile, and trained after it"),
    ):
        share = by_name[name].seconds / round_seconds
        if share > WORTH_A_WORD:
            text += f" {name} takes {share:.0%}, {meanwhile}."
    return text


def _of_cores(busy: dict[str, float], num_cores: float, *, judges: bool) -> str:
    """Advice from the cores that stages keep busy. Where stages share cores, busy seconds say little, because a worker that
    waits for a core counts as busy.
    """
    total, most = sum(busy.values()), max(busy, key=busy.__getitem__)
    each = ", ".join(f"{name} {cores:.2f}" for name, cores in busy.items())
    text = f"Of {num_cores:g} cores {total:.2f} are busy: {each}."
    if total >= SATURATED * num_cores:
        return f"{text} They are the limit: a shorter round takes more cores or less work, first of all of {most}."
    return f"{text} Some wait: {_more(most, judges=judges)} would use them."


def _of_stages(shares: dict[str, float], *, judges: bool) -> str:
    slowest = max(OVERLAPPED, key=shares.__getitem__)
    text = f"{slowest} is the slowest stage: {shares[slowest]:.0%} of a round. "
    if slowest == "learn":
        return (
            text
            + "Give the learner more cores or GPUs (learner.num_ranks), freeze the vision tower, or make fewer examples."
        )
    waits = max(0.0, 1 - shares["learn"] - shares["sync"] - shares["checkpoint"])
    return f"{text}With {_more(slowest, judges=judges)} it would be shorter; the learner waits {waits:.0%} of the time."


def _more(stage: str, *, judges: bool) -> str:
    """The resource that would speed up a stage."""
    if stage == "learn":
        return "more of the cores for the learner (learner.cores, learner.num_ranks)"
    section = SECTIONS[stage]
    if stage == "feedback" and not judges:
        return f"more processes that compute the feedback ({section}.num_actors)"
    actors = "judge" if stage == "feedback" else stage
    return f"more {actors} actors ({section}.num_actors) or more cores for them ({section}.cores)"


def table(found: Sequence[Stage], round_seconds: float) -> str:
    """The stages of a round, one per line."""
    lines = [f"{'stage':11} {'busy s':>8} {'of round':>9} {'cores':>6}  {'work':>20} {'rate':>20}"]
    for stage in found:
        work = f"{stage.work:,.0f} {stage.unit}"
        rate = f"{stage.rate:,.1f} {stage.unit}/s"
        cores = "" if stage.cores is None else f"{stage.cores:.2f}"
        lines.append(
            f"{stage.name:11} {stage.seconds:8.2f} {stage.seconds / round_seconds:9.0%} {cores:>6}  {work:>20} {rate:>20}"
        )
    slowest = max(stage.seconds for stage in found if stage.name in OVERLAPPED)
    lines.append(f"{'round':11} {round_seconds:8.2f}  = {round_seconds / slowest:.2f} x the slowest stage")
    return "\n".join(lines)


def spread(seconds: Sequence[float], *, warm: bool) -> str:
    """The range of the measured rounds' durations.

    Args:
        seconds: durations of the measured rounds.
        warm: whether a warm-up round ran before them; if none did, they include one-time costs.
    """
    text = f"{len(seconds)} rounds of {min(seconds):.2f} to {max(seconds):.2f} s."
    if len(seconds) == 1:
        text = f"1 round of {seconds[0]:.2f} s."
    return (
        text if warm else f"{text} None went before: engines compiled, caches filled and connections were made in it."
    )
