"""`rlsys evaluate`: measure a policy by the evaluations of the configuration."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlsys.app import plan as planning
from rlsys.app.starting import Context, start_role, start_rollouts
from rlsys.asking.driver import run_program
from rlsys.evaluations.names import told_apart
from rlsys.records import Ask, Generation, Interval

Measure = Callable[[], dict[str, Interval]]


def evaluator(config: Any, roles: Mapping[str, Any], progress: Any, *, directory: Path | None = None) -> Measure:
    """Make a function that measures the engines' current weights with all evaluations; it returns `{}` if there are none.

    Args:
        config: configuration of the run.
        roles: engines by role, `policy` among them.
        progress: the display of progress.
        directory: the run's folder, where evaluations may keep data that later evaluations compare with.
    """
    from actors.roles import Respondent

    respondent = Respondent(roles, size=config.eval.batch, num_workers=config.rollout.num_actors)

    def answer(asks: Sequence[Ask]) -> Iterator[list[Generation]]:
        ready = (one for some in respondent(asks) for one in some)
        for ask, generation in zip(asks, progress.track("evaluate", ready, len(asks)), strict=True):
            if ask.role == "policy":
                roles["policy"].missed(ask.sampling.num_samples - len(generation.completions))
            yield [generation]

    def measure() -> dict[str, Interval]:
        found = {name: run_program(plugin.run(), answer) for name, plugin in config.evaluations.items()}
        return told_apart(found, config.evaluations)

    for name, plugin in config.evaluations.items():
        if directory is not None and hasattr(plugin, "folder"):
            plugin.folder = str(directory / "evaluations" / name)
    return measure


@contextmanager
def engines_for_evaluations(config: Any, context: Context, policy: Path) -> Iterator[dict[str, Any]]:
    """The engines that the evaluations ask, by role; they are stopped when the `with` block ends.

    Args:
        config: configuration of the run.
        context: the machine and the display of progress.
        policy: Hugging Face folder of the policy.
    """
    from rlsys.app.models import role_folder

    names = config.roles(list(config.evaluations.values()))
    models = {name: role_folder(config, context, name) for name in names}
    planned = [planning.engine_role("rollout", config.rollout, planning.model_size(str(policy), None))]
    for name in names:
        role = config.engines[name]
        planned.append(planning.engine_role(name, role, planning.model_size(str(models[name]), role.num_parameters_b)))
    placements = planning.placements(planned, context.machine)
    with ExitStack() as stack:
        rollouts = start_rollouts(config, context, policy, placements=placements["rollout"])
        stack.callback(rollouts.close)
        roles: dict[str, Any] = dict.fromkeys(config.roles_of_policy(), rollouts)
        for name in names:
            roles[name] = start_role(config, name, models[name], placements[name])
            stack.callback(roles[name].close)
        yield roles


def main(words: list[str]) -> int:
    """Measure `policy.model` and print the metrics as JSON."""
    from rlsys.app.command import run_with_host
    from rlsys.app.models import policy_folder

    def body(config: Any, context: Context) -> None:
        for plugin in config.evaluations.values():
            if hasattr(plugin, "check_alone"):
                plugin.check_alone()
        with engines_for_evaluations(config, context, policy_folder(config, context)) as roles:
            found = evaluator(config, roles, context.progress)()
        print(json.dumps({name: asdict(interval) for name, interval in found.items()}, indent=1))

    return run_with_host(words, body)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
