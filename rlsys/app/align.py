"""`rlsys align`: run online alignment rounds, from configuration to report."""

from __future__ import annotations

import shutil
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from configs.sections import OutputConfig
from rlsys import registry
from rlsys.app import config as configuration
from rlsys.app import plan as planning
from rlsys.app.assembly import assembled
from rlsys.app.cluster import cluster, look
from rlsys.app.evaluate import engines_for_evaluations, evaluator
from rlsys.app.models import role_folders, stage_lines
from rlsys.app.report import write
from rlsys.app.starting import Context
from rlsys.checkpoints import checkpoint
from rlsys.common import files
from rlsys.errors import ConfigError, ResourceError
from rlsys.evaluations.names import directions
from rlsys.journal import Journal
from rlsys.records import RoundPlan, RoundReport
from rlsys.report.metrics import RunMetrics
from rlsys.report.progress import Progress, quiet_libraries
from rlsys.rounds import run_rounds
from rlsys.schedules.gate import MetricGate


def main(words: list[str]) -> int:
    """Run, resume (`resume=<run>`) or only plan (`dry_run=true`) a run. Returns the exit status."""
    resumed = [override.removeprefix("resume=") for override in words if override.startswith("resume=")]
    if not resumed:
        return configuration.run_command(words, lambda config, tree: _begin(config, tree, words))
    others = [override for override in words if not override.startswith("resume=")]
    directory = _folder(resumed[-1], others)
    return configuration.run_command(
        others,
        lambda config, tree: _go_on(config, tree, others, directory),
        load=lambda words: configuration.load_saved(directory, words),
    )


BEFORE_THE_START = {".lock", "config.yaml", configuration.WORDS}
"""Names in the folder of a run that has not yet started any process."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run's folder and its configuration."""

    directory: Path
    config: Any
    tree: Any
    words: list[str]
    """The overrides that the run was started with or, when it is resumed, those added at the resume."""
    resumed: bool


def _begin(config: Any, tree: Any, words: list[str]) -> int:
    if config.data is not None:
        raise ConfigError(
            f"data={registry.data.name_of(config.data)} is for rlsys train; the rounds make their examples themselves, and "
            "a stage has data of its own: +data@stages.NAME.data=..."
        )
    if config.dry_run:
        print(dry_run(config))
        return 0
    name = config.name or f"{config.preset_name}-{time.strftime('%Y%m%d-%H%M%S')}"
    directory = (
        Path(config.output.runs_dir).absolute() / name
    )  # absolute because the actors may have other working directories
    try:
        directory.mkdir(parents=True)
    except FileExistsError as error:
        raise ConfigError(
            f"name: {directory} exists already; go on with resume={directory}, or choose another name"
        ) from error
    run = Run(directory=directory, config=config, tree=tree, words=words, resumed=False)
    try:
        return align(run)
    except (ConfigError, ResourceError):
        if {path.name for path in directory.iterdir()} <= BEFORE_THE_START:
            shutil.rmtree(directory)  # so that the corrected command can use the same name
        raise


def _go_on(config: Any, tree: Any, words: list[str], directory: Path) -> int:
    if config.dry_run:
        print(dry_run(config))
        return 0
    return align(Run(directory=directory, config=config, tree=tree, words=words, resumed=True))


def _folder(run: str, words: list[str]) -> Path:
    """The folder of a run that is given by its path, or by its name in the folder of runs."""
    if (Path(run) / "config.yaml").exists():
        return Path(run).absolute()
    key = "output.runs_dir="
    given = [override.removeprefix(key) for override in words if override.startswith(key)]
    return Path([OutputConfig.runs_dir, *given][-1]).absolute() / run


def dry_run(config: Any) -> str:
    """A text that describes the plan: actors, cores, GPUs and memory, then the rounds."""
    models = planning.models_of(config)
    roles = planning.roles(config, models)
    schedule = config.schedule.build()
    lines = [
        ", ".join(f"{role} {model}" for role, model in models.items()),
        *stage_lines(config, config.models().values()),
        planning.table(roles, look(config.ray_address)),
    ]
    policy = planning.model_size(models["policy"], config.policy.num_parameters_b)
    plans = planning.round_plans(config)
    memory = planning.learner_memory(config.learner, policy, plans, planning.round_needs(config, plans))
    if memory is not None:
        lines.append(f"a learner rank holds {memory}, besides activations")
    for plan in map(schedule.plan, range(schedule.num_rounds)):
        lines.append(
            f"round {plan.round}: {plan.num_prompts} prompts x {plan.num_candidates}, lr {plan.lr:g}, "
            f"reference {plan.reference}, lag {plan.lag}"
            + "".join(f", {planned_options(config, plan, group)}" for group in ("examples", "objective", "replay"))
        )
    return "\n".join(lines)


def planned_options(config: Any, plan: RoundPlan, group: str) -> str:
    """The plug-in of a group with the options of a round, as a string."""
    plugin = getattr(registry, group).configured(getattr(config, group), plan.options.get(group, {}))
    return str(plugin)


