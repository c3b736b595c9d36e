"""The plan of a learner rank's memory, beside what the real DeepSpeed allocates for a model of seven million parameters."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from learners.rendezvous import Rendezvous
from rlsys.schedules.phases import Phase, Schedule
from rlsys.worlds.scenes.policy import Shape, make_policy

pytestmark = pytest.mark.integration
SHAPE = Shape(hidden=256, layers=6, mlp=1024, vision_hidden=128, vision_layers=2, vision_mlp=256)
FROZEN = {"freeze": ["visual", "layers.0", "layers.1"]}
ADAPTED = {"lora": {"r": 16}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_policy(tmp_path_factory.mktemp("policy"), seed=0, shape=SHAPE)


class Allocated(TorchDispatchMode):
    """Bytes of the storages of all tensors now, and the most there were while the mode was on.

    Args:
        others: storages that do not count. Whoever made them holds them, so that their addresses are not used again.
    """

    def __init__(self, others: dict[int, Any]) -> None:
        super().__init__()
        self._others = others
        self._known: dict[int, Any] = {}
        self.now = self.most = 0
        for tensor in _tensors():
            self._see(tensor)

    def _see(self, tensor: torch.Tensor) -> None:
        if tensor.device.type == "meta" or tensor.layout != torch.strided:
            return
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or key in self._others:
            return

        def freed(_: Any) -> None:
            self.now -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, freed)
        self.now += size
        self.most = max(self.most, self.now)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._see, result)
        return result


def _tensors() -> list[torch.Tensor]:
    gc.unfreeze()
    gc.collect()
    found = [item for item in gc.get_objects() if issubclass(type(item), torch.Tensor)]
    return found + [tensor.grad for tensor in found if tensor.is_leaf and tensor.grad is not None]


def _storages() -> dict[int, Any]:
    strided = [tensor for tensor in _tensors() if tensor.device.type != "meta" and tensor.layout == torch.strided]
    return {storage._cdata: storage for storage in (tensor.untyped_storage() for tensor in strided)}


def _measured_and_planned(meeting: Rendezvous, folder: Path, options: dict, phase: dict | None) -> dict[str, float]:
    """The most bytes in a step of two small micro-batches, and those of the copies that a schedule's rounds make."""
    from learners import model
    from learners.collate import Collator
    from learners.config import LearnerConfig, LoraConfig
    from learners.deepspeed_backend import Engine, join
    from learners.plan import FitPlan
    from learners.reference import Reference
    from learners.tokens import Processor
    from rlsys.app.plan import learner_memory, model_size

    if "lora" in options:
        options = {**options, "lora": LoraConfig(**options["lora"])}
    config = LearnerConfig(num_ranks=meeting.world_size, **options)
    join(meeting, deadline_s=60.0)
    collator = Collator(Processor(folder), micro_batch_tokens=1000)
    blank = collator.join([collator.blank()])
    before = _storages()
    engine = Engine(model.load(folder, config), config, meeting)
    schedule = Schedule([Phase(**(phase or {}))])
    plans = map(schedule.plan, range(schedule.num_rounds))
    plans = [replace(plan, brings_others="replay" in plan.options) for plan in plans]
    without = Allocated(before).now
    reference = Reference(engine, config, lambda batch: None)
    for plan in plans if phase is not None else ():
        reference.begin(FitPlan.of_round(plan, policy_version=plan.round, seed=0), frozenset({"reference"}))
    copies = Allocated(before).now - without
    engine.backward(engine(blank, None).sum(), denominator=1.0, last=True)
    engine.step(1e-3)  # from now on there are moments
    with Allocated(before) as allocated:
        for last in (False, True):
            engine.backward(engine(blank, None).sum(), denominator=1.0, last=last)
        engine.step(1e-3)
    planned = learner_memory(config, model_size(str(folder), None), plans if phase is not None else ())
    return {
        "measured": allocated.most,
        "planned": planned.total,
        "measured copies": copies,
        "planned copies": planned.copies,
    }


def _cases() -> list[dict]:
    precisions = [("fp32", stage) for stage in (0, 1, 2, 3)] + [("bf16", stage) for stage in (1, 2, 3)]
    return [
        {"precision": precision, "zero_stage": stage, **options}
        for options in ({}, FROZEN, ADAPTED)
        for precision, stage in precisions
    ]


@pytest.mark.parametrize("options", _cases(), ids=lambda options: "-".join(map(str, options.values())))
def test_a_run_takes_what_the_plan_says(one, two, folder, options):
    of_two = [
        {"precision": "fp32", "zero_stage": 0},
        *({"precision": "bf16", "zero_stage": stage} for stage in (1, 2, 3)),
    ]
    for ranks in (one, two) if options in of_two else (one,):
        for found in ranks.run(_measured_and_planned, folder, options, None):
            assert found["planned"] == pytest.approx(found["measured"], rel=0.15)


@pytest.mark.parametrize(
    ("options", "phase"),
    [
        ({"initial_copy": True, "ema_decay": 0.9}, {"rounds": 4, "lag": 2}),
        ({"precision": "bf16", "initial_copy": True, "ema_decay": 0.9, **FROZEN}, {"rounds": 4, "lag": 1}),
        ({"precision": "bf16", "zero_stage": 3, "ema_decay": 0.9}, {"rounds": 3, "replay": "accumulated"}),
        ({"initial_copy": True, "ema_decay": 0.9, **ADAPTED}, {"rounds": 3, "lag": 1}),
    ],
    ids=str,
)
def test_copies_of_weights_are_part_of_the_plan(one, two, folder, options, phase):
    for ranks in (one, two) if "zero_stage" in options else (one,):
        for found in ranks.run(_measured_and_planned, folder, options, phase):
            assert found["planned copies"] == pytest.approx(found["measured copies"], rel=0.01)
            assert found["planned"] == pytest.approx(found["measured"], rel=0.15)
