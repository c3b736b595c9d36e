"""TRL's trainers: what all of them are told, how the fastest setting is found, and where they wait between turns."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.processes import END

ALLOCATOR = (
    "TRL's process has the allocator's own settings; started with MALLOC_MMAP_MAX_=0 and "
    "MALLOC_TRIM_THRESHOLD_=2147483647 this program measures it with those of ours (`learners/allocator.py`)."
)

OPTIONS = {
    "lr_scheduler_type": "constant",
    "weight_decay": 0.0,
    "optim": "adamw_torch_fused",
    "train_sampling_strategy": "sequential",
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}
"""Of every trainer; what they do besides training is left out."""
FINALISTS = 2
"""Settings, the fastest so far, that are tried once more: a noisy minute does not choose."""


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What trials of settings have found."""

    best: Any
    """`None` if none can be used."""
    speeds: dict[Any, float] = field(default_factory=dict)
    """Median of the counted turns of each setting, over all its trials."""
    unusable: dict[Any, str] = field(default_factory=dict)
    """Settings that were left out, and why."""

    def __str__(self) -> str:
        reached = [f"{setting}: {speed:.3g}" for setting, speed in self.speeds.items()]
        return ", ".join([*reached, *(f"{setting}: {reason}" for setting, reason in self.unusable.items())])


class Tuning:
    """Tries settings, one after another.

    tuning = Tuning(trial)                                # trial(setting): the speeds of its counted turns
    tuning.add(Setting(size=8))
    tuning.add(replace(tuning.best, compiled=True))
    tuning.finish().best                                  # after the fastest two were tried once more

    A setting is as fast as the median of its turns: the fastest of many turns would favour what varies most.
    """

    def __init__(self, trial: Callable[[Any], Sequence[float]]) -> None:
        self._trial = trial
        self._turns: dict[Any, list[float]] = {}
        self._unusable: dict[Any, str] = {}

    @property
    def best(self) -> Any:
        """The fastest so far; `None` if none can be used."""
        return max(self._turns, key=self._speed, default=None)

    def add(self, setting: Any) -> None:
        """Try one, or try it once more."""
        import torch
        from torch._dynamo import config
        from torch._dynamo.exc import FailOnRecompileLimitHit

        try:
            # Else what is past dynamo's limit runs as if it were not compiled, and nothing is said.
            with config.patch(fail_on_recompile_limit_hit=True):
                turns = self._trial(setting)
        except torch.OutOfMemoryError:
            self._leave_out(setting, "does not fit the memory")
        except FailOnRecompileLimitHit:
            self._leave_out(setting, f"compiles more often than {config.recompile_limit} times")
        else:
            self._turns.setdefault(setting, []).extend(turns)
        finally:  # by now no exception holds the trainer
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def finish(self) -> Tuned:
        """Try the fastest once more; the best is one of these, which have had the same number of trials."""
        finalists = sorted(self._turns, key=self._speed)[-FINALISTS:]
        for setting in finalists if len(finalists) > 1 else ():
            self.add(setting)
        left = [setting for setting in finalists if setting in self._turns] or list(self._turns)
        return Tuned(
            best=max(left, key=self._speed, default=None),
            speeds={setting: self._speed(setting) for setting in self._turns},
            unusable=self._unusable,
        )

    def _speed(self, setting: Any) -> float:
        return statistics.median(self._turns[setting])

    def _leave_out(self, setting: Any, reason: str) -> None:
        self._turns.pop(setting, None)
        self._unusable[setting] = reason


def forget_compiled() -> None:
    """To be called before a trainer is made. Dynamo counts what it compiles by code object, which all trainers of a
    process share: without this the later ones would reach its limit with what was compiled for the earlier ones.
    """
    import torch

    torch._dynamo.reset()


def between_turns(
    steps: int, ask: Callable[[Any], str], *, begin: Callable[[str], None], end: Callable[[], Any]
) -> Any:
    """A trainer's callback that waits in `ask` before each turn of so many steps, until that says `END`.

    A turn in which something was compiled is done again, on the batches that follow: compilation is not counted.

    Args:
        ask: gets what `end` says of the last turn, `None` before the first; returns the next question.
        begin: told the question when its turn begins.
    """
    import torch
    from torch._dynamo.utils import counters
    from transformers import TrainerCallback

    def num_compiled() -> int:
        return counters["stats"]["unique_graphs"]

    class BetweenTurns(TrainerCallback):
        def begin(self) -> None:
            self.num_compiled = num_compiled()
            begin(self.question)

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.question = ask(None)
            self.begin()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % steps:
                return
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if num_compiled() == self.num_compiled:
                self.question = ask(end())
                control.should_training_stop = self.question == END
            self.begin()

    return BetweenTurns()
