"""Objectives on other examples than pairs, on the real DeepSpeed: one batch on any ranks, and what each of them costs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from learners.examples.kinds import kind_of
from learners.plan import FitPlan
from learners.rendezvous import Rendezvous
from rlsys.objectives.dpo import DPO
from rlsys.objectives.grpo import GRPO
from rlsys.objectives.inputs import LossOutput, ScoredInputs
from rlsys.objectives.ipo import IPO
from rlsys.objectives.kto import KTO
from rlsys.objectives.simpo import SimPO
from rlsys.records import PreferencePair, RatedResponse, ScoredResponse, text_response
from tests.integration.learner_world import (
    frame_of,
    make_learner,
    make_pairs,
    make_small,
    scores_of,
    with_logprobs,
)

pytestmark = pytest.mark.integration
PLAN = FitPlan(lr=1e-3)
OBJECTIVES = (IPO(), SimPO(), KTO(), GRPO(beta=0.1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_small(tmp_path_factory.mktemp("policy"))


def examples_of(pairs: list[PreferencePair], objective: Any) -> list[Any]:
    """The responses of some pairs as the objective learns from them."""
    if objective.consumes is PreferencePair:
        return pairs
    found: list[Any] = []
    for number, pair in enumerate(pairs):
        for response, sign in ((pair.chosen, 1.0), (pair.rejected, -1.0)):
            common = {"prompt": pair.prompt, "prompt_token_ids": pair.prompt_token_ids, "response": response}
            if objective.consumes is ScoredResponse:
                found.append(ScoredResponse(**common, score=sign, advantage=sign * (1 + number), round=0))
            else:
                found.append(RatedResponse(**common, score=sign, is_desirable=sign > 0, round=0))
    return kind_of(objective.consumes).completed(found, objective.needs)


def _two_steps(meeting: Rendezvous, folder: Path, objective: Any, options: dict) -> list[dict]:
    """Sums and gradient norms of two steps, the second on a policy that has moved."""
    learner = make_learner(meeting, folder, objective, grad_clip=0.0, **options)
    pairs = make_pairs(folder, 6)
    frame = frame_of(examples_of(with_logprobs(pairs, scores_of(learner, pairs)), objective), meeting)
    learner.begin(PLAN)
    outputs = [learner.step(frame, lr=1e-2, batch=0) for _ in range(2)]
    learner.end()
    return [{**output.sums, "norm": output.grad_norm} for output in outputs]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: type(objective).__name__)
def test_micro_batches_and_ranks_change_no_loss_and_no_gradient(one, two, folder, objective):
    (whole,) = one.run(_two_steps, folder, objective, {"micro_batch_tokens": 10_000})
    (cut,) = one.run(_two_steps, folder, objective, {"micro_batch_tokens": 60})
    sharded = two.run(_two_steps, folder, objective, {"micro_batch_tokens": 60, "zero_stage": 3})
    for step in range(2):
        for name in ("loss", "norm"):
            expected = whole[step][name]
            assert cut[step][name] == pytest.approx(expected, rel=1e-3, abs=1e-4)
            found = [rank[step][name] for rank in sharded]
            assert (sum(found) if name == "loss" else found[0]) == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert whole[0]["norm"] > 1e-3


def _first_sums(meeting: Rendezvous, folder: Path, objective: Any) -> dict:
    return _two_steps(meeting, folder, objective, {})[0]


def test_first_losses_are_those_of_a_policy_that_is_its_own_reference(one, folder):
    (found,) = one.run(_first_sums, folder, IPO(beta=0.1))
    assert found["loss"] / 6 == pytest.approx(25.0, abs=1e-3)
    (found,) = one.run(_first_sums, folder, KTO())
    assert found["loss"] / 12 == pytest.approx(0.5, abs=1e-4)
    (found,) = one.run(_first_sums, folder, GRPO(beta=0.1))
    assert found["loss"] == pytest.approx(0.0, abs=1e-4) and found["clipped"] == 0  # the advantages add up to 0
    assert found["kl_reference"] == pytest.approx(0.0, abs=1e-6)


def _passes(meeting: Rendezvous, folder: Path, objective: Any) -> dict:
    """Forward passes of a step on one micro-batch, and copies of the weights afterwards."""
    learner = make_learner(meeting, folder, objective, reference_checks=8)
    pairs = make_pairs(folder, 6)
    frame = frame_of(examples_of(with_logprobs(pairs, scores_of(learner, pairs)), objective), meeting)
    learner.begin(PLAN)
    passes = []
    learner._engine.module.register_forward_hook(lambda *_: passes.append(1))
    learner.step(frame, lr=1e-3, batch=0)
    checked = learner.end()["reference_checked"]
    return {"passes": len(passes) - 1, "copies": len(learner._reference.kept()), "checked": checked > 0}


@pytest.mark.parametrize(
    ("objective", "passes", "copies", "checked"),
    [(DPO(), 1, 0, True), (SimPO(), 1, 0, False), (GRPO(), 1, 0, True), (KTO(), 3, 1, True)],
    ids=lambda value: type(value).__name__,
)
def test_nothing_is_computed_that_an_objective_does_not_need(one, folder, objective, passes, copies, checked):
    """Only mismatched responses need a pass for their reference, and only a baseline a first pass."""
    (found,) = one.run(_passes, folder, objective)
    assert found == {"passes": passes, "copies": copies, "checked": checked}


def _refused(meeting: Rendezvous, folder: Path) -> str:
    """What comes of a rule whose weights are not kept, where the objective does not ask for them."""
    learner = make_learner(meeting, folder, SimPO())
    learner.begin(replace(PLAN, reference="initial"))
    learner.begin(replace(PLAN, reference="ema"))
    return "accepted"


def test_an_objective_without_reference_asks_for_no_weights_of_one(one, folder):
    assert one.run(_refused, folder) == ["accepted"]


def _corrections(meeting: Rendezvous, folder: Path) -> dict:
    """Losses on corrections by people, which no engine sampled: against the weights of the round's start, also after a step."""
    learner = make_learner(meeting, folder)
    pairs = make_pairs(folder, 4)
    true = with_logprobs(pairs, scores_of(learner, pairs))
    corrected = [replace(pair, chosen=text_response("there is a red circle .")) for pair in true]
    frame = frame_of(corrected, meeting)
    learner.begin(PLAN)
    first = learner.step(frame, lr=1e-2, batch=0).sums
    known = [values.numpy().copy() for values in learner._references_of[0]]
    learner.step(frame, lr=0.0, batch=1)
    again = [values.numpy().copy() for values in learner._references_of[1]]
    return {
        "loss": first["loss"] / 4,
        "same": all(np.allclose(a, b, atol=1e-5) for a, b in zip(known, again, strict=True)),
    }


