"""Which parameters an engine trains and which of them it decays, on the real DeepSpeed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from learners.rendezvous import Rendezvous
from tests.integration.learner_world import PLAN, frame_of, make_learner, make_pairs, make_small, scores_of

pytestmark = pytest.mark.integration
STAGES = (0, 1, 2, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_small(tmp_path_factory.mktemp("policy"))


class TwoMaps(nn.Module):
    """y = s . x + t . x, with x = (1, 1, 1) for s and (1, 1, 2) for t."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = nn.Linear(3, 1, bias=False)
        self.still = nn.Linear(3, 1, bias=False)

    def forward(self) -> torch.Tensor:
        rows = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 2.0]])
        return self.seen(rows[:1]).sum() + self.still(rows[1:]).sum()


class Adapted(nn.Module):
    """Adapters of rank 1 on both maps. Their A is all ones and their B is 0, so that B's gradients are 3 and 4."""

    def __init__(self) -> None:
        import peft

        super().__init__()
        config = peft.LoraConfig(r=1, lora_alpha=1.0, target_modules=["seen", "still"])
        self.model = peft.get_peft_model(TwoMaps(), config)
        for name, parameter in self.named_parameters():
            if "lora_A" in name:
                nn.init.ones_(parameter)
            if "still" in name:
                parameter.requires_grad_(False)

    def forward(self) -> torch.Tensor:
        return self.model()


def _make_engine(meeting: Rendezvous, module: nn.Module, **options: Any) -> Any:
    from learners.config import LearnerConfig
    from learners.deepspeed_backend import Engine, join

    join(meeting, deadline_s=60.0)
    return Engine(module, LearnerConfig(num_ranks=meeting.world_size, **options), meeting)


def _step_after_the_adapter_was_off(meeting: Rendezvous, stage: int) -> dict[str, Any]:
    engine = _make_engine(meeting, Adapted(), zero_stage=stage, grad_clip=1.0)
    with engine.without_adapter():
        without = float(engine())
    engine.backward(engine(), denominator=1.0, last=True)
    norm = engine.step(lr=0.1)
    return {
        "without": without,
        "trained": list(engine.trained),
        "require gradients": [name for name, p in engine.module.named_parameters() if p.requires_grad],
        "norm": norm,
        "largest moment": max(float(state["exp_avg"].max()) for state in engine.moments()),
        "gradients of frozen": [n for n, p in engine.module.named_parameters() if "still" in n and p.grad is not None],
    }


@pytest.mark.parametrize("stage", STAGES)
def test_frozen_adapters_take_no_part_after_the_adapter_was_off(one, stage):
    """With the frozen adapter's gradient of 4 the norm would be 5, and clipping to 1 would leave 0.6 of the other's 3."""
    (found,) = one.run(_step_after_the_adapter_was_off, stage)
    seen = [f"model.base_model.model.seen.lora_{factor}.default.weight" for factor in "AB"]
    assert found["trained"] == found["require gradients"] == seen
    assert found["gradients of frozen"] == []
    assert found["norm"] == pytest.approx(3.0, abs=1e-5)
    assert found["largest moment"] == pytest.approx(0.1 * 1.0, abs=1e-5)


class Ones(nn.Module):
    """A matrix of ones, an embedding of ones, and a norm and a bias of ones."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.table = nn.Embedding(2, 4)
        self.map = nn.Linear(4, 3)
        for parameter in self.parameters():
            nn.init.ones_(parameter)

    def forward(self) -> torch.Tensor:
        return 0.0 * self.map(self.norm(self.table(torch.tensor([0, 1])))).float().sum()


def _step_without_gradient(meeting: Rendezvous, stage: int, precision: str, decay: float) -> dict[str, Any]:
    """AdamW's step is then its decay alone: weights times 1 - lr * decay."""
    module = Ones()
    engine = _make_engine(meeting, module, zero_stage=stage, precision=precision, weight_decay=decay)
    engine.backward(engine(), denominator=1.0, last=True)
    engine.step(lr=0.1)
    with engine.gathered(list(module.parameters())):
        values = {name: sorted(set(p.detach().float().flatten().tolist())) for name, p in module.named_parameters()}
    return {"values": values, "num_masters": len(engine.masters()), "num_groups": len(engine._optimizer.param_groups)}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", STAGES)
