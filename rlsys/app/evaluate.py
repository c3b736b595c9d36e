"""`rlsys evaluate`: measure a policy on held-out prompts, against the truth."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from rlsys.app.starting import Context, start_rollouts
from rlsys.contracts import RolloutStage
from rlsys.records import Interval
from rlsys.schedules.phases import Phase

EVALUATION_ROUND = -1
"""Round number of held-out answers: the same at every evaluation, so that every policy is sampled with the same seeds."""


def evaluator(config: Any, stage: RolloutStage, progress: Any) -> Callable[[], dict[str, Interval]]:
    """A function that measures the engines' current weights; `{}` if the evaluation has no prompts."""
    prompts = config.evaluation.prompts()

    def measure() -> dict[str, Interval]:
        if not prompts:
            return {}
        phase = Phase(
            num_prompts=len(prompts),
            num_candidates=1,
            temperatures=[config.eval.temperature],
            max_tokens=config.eval.max_tokens,
        )
        groups = progress.track("evaluate", stage.stream(prompts, phase.plan(0, EVALUATION_ROUND)), len(prompts))
        return config.evaluation.measure(list(groups))

    return measure


def main(words: list[str]) -> int:
    """Measure `policy.model`; prints the metrics as JSON."""
    from rlsys.app.command import run_with_host
    from rlsys.app.models import policy_folder

    def body(config: Any, context: Context) -> None:
        stage = start_rollouts(config, context, policy_folder(config, context))
        try:
            found = evaluator(config, stage, context.progress)()
        finally:
            stage.close()
        print(json.dumps({name: asdict(interval) for name, interval in found.items()}, indent=1))

    return run_with_host(words, body)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
