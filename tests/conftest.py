"""What all tests share: tests of the real stack are marked by their folder, GPU tests are skipped without a GPU."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

INTEGRATION = Path(__file__).parent / "integration"

# Property tests share their cores with whatever else runs, so an example's time says nothing; the same examples every
# time keep a failure reproducible.
hypothesis.settings.register_profile("rlsys", deadline=None, derandomize=True)
hypothesis.settings.load_profile("rlsys")

# Before anything imports the libraries that read them.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what lies in tests/integration, and skip what needs a GPU that is not there."""
    for item in items:
        if INTEGRATION in item.path.parents:
            item.add_marker(pytest.mark.integration)
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not on_gpu:
        return
    # Imported here: a run without GPU tests need not wait for torch.
    import torch

    if torch.cuda.is_available():
        return
    for item in on_gpu:
        item.add_marker(pytest.mark.skip(reason="no CUDA device"))