def align(run: Run) -> int:
    """Run the remaining rounds and write the run's results.

    Raises:
        ConfigError: another process is working on this run, or there are fewer prompts than the schedule takes.
        ResourceError: the actors do not fit.
    """
    quiet_libraries()
    with files.locked(run.directory / ".lock", busy=f"{run.directory}: another process is at this run"):
        if not run.resumed:
            configuration.save(run.tree, run.words, run.directory)
        return _align(run)


def _align(run: Run) -> int:
    config = run.config
    schedule = config.schedule.build()
    done = _progress_so_far(run)
    gate = MetricGate(config=config.gate, directions=directions(config.evaluations))
    first = len(done.history)
    if done.state:
        schedule = schedule.going_on(first, done.state["cursor"])
        evaluated = [report.eval for report in done.history if report.eval and report.accepted]
        gate.restore(done.state["gate"], evaluated)
    stopped = gate.stops(done.history[-1]) if done.history else None
    if stopped or first >= schedule.num_rounds:
        print(f"{run.directory}: {stopped or f'all {schedule.num_rounds} rounds are done'}")
        _finish(run, done)
        print(f"report: {write(run.directory, examples=config.output.examples)}")
        return 0
    with cluster(config.ray_address) as machine, Progress() as progress, ExitStack() as stack:
        context = Context(machine=machine, progress=progress)
        planning.check(config, machine, schedule)
        models = role_folders(config, context)
        progress.say(f"run {run.directory}: {schedule.num_rounds} rounds")
        parts, measure = stack.enter_context(
            assembled(config, context, run.directory, schedule=schedule, models=models, gate=gate, good=done.good)
        )
        if run.resumed:  # saved only now, when the added options have proved possible
            configuration.save(run.tree, run.words, run.directory)
        # Metrics are opened after the parts: TensorBoard is imported while the parts start.
        metrics = stack.enter_context(
            _metrics(run, done, tensorboard=config.output.tensorboard, wandb=config.output.wandb)
        )
        _first_evaluation(metrics, parts.gate, progress, measure, known=first > 0)
        for report in run_rounds(parts, first=first, version=done.version):
            metrics.append(report)
            progress.round_done(report)
            stopped = parts.gate.stops(report)
        if stopped:
            progress.say(f"stopped after round {report.round}: {stopped}")
    print(f"report: {write(run.directory, examples=config.output.examples)}")
    return 0


def _finish(run: Run, done: Progressed) -> None:
    """Write the numbers of a run that has no rounds left. A kill may have come before the numbers of the last round were
    written. If the last round was not evaluated, its weights are evaluated now.
    """
    config = run.config
    with _metrics(run, done, tensorboard=False) as metrics:
        if metrics.is_last_evaluated or not config.eval.every or not config.evaluations:
            return
        with cluster(config.ray_address) as machine, Progress() as progress:
            context = Context(machine=machine, progress=progress)
            with engines_for_evaluations(config, context, done.good / "policy") as roles:
                metrics.evaluated(evaluator(config, roles, progress, directory=run.directory)())


def _metrics(run: Run, done: Progressed, **sinks: Any) -> RunMetrics:
    return RunMetrics(
        run.directory,
        config=OmegaConf.to_container(run.tree, resolve=True),
        history=done.history if run.resumed else None,
        directions=directions(run.config.evaluations),
        **sinks,
    )


@dataclass(frozen=True, kw_only=True)
class Progressed:
    """How far a run has come; empty for a new run."""

    history: list[RoundReport]
    """Reports of the completed rounds."""
    good: Path | None = None
    """Checkpoint of the last completed round."""
    state: dict | None = None
    """State of the run that is stored in that checkpoint."""

    @property
    def version(self) -> int:
        """Version of the policy's weights."""
        return self.state["version"] if self.state else 0


def _progress_so_far(run: Run) -> Progressed:
    """Read the progress of a run from its folder. A round counts as done when its report is in the journal. The report is
    written after the checkpoint, so a kill between the two repeats the round. Checkpoints of early rounds may have been removed
    since.
    """
    if not run.resumed:
        return Progressed(history=[])
    journal = Journal(run.directory / "journal")
    history: list[RoundReport] = []
    for round in journal.rounds():
        reports = list(journal.read(round, RoundReport))
        if not reports:
            break
        history += reports
    while history:
        good = run.directory / "checkpoints" / f"round-{len(history) - 1:04d}"
        if good.exists():
            return Progressed(history=history, good=good, state=checkpoint.load_state(good))
        history.pop()
    return Progressed(history=[])


def _first_evaluation(metrics: RunMetrics, gate: MetricGate, progress: Progress, measure: Any, *, known: bool) -> None:
    """Measure the policy before the first round, unless an earlier start of the run has done so."""
    if known:
        return
    start = measure()
    metrics.start(start)
    gate.begin(start)
    progress.started(start)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
