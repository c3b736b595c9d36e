"""The plan of a run's actors: their number, cores, GPUs and memory, checked before anything starts."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from learners.memory import Memory, Parameters, Shapes, max_starts, plan_memory
from rlsys import registry
from rlsys.errors import ConfigError, PromptsExhausted
from rlsys.placement import Placement, Role, place, shortages
from rlsys.placement.machine import GIB, Machine
from rlsys.records import RoundPlan
from rlsys.schedules.phases import Schedule

WORKER_GIB = 1.5
"""Context memory of a worker process before it loads a model (Python, torch and vLLM imported), GiB, measured on CPU."""


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """The size of a model, as far as its folder or the configuration gives it."""

    num_parameters: int | None
    """Number of parameters; if `None`, memory is not planned."""
    shapes: Shapes | None = None
    """Shapes of the tensors on disk, where their headers could be read."""

    def gib(self, bytes_per_parameter: float) -> float:
        """Memory in GiB at `bytes_per_parameter`; 0 if the size is unknown."""
        return (self.num_parameters or 0) * bytes_per_parameter / GIB


def model_size(model: str, num_parameters_b: float | None) -> ModelSize:
    """The parameters of a model: counted in the headers of its safetensors files, else the configured number, else unknown.

    Raises:
        ConfigError: `num_parameters_b` is not positive.
    """
    if num_parameters_b is not None and num_parameters_b <= 0:
        raise ConfigError(f"num_parameters_b must be > 0, got {num_parameters_b}")
    files = sorted(Path(model).glob("*.safetensors")) if Path(model).is_dir() else []
    if files:
        shapes = {name: shape for path in files for name, shape in _shapes(path).items()}
        return ModelSize(num_parameters=sum(map(math.prod, shapes.values())), shapes=shapes)
    return ModelSize(num_parameters=None if num_parameters_b is None else int(num_parameters_b * 1e9))


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}


def roles(config: Any, models: Mapping[str, str | Path]) -> list[Role]:
    """The roles of an `align` run: the policy's engines, the engines of other roles that are asked, and the learner.

    Args:
        config: configuration of the run.
        models: folder or name of a model by role; `policy` is the policy's.
    """
    policy = model_size(str(models["policy"]), config.policy.num_parameters_b)
    found = [engine_role("rollout", config.rollout, policy)]
    for name in config.roles():
        role = config.engines[name]
        found.append(engine_role(name, role, model_size(str(models[name]), role.num_parameters_b)))
    plans = round_plans(config)
    return [*found, learner_role(config.learner, policy, plans, round_needs(config, plans))]


def models_of(config: Any) -> dict[str, str]:
    """The configured names of a run's models, by role."""
    return {"policy": config.policy.model, **{name: config.engines[name].model for name in config.roles()}}


def round_plans(config: Any) -> list[RoundPlan]:
    """The plans of all rounds of an `align` run."""
    schedule = config.schedule.build()
    plans = map(schedule.plan, range(schedule.num_rounds))
    return [replace(plan, brings_others=bool(_replay(config, plan).sources)) for plan in plans]


def _replay(config: Any, plan: RoundPlan) -> Any:
    return registry.replay.configured(config.replay, plan.options.get("replay", {}))


def round_needs(config: Any, plans: Sequence[RoundPlan]) -> list[frozenset[str]]:
    """The needs of the objective of each round (`rlsys.objectives.inputs.Objective.needs`)."""
    options = [plan.options.get("objective", {}) for plan in plans]
    return [registry.objective.configured(config.objective, each).needs for each in options]


def learner_memory(
    learner: Any, policy: ModelSize, plans: Sequence[RoundPlan] = (), needs: Sequence[frozenset[str]] | None = None
) -> Memory | None:
    """Memory of one rank, without the context memory of its process; `None` if the policy's size is unknown.

    Args:
        learner: a `LearnerConfig`.
        policy: size of the policy.
        plans: plans of the rounds that the learner will train; they determine how many weight copies it keeps.
        needs: the needs of each round's objective (`round_needs`); a reference if `None`.
    """
    if policy.num_parameters is None:
        return None
    if policy.shapes is None:
        parameters = Parameters.of_number(policy.num_parameters, learner)
    else:
        parameters = Parameters.of_shapes(policy.shapes, learner)
    num_starts = max_starts(plans, needs, start_copy=learner.start_copy)
    return plan_memory(learner, parameters, num_starts=num_starts)


