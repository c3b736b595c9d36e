"""Further destinations of the curves besides the run's own files. Both packages are imported only when they are asked for."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from rlsys.errors import ConfigError


class Sink(Protocol):
    """Accepts named numbers, step by step."""

    def log(self, values: Mapping[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class TensorBoardSink:
    """Event files for TensorBoard."""

    def __init__(self, directory: Path, *, first_step: int) -> None:
        """
        Args:
            first_step: events of an earlier attempt at this step and later are hidden.

        Raises:
            ConfigError: TensorBoard is not installed.
        """
        # torch.utils.tensorboard would do the same with these files, but importing torch takes two seconds.
        try:
            from tensorboard.compat.proto.event_pb2 import Event, SessionLog
            from tensorboard.compat.proto.summary_pb2 import Summary
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError as error:
            raise ConfigError(
                "tensorboard=true, but TensorBoard is not installed: pip install tensorboard, or set tensorboard=false"
            ) from error
        self._event, self._summary = Event, Summary
        self._writer = EventFileWriter(str(directory))
        self._write(step=first_step, session_log=SessionLog(status=SessionLog.START))

    def log(self, values: Mapping[str, float], step: int) -> None:
        scalars = [self._summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(step=step, summary=self._summary(value=scalars))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def _write(self, **content: Any) -> None:
        self._writer.add_event(self._event(wall_time=time.time(), **content))


class WandbSink:
    """A run at Weights & Biases; `mode: offline` in the options keeps it on this machine."""

    def __init__(self, directory: Path, *, options: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        """
        Args:
            directory: the run's folder.
            options: arguments of `wandb.init` (`project`, `entity`, `name`, `id`, `resume`, `mode`, ...).
            config: the configuration, shown beside the curves.

        Raises:
            ConfigError: the package is not installed.
        """
        try:
            import wandb
        except ImportError as error:
            raise ConfigError(
                "wandb is configured, but the package is not installed: pip install wandb, or set output.wandb=null"
            ) from error
        self._run = wandb.init(dir=str(directory), config=dict(config), **options)

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()
