"""TRL's trainers: options of all of them, the search for the fastest setting, and the wait between turns."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import device
from benchmarks.processes import ANSWER

Ask = Callable[[Any], Any]
"""Called between turns with the last result, `None` before the first; returns the next question."""
END = "end"
"""This answer of `ask` ends a trainer."""
ALLOCATOR = (
    "TRL's process has the allocator's own settings; started with MALLOC_MMAP_MAX_=0 and "
    "MALLOC_TRIM_THRESHOLD_=2147483647 this program measures it with those of ours (`learners/allocator.py`)."
)

FINALISTS = 2
"""Number of the fastest settings that are tried once more, so that a noisy minute does not choose."""


def options() -> dict[str, Any]:
    """Options of every TRL trainer. They switch off what a trainer does besides training."""
    return {
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "optim": "adamw_torch_fused",
        "train_sampling_strategy": "sequential",
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        "use_cpu": not device.on_gpu(),
        "bf16": device.precision() == "bf16",
    }


def dataset(count: int, row: Callable[[int], dict[str, Any]]) -> Any:
    """Rows that are made when the loader asks for them."""
    from datasets import Dataset

    def look_up(batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        found = [row(number) for number in batch["number"]]
        return {name: [one[name] for one in found] for name in found[0]}

    return Dataset.from_dict({"number": list(range(count))}).with_transform(look_up)


class Tuning:
    """Tries settings, one after another.

    tuning = Tuning(trial)                                # trial(setting): the speeds of its counted turns
    tuning.add(Setting(size=8))
    tuning.add(replace(tuning.best, compiled=True))
    best, told = tuning.finish()                          # after the fastest two were tried once more

    A setting is as fast as the median of its turns: the fastest of many turns would favour what varies most.
    """

    def __init__(self, trial: Callable[[Any], Sequence[float]]) -> None:
        self._trial = trial
        self._turns: dict[Any, list[float]] = {}
        self._unusable: dict[Any, str] = {}

    @property
    def best(self) -> Any:
        """The fastest so far.

        Raises:
            ValueError: none can be used.
        """
        return max(self._turns, key=self._speed)

    def add(self, setting: Any) -> None:
        """Try one, or try it once more."""
        import torch
        from torch._dynamo import config
        from torch._dynamo.exc import FailOnRecompileLimitHit

        try:
            # Else what is past dynamo's limit runs as if it were not compiled, and nothing is said.
            with config.patch(fail_on_recompile_limit_hit=True):
                self._turns.setdefault(setting, []).extend(self._trial(setting))
        except (torch.OutOfMemoryError, FailOnRecompileLimitHit) as error:
            self._turns.pop(setting, None)
            self._unusable[setting] = type(error).__name__
        finally:  # by now no exception holds the trainer
            gc.collect()

    def finish(self) -> tuple[Any, str]:
        """Try the fastest once more. The best is one of these, which have had the same number of trials; with it, what was
        reached with each setting that was tried.
        """
        finalists = sorted(self._turns, key=self._speed)[-FINALISTS:]
        for setting in finalists if len(self._turns) > 1 else ():
            self.add(setting)
        best = max((one for one in finalists if one in self._turns), key=self._speed)
        reached = {one: f"{self._speed(one):.3g}" for one in self._turns} | self._unusable
        return best, ", ".join(f"{setting}: {what}" for setting, what in reached.items())

    def _speed(self, setting: Any) -> float:
        return statistics.median(self._turns[setting])


def forget_compiled() -> None:
    """Dynamo counts by code object, so that a process's later trainers would reach its limit with what earlier ones did."""
    import torch

    torch._dynamo.reset()


def turns_of(train: Callable[[Ask], None], count: int) -> list[Any]:
    """Results of so many turns of a trainer, which `train` runs with a function that it asks between turns."""
    found: list[Any] = []

    def ask(result: Any) -> str:
        found.extend([] if result is None else [result])
        return END if len(found) == count else "turn"

    train(ask)
    return found


def serve(pipe: Any, train: Callable[[Ask], None], question: Any = None) -> None:
    """A trainer's turns, one for each message; `question` is the first, if it has come."""
    question = pipe.recv() if question is None else question

    def ask(result: Any) -> str:
        nonlocal question
        if result is not None:
            pipe.send((ANSWER, result))
            question = pipe.recv()
        return question

    train(ask)


def between_turns(steps: int, ask: Ask, *, begin: Callable[[str], None], end: Callable[[], Any]) -> Any:
    """A trainer's callback that waits in `ask` before each turn of so many steps, until that says `END`.

    A turn in which something was compiled is done again, on the batches that follow: compilation is not counted.

    Args:
        begin: told the question when its turn begins.
        end: says what the turn was.
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