def learner_role(
    learner: Any, policy: ModelSize, plans: Sequence[RoundPlan] = (), needs: Sequence[frozenset[str]] | None = None
) -> Role:
    """All ranks of a learner, with the memory that `learner_memory` gives."""
    memory = learner_memory(learner, policy, plans, needs)
    model = memory.total / GIB if memory else 0.0
    on_gpu = learner.gpus > 0
    return Role(
        name="learner",
        num_actors=learner.num_ranks,
        cores=learner.cores,
        gpus=learner.gpus,
        memory_gib=WORKER_GIB + (0 if on_gpu else model),
        gpu_memory_gib=model if on_gpu else 0.0,
    )


def engine_role(name: str, role: Any, model: ModelSize) -> Role:
    """All engines of one role."""
    engine = role.engine
    on_gpu = role.gpus > 0
    weights = model.gib(4 if getattr(engine, "dtype", None) == "float32" else 2) / max(1, role.gpus)
    return Role(
        name=name,
        num_actors=role.num_actors,
        cores=role.cores,
        gpus=role.gpus,
        memory_gib=WORKER_GIB + (0 if on_gpu else weights + getattr(engine, "kv_cache_gib", 0.0)),
        gpu_memory_gib=weights + getattr(engine, "gpu_kv_cache_gib", 0.0) if on_gpu else 0.0,
    )


def table(planned: list[Role], machine: Machine | None) -> str:
    """The plan as text, with the actors that do not fit `machine` (`None`: not checked)."""
    head = f"{'role':9} {'actors':>6} {'cores each':>10} {'GPUs each':>9} {'host GiB each':>13} {'GPU GiB each':>12}"
    lines = [head]
    for role in planned:
        cores = f"{role.cores:g}" if role.cores else "shared"
        memory = f"{role.gpu_memory_gib:.1f}" if role.gpus else "-"
        lines.append(
            f"{role.name:9} {role.num_actors:6} {cores:>10} {role.gpus:9g} {role.memory_gib:13.1f} {memory:>12}"
        )
    gpus = sum(role.num_actors * role.gpus for role in planned)
    lines.append(f"together: {sum(r.num_actors for r in planned)} actors, {gpus:g} GPUs")
    if machine is not None:
        short = shortages(planned, machine)
        there = f"{machine.num_cpus:g} cores, {machine.num_gpus:g} GPUs, {machine.memory_gib:.1f} GiB free"
        lines.append(f"here: {there}: " + ("it fits" if not short else "it does not fit: " + "; ".join(short)))
    return "\n".join(lines)


def check(config: Any, machine: Machine, schedule: Schedule | None = None) -> None:
    """Check that a run is possible, before anything is made or started.

    Args:
        config: configuration of the run.
        machine: the resources that are there.
        schedule: the rest of the configuration's schedule that is left to run; the whole schedule if `None`.

    Raises:
        ResourceError: the run's actors do not fit, as far as the models' sizes are known.
        ConfigError: there are fewer prompts than the schedule takes, or data for a round's replay is missing.
    """
    placements(roles(config, models_of(config)), machine)
    schedule = schedule or config.schedule.build()
    for options in _distinct(schedule.plan(round).options.get("replay", {}) for round in range(schedule.num_rounds)):
        registry.replay.configured(config.replay, options).check()
    num_prompts = schedule.num_prompts
    try:
        next(iter(config.prompts.take(num_prompts - 1, 1)))
    except PromptsExhausted as error:
        raise ConfigError(f"prompts: the schedule takes {num_prompts}; {error}") from error


def _distinct(found: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The distinct mappings, in order of first appearance."""
    return list({repr(options): options for options in found}.values())


def placements(planned: list[Role], machine: Machine) -> dict[str, list[Placement]]:
    """A placement for every actor of every role (`rlsys.placement.place`). The actors will be able to import the plug-ins that
    this process can import.
    """
    return place([replace(role, env=role.env | registry.passed_on()) for role in planned], machine)
