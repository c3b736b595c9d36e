"""Hallucination on held-out scenes, measured against the ground truth.

Metrics of `scenes` (descriptions): `chair_i`, `chair_s`, `chair_s_refined`, `recall`, `mean_length` (words), `unparsable`
(share of responses with a piece that is not a sentence of the language), `false_position` (share of true mentions that claim a
wrong place), `partner_share` (share of false mentions that are partners of an object in the scene: co-occurrence, not noise).
Metrics of `scenes_polar`: `accuracy`, `f1`, `yes_ratio`; `accuracy_single` (questions about colour and shape of the object in a
cell); `unparsable`, the share of responses that say neither yes nor no, or both. Those responses are wrong and do not count as
a yes, although POPE's original rule would read them as a yes (`rlsys.evaluations.polar`).
A metric that would be 0/0 is absent. The bootstrap resamples prompts, each with all its responses; copies of a response count.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rlsys import registry
from rlsys.asking.prompts import check_at_least
from rlsys.errors import ConfigError
from rlsys.evaluations.bootstrap import Bootstrap
from rlsys.evaluations.hallucination import Ratios, object_ratios
from rlsys.evaluations.held_out import RESAMPLE_SEED, HeldOut
from rlsys.evaluations.polar import read_polar
from rlsys.records import Interval, Prompt, RolloutGroup
from rlsys.worlds.scenes.language import is_so, read_question
from rlsys.worlds.scenes.source import make_prompt, scene_of
from rlsys.worlds.scenes.truth import Answer, check, parse
from rlsys.worlds.scenes.world import SPLITS, Scene, partner


@dataclass(kw_only=True)
class _HeldOutScenes(HeldOut):
    num_scenes: int = 500
    split: str = "heldout"
    start: int = 0
    """Index of the first scene in the split."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("evaluation", self, num_scenes=1)
        if self.split not in SPLITS:
            raise ConfigError(f"evaluation.split must be one of {', '.join(SPLITS)}, got {self.split!r}")
        if self.start < 0:
            raise ConfigError(f"evaluation.start must be >= 0, got {self.start}")

    def _prompts(self, task: str) -> list[Prompt]:
        return [make_prompt(self.split, index, task) for index in range(self.start, self.start + self.num_scenes)]

    def _intervals(self, rows: Sequence[Ratios]) -> dict[str, Interval]:
        """Metrics from one row per prompt, in which the prompt's responses are added up."""
        if not rows:
            return {}
        bootstrap = Bootstrap.draw(len(rows), resamples=self.resamples, seed=RESAMPLE_SEED)
        metrics: dict[str, Interval] = {}
        for name in dict.fromkeys(name for row in rows for name in row):
            parts = np.array([row.get(name, (0.0, 0.0)) for row in rows])
            interval = bootstrap.ratio(parts[:, 0], parts[:, 1])
            if interval is not None:
                metrics[name] = interval
        return metrics


def _add(rows: Iterable[tuple[int, Ratios]]) -> Ratios:
    """The sum over the responses of one prompt, each weighted by its count."""
    total: dict[str, tuple[float, float]] = {}
    for count, row in rows:
        for name, (top, bottom) in row.items():
            known = total.get(name, (0.0, 0.0))
            total[name] = (known[0] + count * top, known[1] + count * bottom)
    return total


@registry.evaluation("scenes")
@dataclass(kw_only=True)
class ScenesEvaluation(_HeldOutScenes):
    """Descriptions: CHAIR, recall, length."""

    directions: ClassVar[dict[str, int]] = {
        "chair_i": -1,
        "chair_s": -1,
        "chair_s_refined": -1,
        "false_position": -1,
        "unparsable": -1,
        "recall": +1,
        "mean_length": 0,
        "partner_share": 0,
    }

    def prompts(self) -> list[Prompt]:
        return self._prompts("describe")

    def measure(self, groups: Sequence[RolloutGroup]) -> dict[str, Interval]:
        """
        Raises:
            ValueError: the prompt of a group is not of this world.
        """
        rows = []
        for group in groups:
            scene, question = scene_of(group.prompt), group.prompt.question
            answers = [
                (rollout.count, description_ratios(rollout.text, question, scene)) for rollout in group.responses
            ]
            rows.append(_add(answers))
        return self._intervals(rows)


def description_ratios(text: str, question: str, scene: Scene) -> Ratios:
    """The contributions of one description to the metrics of `scenes`."""
    answer = parse(text, question)
    mentions = answer.mentions
    false = [kind for kind in mentions if kind not in scene.kinds]
    partners = {partner(kind) for kind in scene.kinds}
    return {
        **object_ratios(mentions, scene.kinds),
        "mean_length": (len(text.split()), 1),
        "unparsable": (bool(answer.unparsed), 1),
        "false_position": _false_positions(answer, scene),
        "partner_share": (sum(kind in partners for kind in false), len(false)),
    }


def _false_positions(answer: Answer, scene: Scene) -> tuple[float, float]:
    placed = [claim for claim in answer.claims if claim.about == "position" and claim.kind in scene.kinds]
    return (sum(not check(claim, scene) for claim in placed), len(placed))


@registry.evaluation("scenes_polar")
@dataclass(kw_only=True)
class ScenesPolarEvaluation(_HeldOutScenes):
    """Polar questions. The true answer is yes for half of them; the questions about absent objects ask for likely ones (POPE
    adversarial).
    """

    directions: ClassVar[dict[str, int]] = {
        "accuracy": +1,
        "accuracy_single": +1,
        "f1": +1,
        "unparsable": -1,
        "yes_ratio": 0,
    }

    def prompts(self) -> list[Prompt]:
        return self._prompts("polar")

    def measure(self, groups: Sequence[RolloutGroup]) -> dict[str, Interval]:
        """
        Raises:
            ValueError: the prompt of a group is not a polar question of this world.
        """
        rows = []
        for group in groups:
            question = read_question(group.prompt.question)
            if question is None or question.task != "polar":
                raise ValueError(f"prompt {group.prompt.id!r} is no polar question: {group.prompt.question!r}")
            truth = is_so(scene_of(group.prompt), question)
            rows.append(
                _add((rollout.count, polar_ratios(rollout.text, truth, question.form)) for rollout in group.responses)
            )
        return self._intervals(rows)


def polar_ratios(text: str, truth: bool, form: str) -> Ratios:
    """The contributions of one response to a polar question to the metrics of `scenes_polar`."""
    said = read_polar(text)
    true_positive = said is True and truth
    missed, made_up = truth and said is not True, said is True and not truth
    row: dict[str, tuple[float, float]] = {
        "accuracy": (said == truth, 1),
        "f1": (2 * true_positive, 2 * true_positive + made_up + missed),
        "yes_ratio": (said is True, 1),
        "unparsable": (said is None, 1),
    }
    if form != "exists":
        row["accuracy_single"] = (said == truth, 1)
    return row
