"""The configuration tree of every command. A part's options live beside its code; this file only puts them together."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from configs.sections import (
    EngineRoleConfig,
    EvalConfig,
    OutputConfig,
    PolicyConfig,
    RoleConfig,
    ScheduleConfig,
    SyncConfig,
)
from configs.training import TrainConfig, check_stages
from learners.config import LearnerConfig
from rlsys import registry
from rlsys.errors import ConfigError
from rlsys.evaluations.names import directions
from rlsys.records import RoundPlan
from rlsys.schedules.gate import GateConfig
from rlsys.schedules.phases import Schedule
from rlsys.stages.base import in_order
from rlsys.stages.train import check_match


@dataclass(kw_only=True)
class RunConfig:
    """The whole configuration of a command. `rlsys align preset=scenes --cfg job` prints it filled in."""

    name: str | None = None
    """Name of the run and of its folder; `null` makes one from the preset's name and the time."""
    preset_name: str = "custom"
    plugin_options: dict[str, Any] = field(default_factory=dict)
    """Options that presets and methods give to plug-ins: a mapping from the group (or a path such as `rollout.engine`) to the
    plug-in's name to its options. Only the options of the chosen plug-in take effect, so that choosing another plug-in does not
    hand it options that it does not have.
    """
    seed: int = 0
    dry_run: bool = False
    """Print the plan of actors, cores, GPUs and memory, and exit."""
    ray_address: str | None = None
    """Ray cluster to use. `null` joins the cluster of `RAY_ADDRESS` if that is set, and otherwise starts one for this run;
    `auto` joins the running one.
    """
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    stages: dict[str, Any] = field(default_factory=dict)
    """Stages, by name, that make models before the rounds. Each is a plug-in of group `stage`, chosen as
    `+stage@stages.NAME=KIND`. Its model can be named as `stage:NAME` wherever the configuration takes a model. A command runs
    only the stages that it needs, each after the stages that it depends on. The models are cached under a hash of everything
    that made them.
    """
    aliases: dict[str, dict[str, str]] = field(default_factory=dict)
    """Short names of models that presets declare, by role (`policy`, `judge`)."""
    train: TrainConfig = field(default_factory=TrainConfig)
    data: Any = None
    """Source of examples for `rlsys train`, a plug-in of group `data`. It stays `null` for rounds, which make their examples
    themselves.
    """
    prompts: Any = MISSING
    rollout: EngineRoleConfig = field(default_factory=EngineRoleConfig)
    feedback: Any = MISSING
    conversation: Any = MISSING
    engines: dict[str, RoleConfig] = field(default_factory=lambda: {"judge": RoleConfig(model="scenes")})
    """Engines, by role, that feedback, conversation and evaluations send requests to."""
    examples: Any = MISSING
    replay: Any = MISSING
    objective: Any = MISSING
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    transport: Any = MISSING
    sync: SyncConfig = field(default_factory=SyncConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    evaluations: dict[str, Any] = field(default_factory=dict)
    """Evaluations that measure the policy before the first round and after rounds: plug-ins of group `evaluation` by any name.
    `evaluations.NAME.OPTION=...` adds the evaluation called NAME; `evaluations=none` removes all.
    """
    eval: EvalConfig = field(default_factory=EvalConfig)
    output: OutputConfig = field(default_factory=OutputConfig)

    def __post_init__(self) -> None:
        """Check the rules that involve several parts, which no part can check alone.

        Raises:
            ConfigError: a rule needs weights that the learner would not keep, or measurements that are not made; the objective
                does not learn from the kind of examples that are made; a stage needs another stage that does not exist; or the
                transport or the ranks cannot work on the GPUs that they would have.
        """
        if not 0 <= self.seed < 1 << 63:
            raise ConfigError(f"seed must be in [0, 2^63), got {self.seed}")
        for plugin in (self.feedback, *self.evaluations.values()):
            if getattr(plugin, "seed", 0) is None:
                plugin.seed = self.seed
        self._check_learner_gpus()
        check_stages(self.stages, gpus=self.learner.gpus)
        if self.data is None:
            self._check_rounds()
        else:
            check_match(self.data, self.objective)

    def resolved(self, role: str, model: str) -> str:
        """The model that a role's `model` stands for: the target of that role's alias, or the name itself."""
        return self.aliases.get(role, {}).get(model, model)

    def models(self) -> dict[str, str]:
        """The models that a run's engines load, by role, with aliases resolved."""
        others = {name: self.resolved(name, self.engines[name].model) for name in self.roles()}
        return {"policy": self.resolved("policy", self.policy.model), **others}

    def _check_rounds(self) -> None:
        """Check what only a run with rounds needs; training without rounds skips these checks."""
        for role in self.engines.values():
            if role.engine is None:
                role.engine = copy.copy(self.rollout.engine)
        for section, role in {"rollout": self.rollout, **{f"engines.{n}": r for n, r in self.engines.items()}}.items():
            role.check(section)
        self._check_transport()
        in_order(self.stages, self.models().values())
        schedule = self.schedule.build()
        self._check_roles()
        for round in range(schedule.num_rounds):
            self._check_examples(schedule.plan(round))
        plans = map(schedule.plan, range(schedule.num_rounds))
        references = {plan.reference for plan in plans if "reference" in self._objective_of(plan).needs}
        keeps_initial = self.learner.initial_copy or self.learner.has_adapter
        if "initial" in references and not keeps_initial:
            raise ConfigError("schedule.reference=initial needs learner.initial_copy=true, or LoRA")
        if "ema" in references and not self.learner.ema_decay:
            raise ConfigError("schedule.reference=ema needs learner.ema_decay > 0")
        self._check_kl_budget(schedule)
        if self.gate.looks_at_metric and not (self.eval.every and self.evaluations):
            raise ConfigError(
                "gate.refuse and gate.patience need rounds that are evaluated: eval.every > 0, an evaluation"
            )
        self.gate.direction(directions(self.evaluations))

    def _check_kl_budget(self, schedule: Schedule) -> None:
        """Refuse a KL budget that no measurement is ever compared with, because it would silently never stop the run."""
        if self.gate.kl_budget is None:
            return
        if not (self.learner.initial_copy or self.learner.has_adapter):
            raise ConfigError("gate.kl_budget needs learner.initial_copy=true, or LoRA")
        if not self.learner.kl_responses:
            raise ConfigError("gate.kl_budget needs learner.kl_responses > 0, got 0")
        for plan in map(schedule.plan, range(schedule.num_rounds)):
            if 1.0 not in plan.temperatures or plan.top_p < 1:
                given = ", ".join(f"{temperature:g}" for temperature in plan.temperatures)
                raise ConfigError(
                    "gate.kl_budget needs answers at schedule.temperatures 1 and schedule.top_p 1 in every round: KL is "
                    f"estimated on no others; round {plan.round} has temperatures {given} and top_p {plan.top_p:g}"
                )

    def _check_roles(self) -> None:
        """Check that every engine that a plug-in asks is configured and can give what the plug-in asks of it."""
        for plugin in self.asking_plugins():
            for role in plugin.roles:
                found = self.engines.get(role)
                if role != "policy" and (found is None or not found.model):
                    raise ConfigError(
                        f"{type(plugin).__name__} asks an engine of role {role!r}; give it a model: engines.{role}.model=..."
                    )
                if role in getattr(plugin, "raw_logits", ()) and (role == "policy" or found.is_policy):
                    raise ConfigError(
                        f"{type(plugin).__name__} reads raw logits of role {role!r}, which the policy's engines do not give"
                    )

    def asking_plugins(self) -> list[Any]:
        """The plug-ins of all rounds that may send requests to engines."""
        schedule = self.schedule.build()
        options = [schedule.plan(round).options.get("feedback", {}) for round in range(schedule.num_rounds)]
        feedbacks = [registry.feedback.configured(self.feedback, each) for each in options]
        return [*feedbacks, self.conversation, *self.evaluations.values()]

    def roles(self, plugins: Sequence[Any] | None = None) -> list[str]:
        """Roles that `plugins` ask (all plug-ins if `None`) and that have engines of their own, in the order of `engines`."""
        asked = {role for plugin in (self.asking_plugins() if plugins is None else plugins) for role in plugin.roles}
        return [name for name, role in self.engines.items() if name in asked and not role.is_policy]

    def roles_of_policy(self) -> list[str]:
        """Roles that the policy's engines serve."""
        return ["policy", *(name for name, role in self.engines.items() if role.is_policy)]

    def raw_logits(self, role: str) -> bool:
        """Whether the engine of a role is opened so that it returns raw logits."""
        return any(role in getattr(plugin, "raw_logits", ()) for plugin in self.asking_plugins())

    def _check_examples(self, plan: RoundPlan) -> None:
        """Check that the plug-ins can be made with the options of a round, and that the objective learns from the kind of
        examples that the builder makes.
        """
        objective = self._objective_of(plan)
        builder = registry.examples.configured(self.examples, plan.options.get("examples", {}))
        replay = registry.replay.configured(self.replay, plan.options.get("replay", {}))
        registry.feedback.configured(self.feedback, plan.options.get("feedback", {}))
        if objective.consumes is not builder.produces:
            raise ConfigError(
                f"objective={type(objective).__name__} learns from {objective.consumes.__name__} records, and "
                f"examples={type(builder).__name__} makes {builder.produces.__name__} records"
            )
        if replay.produces not in (None, objective.consumes):
            raise ConfigError(
                f"objective={type(objective).__name__} learns from {objective.consumes.__name__} records, and "
                f"replay={type(replay).__name__} brings {replay.produces.__name__} records"
            )

    def _objective_of(self, plan: RoundPlan) -> Any:
        """The objective with the options of a round."""
        return registry.objective.configured(self.objective, plan.options.get("objective", {}))

    def _check_transport(self) -> None:
        """Check in advance what would otherwise fail only on a machine with GPUs, in the first weight update."""
        gpus = f"learner.gpus={self.learner.gpus:g}, rollout.gpus={self.rollout.gpus:g}"
        both, name = (self.learner.gpus, self.rollout.gpus), type(self.transport).__name__.lower()
        if getattr(self.transport, "between_gpus", False) and not all(both):
            raise ConfigError(f"transport={name} goes between GPUs, and {gpus}; transport=gloo needs none")
        on_shared = getattr(self.transport, "on_shared_gpu", None)
        if on_shared is True and max(both) >= 1:
            raise ConfigError(f"transport={name} goes between processes on one GPU; with {gpus} they share none")
        if on_shared is False and min(both) < 1:
            raise ConfigError(f"transport={name} goes between GPUs of their own; with {gpus} one may be shared")

    def _check_learner_gpus(self) -> None:
        """Check in advance what would otherwise fail only on a machine with GPUs, when the ranks connect."""
        if self.learner.gpus > 1:
            raise ConfigError(f"learner.gpus must be at most 1, as a rank works on one GPU; got {self.learner.gpus:g}")
        if 0 < self.learner.gpus < 1 < self.learner.num_ranks:
            raise ConfigError(
                f"learner.gpus={self.learner.gpus:g} with learner.num_ranks={self.learner.num_ranks}: "
                "ranks cannot share a GPU"
            )
