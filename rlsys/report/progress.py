"""The console output of a run: a bar per stage and a line per round.

The bars are drawn only on a terminal; a file or a pipe gets the lines alone.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any, TypeVar

from rlsys.placement.machine import may_have_gpus
from rlsys.records import Interval, RoundReport

T = TypeVar("T")

QUIET_ENV = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DISABLE_LOG_LOGO": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "DATASETS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "GLOG_minloglevel": "2",
}
"""Environment of every process of a run; it has effect only if it is set before the libraries are imported."""

_LOGGERS = {
    "vllm": logging.ERROR,
    "ray": logging.ERROR,
    "DeepSpeed": logging.ERROR,
    "deepspeed": logging.ERROR,
    "transformers": logging.ERROR,
    "datasets": logging.ERROR,
    "torch.distributed": logging.ERROR,
    "filelock": logging.WARNING,
    "httpx": logging.WARNING,
}


def quiet_libraries() -> None:
    """Limit the libraries' own messages to errors, in this process and in those that it starts; values that the user has set
    are kept.
    """
    for name, value in QUIET_ENV.items():
        os.environ.setdefault(name, value)
    if not may_have_gpus():  # otherwise DeepSpeed looks for a GPU, and warns that it found none
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    for name, level in _LOGGERS.items():
        logging.getLogger(name).setLevel(level)
    for category in (FutureWarning, DeprecationWarning):
        warnings.filterwarnings("ignore", category=category)


class Progress:
    """The console of a run. Every method may be called from any thread.

    with Progress() as progress:
        for group in progress.track("rollout", groups, total=256): ...
        progress.round_done(report)
    """

    def __init__(self, stream: IO[str] | None = None) -> None:
        """
        Args:
            stream: where to write; standard output if `None`.
        """
        from rich.console import Console

        self._console = Console(file=stream or sys.stdout, highlight=False, soft_wrap=True)
        self._lock = threading.Lock()
        self._finished: list[Any] = []
        self._bars = _bars(self._console) if self._console.is_terminal else None

    def __enter__(self) -> Progress:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bars is not None:
            self._clear_finished()
            self._bars.stop()

    def track(self, stage: str, items: Iterable[T], total: int | None) -> Iterator[T]:
        """Pass `items` through while a bar shows how many came, how fast, and how long the rest will take.

        Closing the iterator closes `items`, if it has a `close` method.
        """
        try:
            if self._bars is None:
                yield from items
            else:
                yield from self._with_bar(stage, items, total)
        finally:
            close = getattr(items, "close", None)
            if close is not None:
                close()

    def started(self, evaluation: Mapping[str, Interval]) -> None:
        """Print the metrics of the policy before the first round."""
        self.say(" · ".join(["start", *_evaluation(evaluation)]))

    def round_done(self, report: RoundReport) -> None:
        """Print one line for a finished round and remove the bars of finished stages."""
        self._clear_finished()
        self.say(round_line(report))

    def say(self, text: str) -> None:
        """Print a line of its own above the bars."""
        self._console.print(text, markup=False)

    def _with_bar(self, stage: str, items: Iterable[T], total: int | None) -> Iterator[T]:
        task = self._bars.add_task(stage, total=total)
        try:
            for item in items:
                yield item
                self._bars.advance(task)
        finally:
            self._bars.stop_task(task)
            with self._lock:
                self._finished.append(task)

    def _clear_finished(self) -> None:
        with self._lock:
            finished, self._finished = self._finished, []
        for task in finished:
            self._bars.remove_task(task)


def round_line(report: RoundReport) -> str:
    """A round as one line."""
    parts = [f"round {report.round}", *_evaluation(report.eval)]
    others = "".join(f", {count:,} {source}" for source, count in report.replayed.items())
    parts.append(f"{report.num_responses:,} responses, {report.num_examples:,} examples{others}")
    if report.num_examples or others:
        learned = [f"loss {report.loss:.3f}"]
        if "implicit_accuracy" in report.metrics:
            learned.append(f"right {report.metrics['implicit_accuracy']:.0%}")
        if math.isfinite(report.kl):
            learned.append(f"KL {report.kl:.3g}")
        parts.append(", ".join(learned))
    parts.append(f"sync gap {report.sync.max_logprob_gap:.1e}")
    failures = [f"{count} {what}" for what, count in report.failed.items() if count]
    if failures:
        parts.append("failed: " + ", ".join(failures))
    if not report.accepted:
        parts.append("refused, weights went back")
    if "round" in report.seconds:
        parts.append(f"{report.seconds['round']:.1f} s")
    return " · ".join(parts)


def _evaluation(evaluation: Mapping[str, Interval]) -> list[str]:
    shown = {
        "chair_i": ("CHAIR_i", "{:.1%}"),
        "recall": ("recall", "{:.1%}"),
        "win_rate": ("win rate", "{:.1%}"),
        "mean_length": ("length", "{:.1f}"),
    }
    return [
        f"{title} {form.format(interval.value)}"
        for metric, (title, form) in shown.items()
        for name, interval in evaluation.items()
        if name.rpartition(".")[2] == metric
    ]


def _bars(console: Any) -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars
    from rich.text import Text

    class Rate(ProgressColumn):
        """Items per second, over the last moments."""

        def render(self, task: Any) -> Text:
            speed = task.finished_speed or task.speed
            return Text("" if speed is None else f"{speed:,.1f}/s", style="dim")

    columns = (
        TextColumn("{task.description:<9}"),
        BarColumn(bar_width=32),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
    )
    return Bars(*columns, console=console, transient=True)
