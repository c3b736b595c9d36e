"""TRL's trainers: what all of them are told, and how they are held between turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil

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
            with children_stopped():
                self.question = ask(None)
            self.begin()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % steps:
                return
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if num_compiled() == self.num_compiled:
                result = end()
                with children_stopped():
                    self.question = ask(result)
                control.should_training_stop = self.question == END
            self.begin()

    return BetweenTurns()


@contextmanager
def children_stopped() -> Iterator[None]:
    """Loader processes do not fill their queues with the other side's cores, and not before their own turn."""
    children = psutil.Process().children(recursive=True)
    for child in children:
        with suppress(psutil.NoSuchProcess):
            child.suspend()
    try:
        yield
    finally:
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.resume()
