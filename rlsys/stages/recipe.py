"""Options for how long to train on a set of examples, and at which learning rates."""

from __future__ import annotations

from dataclasses import dataclass

from rlsys.errors import ConfigError

LR_SCHEDULES = ("constant", "linear", "cosine")


@dataclass(kw_only=True)
class Recipe:
    """The learning-rate recipe of one training over a finite set of examples."""

    epochs: int = 1
    lr: float = 1e-5
    """Highest learning rate."""
    lr_schedule: str = "cosine"
    """The learning rate after the warmup: `constant`, or a fall to 0 that is `linear` or `cosine`."""
    warmup: float = 0.03
    """Share of the steps over which the learning rate rises linearly."""
    batch_size: int = 32
    """Examples per optimizer step, all ranks together."""
    shuffle: bool = True
    """Whether the first epoch takes the examples in an order drawn from the seed; `false` takes the order of the data. Later
    epochs take the same batches in other orders."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "epochs"):
            if getattr(self, name) < 1:
                raise ConfigError(f"train.{name} must be at least 1, got {getattr(self, name)}")
        if self.lr <= 0:
            raise ConfigError(f"train.lr must be > 0, got {self.lr}")
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"train.warmup must be in [0, 1), got {self.warmup}")
        if self.lr_schedule not in LR_SCHEDULES:
            raise ConfigError(f"train.lr_schedule must be one of {', '.join(LR_SCHEDULES)}, got {self.lr_schedule!r}")

    def num_steps(self, num_examples: int) -> int:
        """Number of optimizer steps of all epochs together."""
        return -(-num_examples // self.batch_size) * self.epochs
