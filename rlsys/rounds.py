"""THE loop. It has never heard of Ray, vLLM or DeepSpeed.

A round's stages run at once: while the learner trains on the first pairs, later prompts are still being answered and judged.
The engines change version only in `publish`, after the round's last step, so every pair of a round comes from one version
and the overlap costs no staleness. `plan.lag` lets generation run that many rounds ahead on top; nothing else changes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

from rlsys.records import RoundReport
from rlsys.run.components import RunComponents
from rlsys.run.pipeline import Pipeline


def run_rounds(components: RunComponents, *, first: int = 0, version: int = 0) -> Iterator[RoundReport]:
    """Run the schedule from round `first`, whose policy is `version`; one report per round, after its checkpoint is on disk.

    Invariant: a round's answers come from one version, the one the engines held when its generation began; with `lag` 0 that
    is the version the round trains, and never more than `lag` rounds lie between the two. A refused round publishes twice.
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
            # From here on an engine that is replaced must come back with the weights of the others.
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
    """Versions that those rounds before `first` started from which may have given answers to later ones."""
    lag = max(
        (components.schedule.plan(round).lag for round in range(first, components.schedule.num_rounds)), default=0
    )
    found: dict[int, int] = {}
    for round in range(max(0, first - lag), first):
        reports = list(components.journal.read(round - 1, RoundReport)) if round else []
        found[round] = reports[-1].policy_version if reports else 0
    return found