def test_matrices_are_decayed_and_norms_and_biases_are_not(one, two, stage, precision):
    decayed = {"fp32": 0.95, "bf16": 0.94921875}[precision]  # bf16 has no 0.95
    for ranks in (one, two):
        for found in ranks.run(_step_without_gradient, stage, precision, 0.5):
            assert found["values"] == {
                "norm.weight": [1.0],
                "norm.bias": [1.0],
                "table.weight": pytest.approx([decayed], abs=1e-6),
                "map.weight": pytest.approx([decayed], abs=1e-6),
                "map.bias": [1.0],
            }
            has_flat = stage > 0 or precision == "bf16"
            assert (found["num_groups"], found["num_masters"]) == (2, 2 if has_flat else 5)


def test_without_decay_all_parameters_are_one_group(one):
    for stage in STAGES:
        (found,) = one.run(_step_without_gradient, stage, "fp32", 0.0)
        assert found["num_groups"] == 1
        assert all(values == [1.0] for values in found["values"].values())


def _two_rounds(meeting: Rendezvous, folder: Path, target: Path, options: dict) -> dict[str, Any]:
    """Rounds on older answers under rule `initial`, saved after the first; the second again from disk."""
    from learners.config import LoraConfig

    options = {**options, "lora": LoraConfig(r=4, alpha=8.0, target_modules=["all-linear"])}
    pairs = make_pairs(folder, 8, version=1)
    learner = make_learner(meeting, folder, **options)

    def train(learner: Any, version: int) -> tuple[float, np.ndarray, np.ndarray]:
        learner.begin(replace(PLAN, reference="initial", policy_version=version))
        norm = learner.step(frame_of(pairs, meeting), lr=1e-2, batch=0).grad_norm
        learner.end()
        average = np.concatenate([value.flatten().numpy() for _, value in sorted(learner._reference.average.items())])
        return norm, np.concatenate(scores_of(learner, pairs)), average

    trained = list(learner._engine.trained)
    start = np.concatenate(scores_of(learner, pairs))
    first = train(learner, 1)
    learner.save(str(target))
    second = train(learner, 2)
    other = make_learner(meeting, folder, **options)
    other.load(str(target))
    again = train(other, 2)
    other.reset()
    reset = np.concatenate(scores_of(other, pairs))
    names = [name for name, p in learner._engine.module.named_parameters() if p.requires_grad]
    return {
        "trained": trained,
        "names": names,
        "start": start,
        "first": first,
        "second": second,
        "again": again,
        "reset": reset,
    }


@pytest.mark.parametrize(("stage", "precision"), [*((stage, "fp32") for stage in STAGES), (1, "bf16"), (3, "bf16")])
def test_frozen_adapters_with_an_average_and_the_first_policy_as_reference_go_on_from_disk(
    one, folder, tmp_path, stage, precision
):
    options = {
        "zero_stage": stage,
        "precision": precision,
        "freeze": ["visual", "layers.0"],
        "ema_decay": 0.9,
        "weight_decay": 0.1,
    }
    (found,) = one.run(_two_rounds, folder, tmp_path, options)
    assert found["trained"] == found["names"]
    assert found["trained"] and all("lora_" in name and ".layers.1." in name for name in found["trained"])
    assert np.abs(found["first"][1] - found["start"]).max() > 1e-3
    assert np.abs(found["second"][1] - found["first"][1]).max() > 1e-3
    for resumed, undisturbed in zip(found["again"], found["second"], strict=True):
        np.testing.assert_array_equal(resumed, undisturbed)
    np.testing.assert_array_equal(found["reset"], found["start"])


def _load_with_other_decay(meeting: Rendezvous, folder: Path, target: Path, stage: int) -> str:
    from rlsys.errors import CheckpointError

    learner = make_learner(meeting, folder, zero_stage=stage, weight_decay=0.1)
    learner.begin(PLAN)
    learner.step(frame_of(make_pairs(folder, 4), meeting), lr=1e-2, batch=0)
    learner.save(str(target))
    other = make_learner(meeting, folder, zero_stage=stage)
    try:
        other.load(str(target))
    except CheckpointError as error:
        return str(error)
    pairs = zip(learner._engine.moments(), other._engine.moments(), strict=True)
    assert all(torch.equal(own["exp_avg"], loaded["exp_avg"]) for own, loaded in pairs)
    return "the same moments"


def test_moments_of_other_parameter_groups_are_refused_where_they_do_not_fit(one, folder, tmp_path):
    found = [one.run(_load_with_other_decay, folder, tmp_path / str(stage), stage)[0] for stage in STAGES]
    assert found[0] == "the same moments"  # without ZeRO AdamW's state is per parameter
    for message in found[1:]:
        assert "learner.weight_decay makes other parameter groups when it is 0 and when it is not" in message
