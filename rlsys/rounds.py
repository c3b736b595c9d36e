"""THE loop. It has never heard of Ray, vLLM or DeepSpeed.

A round's stages run at once: while the learner trains on the first pairs, later prompts are still being answered and judged.
The engines change version only in `publish`, after the round's last step, so every pair of a round comes from one version
and the overlap costs no staleness. `plan.lag` lets generation run that many rounds ahead on top; nothing else changes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from typing import Any

from rlsys import registry
from rlsys.records import RoundPlan, RoundReport
from rlsys.run.components import RunComponents
from rlsys.run.pipeline import Pipeline


def run_rounds(components: RunComponents, *, first: int = 0, version: int = 0) -> Iterator[RoundReport]:
    """Run the schedule from round `first`, whose policy is `version`; one report per round, after its checkpoint is on disk.

    Invariant: a round's answers come from one version, the one the engines held when its generation began; with `lag` 0 that
    is the version the round trains, and never more than `lag` rounds lie between the two. A refused round publishes twice.
    """
    schedule = components.schedule
    with Pipeline(components, first) as pipeline:
        pipeline.launch(first)
        for round in range(first, schedule.num_rounds):
            plan, started, current = schedule.plan(round), time.monotonic(), pipeline.next
            examples = chain(current.examples, earlier_examples(components, plan))
            fit = components.learner.fit(examples, plan, version=version)
            pipeline.trained()
            sync = components.weights.publish(version + 1)
            # From here on an engine that is replaced must come back with the weights of the others.
            components.checkpoints.stage(components.learner, version + 1, executor=pipeline.saving)
            report = current.recorder.report(fit, sync, trained_version=version, evaluate=components.evaluate)
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


def earlier_examples(components: RunComponents, plan: RoundPlan) -> Iterator[Any]:
    """The examples of all rounds before, as far as they are of this round's record class, if its data rule wants them."""
    if plan.data == "accumulated":
        builder = registry.examples.configured(components.builder, plan.options.get("examples", {}))
        for round in range(plan.round):
            yield from components.journal.read(round, builder.produces)
