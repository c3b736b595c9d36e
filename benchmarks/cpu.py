"""The processor that is measured on."""

from __future__ import annotations

import platform
from pathlib import Path

FACTS = Path("/proc/cpuinfo")


def name(facts: Path = FACTS) -> str:
    """As it calls itself."""
    lines = facts.read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def multiplies_in_bf16(facts: Path = FACTS) -> bool:
    """Whether it has instructions for it; where it has none, bfloat16 is slower than float32 and nobody's choice."""
    return any(word.endswith("bf16") for word in facts.read_text().split())