def test_the_reference_of_a_correction_is_the_policy_of_the_rounds_start(one, folder):
    (found,) = one.run(_corrections, folder)
    assert found["loss"] == pytest.approx(0.693147, abs=1e-4)
    assert found["same"]


@dataclass(kw_only=True)
class ValueOnly:
    """Draws the value at every token to 1."""

    value_token: str = "<score>"

    consumes: ClassVar[type] = ScoredResponse
    needs: ClassVar[frozenset[str]] = frozenset({"values"})
    denominator: ClassVar[str] = "tokens"

    def __call__(self, inputs: ScoredInputs) -> LossOutput:
        tokens = inputs.responses
        loss_B = tokens.sums((tokens.values_M - 1).square())
        return LossOutput(loss=loss_B.sum(), metrics={"value": tokens.means(tokens.values_M.detach()).sum()})


def _values(meeting: Rendezvous, folder: Path, stage: int) -> list[float]:
    learner = make_learner(meeting, folder, ValueOnly(), zero_stage=stage)
    frame = frame_of(examples_of(make_pairs(folder, 4), ValueOnly()), meeting)
    learner.begin(PLAN)
    losses = [learner.step(frame, lr=1e-2, batch=number).sums["loss"] for number in range(12)]
    assert scores_of(learner, make_pairs(folder, 1))
    return losses


def test_values_at_every_token_are_learned(one, two, folder):
    (losses,) = one.run(_values, folder, 0)
    assert losses[-1] < 0.2 * losses[0]
    shared = [sum(both) for both in zip(*two.run(_values, folder, 3), strict=True)]
    assert shared[:2] == pytest.approx(losses[:2], rel=1e-3)
