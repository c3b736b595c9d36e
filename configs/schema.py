"""The configuration tree of every command. A part's options live beside its code; this file only puts them together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from omegaconf import MISSING

from learners.config import LearnerConfig
from rlsys import registry, training
from rlsys.errors import ConfigError
from rlsys.evaluations.none import NoEvaluation
from rlsys.records import RoundPlan
from rlsys.run.sync import TOLERANCES
from rlsys.schedules.gate import GateConfig
from rlsys.schedules.phases import Phase, Schedule


def _at_least(section: str, options: Any, **lowest: float) -> None:
    for name, low in lowest.items():
        if not getattr(options, name) >= low:
            raise ConfigError(f"{section}.{name} must be at least {low}, got {getattr(options, name)}")


def _above_zero(section: str, options: Any, *names: str) -> None:
    for name in names:
        if not getattr(options, name) > 0:
            raise ConfigError(f"{section}.{name} must be > 0, got {getattr(options, name)}")


@dataclass(kw_only=True)
class ScheduleConfig(Phase):
    """The rules of every round; `phases` lists stretches of rounds that differ from them."""

    phases: list[dict[str, Any]] = field(default_factory=list)
    """Each a mapping of the same keys; empty means one phase of `rounds` rounds."""

    def build(self) -> Schedule:
        """
        Raises:
            ConfigError: a phase has a key that a phase does not have, or a wrong value.
        """
        names = list(Phase.__dataclass_fields__)
        base = {name: getattr(self, name) for name in names}
        for number, phase in enumerate(self.phases):
            for key in phase:
                if key not in base:
                    raise ConfigError(f"schedule.phases.{number}: no key {key!r}; there are: {', '.join(names)}")
        return Schedule([Phase(**{**base, **phase}) for phase in self.phases or [{}]])


@dataclass(kw_only=True)
class PolicyConfig:
    """The model to align."""

    model: str = "scenes"
    """`scenes` (made on the spot and cached), or a Hugging Face folder or name."""
    num_parameters_b: float | None = None
    """Billions of parameters, for the plan when the weights are not on this machine."""


@dataclass(kw_only=True)
class EngineRoleConfig:
    """Actors with an inference engine each."""

    role: ClassVar[str] = "rollout"
    """Its key in `RunConfig`."""

    num_actors: int = 1
    cores: float = 0
    """Cores per actor; 0 shares out what there is."""
    gpus: float = 0
    """GPUs per actor: the engine's tensor-parallel size, or a fraction of a shared GPU."""
    batch: int = 32
    """Prompts (rollout) or groups (critic) per call. Part of what makes a run reproducible: another batch, other rounding."""
    deadline_s: float = 900.0
    """For the first results of a call, and from each to the next."""
    engine: Any = MISSING

    def __post_init__(self) -> None:
        _at_least(self.role, self, num_actors=1, batch=1, cores=0, gpus=0)
        _above_zero(self.role, self, "deadline_s")
        if self.engine != MISSING and not hasattr(self.engine, "receivers"):
            raise ConfigError(
                f"{self.role}.engine must be an engine, got {self.engine!r}; choose one with engine@{self.role}.engine=NAME"
            )
        if self.engine != MISSING and self.gpus and self.engine.receivers != max(1, self.gpus):
            raise ConfigError(
                f"{self.role}.gpus must be the engine's tensor-parallel size, {self.engine.receivers}, got {self.gpus:g}"
            )


@dataclass(kw_only=True)
class JudgeConfig(EngineRoleConfig):
    """The judge."""

    role: ClassVar[str] = "critic"

    model: str = "scenes"
    """`scenes` (trained on the spot and cached), or a Hugging Face folder or name."""
    num_parameters_b: float | None = None


@dataclass(kw_only=True)
class EvalConfig:
    """How the policy is measured on held-out prompts."""

    every: int = 1
    """Rounds between two evaluations; the last round is always evaluated. 0 never evaluates."""
    temperature: float = 1.0
    max_tokens: int = 64
    batch: int = 256
    """Prompts per engine call, more than in a round, where a prompt has several answers. Another batch, other rounding."""

    def __post_init__(self) -> None:
        _at_least("eval", self, every=0, temperature=0, max_tokens=1, batch=1)


@dataclass(kw_only=True)
class SyncConfig:
    """The proof that weights arrived."""

    tolerance: float | None = None
    """Largest difference allowed between engine and learner on a probe's token, nats; `null` is 0.001 where the learner's
    precision is fp32 and 0.5 where it is bf16.
    """
    num_probes: int = 4
    deadline_s: float = 300.0

    def __post_init__(self) -> None:
        _at_least("sync", self, num_probes=1)
        _above_zero("sync", self, "deadline_s")
        if self.tolerance is not None:
            _above_zero("sync", self, "tolerance")

    def tolerance_at(self, precision: str) -> float:
        """The tolerance in force, nats, for a learner's precision."""
        return TOLERANCES[precision] if self.tolerance is None else self.tolerance


@dataclass(kw_only=True)
class OutputConfig:
    """What a run leaves behind."""

    runs_dir: str = "runs"
    keep_checkpoints: int = 0
    """0 keeps the checkpoint of every round."""
    tensorboard: bool = True
    wandb: Any = None
    """Arguments of `wandb.init`, such as `{project: mine}`; `null` is off."""
    examples: int = 20
    """Examples on the report page."""

    def __post_init__(self) -> None:
        _at_least("output", self, keep_checkpoints=0, examples=0)
        if not isinstance(self.wandb, (dict, type(None))):
            raise ConfigError(f"output.wandb must be a mapping such as {{project: mine}}, or null, got {self.wandb!r}")


