"""Options of a supervised training run (`rlsys sft`, `rlsys critic`): what to train on, how long, and what may not pass."""

from __future__ import annotations

from dataclasses import dataclass, field

from rlsys.errors import ConfigError


@dataclass(kw_only=True)
class TrainingConfig:
    """One pass of the learner over examples made on the spot."""

    num_examples: int = 64_000
    batch_size: int = 64
    epochs: int = 1
    lr: float = 1e-3
    lr_schedule: str = "one_cycle"
    """`constant`, `cosine` or `one_cycle`."""
    warmup: float = 0.1
    """Share of the steps."""
    num_prompts: int = 0
    """Prompts to answer for examples that need the policy's own answers; 0 where none are needed."""
    num_candidates: int = 4
    """Answers per such prompt."""
    max_pairs_per_prompt: int = 4
    tasks: dict[str, float] = field(default_factory=lambda: {"describe": 1.0})
    """Relative weights of the world's tasks."""

    def __post_init__(self) -> None:
        for name in ("num_examples", "batch_size", "epochs", "num_candidates"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.lr <= 0:
            raise ConfigError(f"lr must be > 0, got {self.lr}")
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"warmup must be in [0, 1), got {self.warmup}")
        if self.lr_schedule not in ("constant", "cosine", "one_cycle"):
            raise ConfigError(f"lr_schedule must be constant, cosine or one_cycle, got {self.lr_schedule!r}")
