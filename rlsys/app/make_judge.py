"""The critique reward model of the scenes world (objective `critique_reward`).

The policy answers annotated scenes; the annotator, who knows their truth, writes a critique of every answer; the critic
learns to write the same and to score so that the better answer of a pair scores higher (MM-RLHF, section 3.2).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlsys import registry
from rlsys.app import supervised
from rlsys.app.starting import Context, start_rollouts
from rlsys.records import CritiquePair, Prompt
from rlsys.schedules.phases import Phase
from rlsys.worlds.scenes.annotate import critique_pairs

ANSWERING_BATCH = 32
"""Prompts per engine call, whatever the run asks for in its rounds and evaluations: a critic is the same for all runs."""
ANSWERING_ROUND = -2
"""Round number of the policy's answers to annotated prompts; rounds of a run count from 0, evaluation is -1."""


def make(config: Any, context: Context, target: Path, policy: Path) -> None:
    """Train a critic from the policy's weights; `target/policy` is then a Hugging Face folder."""
    pairs = list(annotated_pairs(config, context, policy))
    supervised.train(
        config,
        context,
        policy,
        pairs,
        target,
        objective="critique_reward",
        recipe=config.judge_training,
        num_examples=len(pairs),
    )


def annotated_pairs(config: Any, context: Context, policy: Path) -> Iterator[CritiquePair]:
    """Pairs of the policy's own answers to annotated prompts, criticised by the annotator."""
    recipe = config.judge_training
    source = registry.prompts.make("scenes", split="annotated")
    prompts: list[Prompt] = list(source.take(0, recipe.num_prompts))
    phase = Phase(num_prompts=len(prompts), num_candidates=recipe.num_candidates, max_tokens=config.schedule.max_tokens)
    stage = start_rollouts(config, context, policy, batch=ANSWERING_BATCH)
    try:
        groups = stage.stream(prompts, phase.plan(0, ANSWERING_ROUND))
        groups = context.progress.track("answers", groups, len(prompts))
        answered = [(group.prompt, [rollout.text for rollout in group.responses]) for group in groups]
    finally:
        stage.close()
    return critique_pairs(
        answered,
        max_pairs_per_prompt=recipe.max_pairs_per_prompt,
        num_shortened=recipe.num_shortened,
        disturbed_rate=recipe.disturbed_rate,
        seed=config.seed,
    )