@dataclass(kw_only=True)
class RunConfig:
    """Everything. `rlsys align preset=scenes --cfg job` shows it filled in."""

    name: str | None = None
    """Of the run and its folder; made from the preset and the time if `null`."""
    preset_name: str = "custom"
    plugin_options: dict[str, Any] = field(default_factory=dict)
    """Options that presets and methods give to plug-ins, by group (or path, as `rollout.engine`) and by plug-in: only those of
    the plug-in that is chosen take effect, so that another choice meets no options of a plug-in that it is not.
    """
    seed: int = 0
    dry_run: bool = False
    """Print the plan of actors, cores, GPUs and memory, and end."""
    ray_address: str | None = None
    """`null`: the cluster of `RAY_ADDRESS` if that is set, else a cluster of this run's own; `auto`: the running one."""
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    sft: training.SftConfig = field(default_factory=training.SftConfig)
    """How `policy.model=scenes` is made."""
    judge_training: training.JudgeTrainingConfig = field(default_factory=training.JudgeTrainingConfig)
    """How `critic.model=scenes` is made."""
    prompts: Any = MISSING
    rollout: EngineRoleConfig = field(default_factory=EngineRoleConfig)
    feedback: Any = MISSING
    critic: JudgeConfig = field(default_factory=JudgeConfig)
    examples: Any = MISSING
    objective: Any = MISSING
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    transport: Any = MISSING
    sync: SyncConfig = field(default_factory=SyncConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    evaluation: Any = MISSING
    eval: EvalConfig = field(default_factory=EvalConfig)
    output: OutputConfig = field(default_factory=OutputConfig)

    def __post_init__(self) -> None:
        """What no part can check alone.

        Raises:
            ConfigError: a rule needs weights that the learner would not keep, or measurements that are not made; the
                objective does not learn from pairs; the transport, or the ranks, cannot work on the GPUs they would have.
        """
        if not 0 <= self.seed < 1 << 63:
            raise ConfigError(f"seed must be in [0, 2^63), got {self.seed}")
        if getattr(self.feedback, "seed", 0) is None:
            self.feedback.seed = self.seed
        self._check_gpus()
        schedule = self.schedule.build()
        for round in range(schedule.num_rounds):
            self._check_examples(schedule.plan(round))
        plans = map(schedule.plan, range(schedule.num_rounds))
        references = {plan.reference for plan in plans if "reference" in self._objective_of(plan).needs}
        keeps_initial = self.learner.initial_copy or self.learner.has_adapter
        if "initial" in references and not keeps_initial:
            raise ConfigError("schedule.reference=initial needs learner.initial_copy=true, or LoRA")
        if "ema" in references and not self.learner.ema_decay:
            raise ConfigError("schedule.reference=ema needs learner.ema_decay > 0")
        if self.gate.kl_budget is not None and not keeps_initial:
            raise ConfigError("gate.kl_budget needs learner.initial_copy=true, or LoRA")
        if self.gate.looks_at_metric and (not self.eval.every or isinstance(self.evaluation, NoEvaluation)):
            raise ConfigError(
                "gate.refuse and gate.patience need rounds that are evaluated: eval.every > 0, an evaluation"
            )

    def _check_examples(self, plan: RoundPlan) -> None:
        """The plug-ins as a round has them can be made, and the objective learns from what the builder makes."""
        objective = self._objective_of(plan)
        builder = registry.examples.configured(self.examples, plan.options.get("examples", {}))
        registry.feedback.configured(self.feedback, plan.options.get("feedback", {}))
        if objective.consumes is not builder.produces:
            raise ConfigError(
                f"objective={type(objective).__name__} learns from {objective.consumes.__name__} records, and "
                f"examples={type(builder).__name__} makes {builder.produces.__name__} records"
            )

    def _objective_of(self, plan: RoundPlan) -> Any:
        """The objective as a round has it."""
        return registry.objective.configured(self.objective, plan.options.get("objective", {}))

    def _check_gpus(self) -> None:
        """What only a machine with GPUs would show, when ranks meet or in the first weight update."""
        gpus = f"learner.gpus={self.learner.gpus:g}, rollout.gpus={self.rollout.gpus:g}"
        both, name = (self.learner.gpus, self.rollout.gpus), type(self.transport).__name__.lower()
        if getattr(self.transport, "between_gpus", False) and not all(both):
            raise ConfigError(f"transport={name} goes between GPUs, and {gpus}; transport=gloo needs none")
        on_shared = getattr(self.transport, "on_shared_gpu", None)
        if on_shared is True and max(both) >= 1:
            raise ConfigError(f"transport={name} goes between processes on one GPU; with {gpus} they share none")
        if on_shared is False and min(both) < 1:
            raise ConfigError(f"transport={name} goes between GPUs of their own; with {gpus} one may be shared")
        if self.learner.gpus > 1:
            raise ConfigError(f"learner.gpus must be at most 1, as a rank works on one GPU; got {self.learner.gpus:g}")
        if 0 < self.learner.gpus < 1 < self.learner.num_ranks:
            raise ConfigError(
                f"learner.gpus={self.learner.gpus:g} with learner.num_ranks={self.learner.num_ranks}: "
                "ranks cannot share a GPU"
            )
