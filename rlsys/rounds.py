"""The training loop. It does not depend on Ray, vLLM or DeepSpeed.

The stages of a round run at the same time: while the learner trains on the first examples, the engines still sample responses
to later prompts and the judge still scores them. The engines change their version only in `publish`, after the last optimizer
step of the round. Therefore all examples of a round come from one version, and the overlap costs no staleness. `plan.lag`
lets generation run that many rounds ahead of training; nothing else changes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

from rlsys.records import RoundReport
from rlsys.run.components import RunComponents
from rlsys.run.pipeline import Pipeline


def run_rounds(components: RunComponents, *, first: int = 0, version: int = 0) -> Iterator[RoundReport]:
    """Run the schedule from round `first`, and yield one report per round after the round's checkpoint is on disk.

    Invariant: all responses of a round come from one version, the version that the engines held when the round's generation
    began. With `lag` 0 this is the version that the round trains; in general at most `lag` rounds lie between the two. A
    refused round publishes twice.

    Args:
        version: version of the weights that the learner and the engines hold when round `first` begins.
    """
    schedule, starts = components.schedule, _starts(components, first)
    with Pipeline(components, first) as pipeline:
        pipeline.launch(first)
        for round in range(first, schedule.num_rounds):
            started, current = time.monotonic(), pipeline.next
            starts[round] = version
            fit = components.learner.fit(current.examples, current.plan, version=version)
            pipeline.trained()
            sync = components.weights.publish(version + 1)
            # From here on, a worker that replaces a dead one must start with the same weights as the others.
            components.checkpoints.stage(components.learner, version + 1, executor=pipeline.saving)
            report = current.recorder.report(fit, sync, starts=starts)
            version += 1
            if not components.gate.accepts(report):
                version += 1
                components.checkpoints.go_back(components.learner, version)
                report = replace(
                    report, accepted=False, policy_version=version, sync=components.weights.publish(version)
                )
            cursor, stops = schedule.first_prompt(round + 1), components.gate.stops(report)
            with pipeline.launching(None if stops else round + 1):
                report = components.checkpoints.commit(report, gate=components.gate, cursor=cursor, started=started)
                components.journal.append(round, report)
                components.journal.finish(round)
            yield report
            if stops:
                return


def _starts(components: RunComponents, first: int) -> dict[int, int]:
    """The version that training started from, for every round before `first` whose weights may have sampled responses of
    later rounds."""
    lag = max(
        (components.schedule.plan(round).lag for round in range(first, components.schedule.num_rounds)), default=0
    )
    found: dict[int, int] = {}
    for round in range(max(0, first - lag), first):
        reports = list(components.journal.read(round - 1, RoundReport)) if round else []
        found[round] = reports[-1].policy_version if reports else 0
    return found
