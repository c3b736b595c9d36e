"""The hook that lets torchvision be imported without its compiled operators, in interpreters of their own."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HOOK = Path(__file__).resolve().parents[2] / "requirements" / "torchvision_hook.py"

FAKE_TORCHVISION = """
import torch
declared = [name for name in ("nms", "qnms") if hasattr(torch.ops.torchvision, name)]
real_loader = type(__spec__.loader).__name__
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder with the hook, its .pth file, and a torchvision that tells which operators it found declared."""
    folder = tmp_path / "site"
    (folder / "torchvision").mkdir(parents=True)
    (folder / "torchvision" / "__init__.py").write_text(FAKE_TORCHVISION)
    program = (
        f"import sys, pathlib; sys.path.insert(0, {str(HOOK.parent)!r}); import torchvision_hook as hook; "
        f"hook.install_in_environment(pathlib.Path({str(folder)!r}))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    return folder


def run(site: Path, program: str) -> str:
    """Standard output of `program` in an interpreter that starts with the packages of `site`."""
    start = f"import site, sys; sys.path.insert(0, {str(site)!r}); site.addsitedir({str(site)!r})\n"
    # The environment these tests run in has the hook too; only the one in `site` is to be seen.
    start += "known = ('rlsys_torchvision_hook', '_frozen_importlib', '_frozen_importlib_external')\n"
    start += "kind = lambda finder: finder if isinstance(finder, type) else type(finder)\n"
    start += "sys.meta_path[:] = [finder for finder in sys.meta_path if kind(finder).__module__ in known]\n"
    environment = os.environ | {"PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", start + program], capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_declares_what_an_unloadable_library_leaves_undefined(site: Path) -> None:
    (site / "torchvision" / "_C.so").write_text("no library at all")
    assert run(site, "import torchvision; print(*torchvision.declared)") == "nms qnms"


def test_declares_where_there_is_no_library(site: Path) -> None:
    assert run(site, "import torchvision; print(*torchvision.declared)") == "nms qnms"


def test_leaves_a_sound_torchvision_alone(site: Path) -> None:
    loadable = importlib.util.find_spec("msgpack._cmsgpack").origin
    shutil.copyfile(loadable, site / "torchvision" / "_C.so")
    assert run(site, "import torchvision; print(len(torchvision.declared), torchvision.real_loader)") == (
        "0 SourceFileLoader"
    )


def test_costs_nothing_until_torchvision_is_imported(site: Path) -> None:
    program = (
        "import importlib.util\nprint(importlib.util.find_spec('torchvision') is not None, 'torch' in sys.modules)"
    )
    assert run(site, program) == "True False"


def test_leaves_the_import_error_of_a_missing_torch_as_it_is(site: Path) -> None:
    program = (
        "sys.modules['torch'] = None\n"
        "try:\n    import torchvision\nexcept ModuleNotFoundError as error:\n    print(error.name)"
    )
    assert run(site, program) == "torch"


def test_is_silent_where_there_is_no_torchvision(site: Path) -> None:
    shutil.rmtree(site / "torchvision")
    program = (
        "sys.path = [p for p in sys.path if 'site-packages' not in p]\n"
        "try:\n    import torchvision\nexcept ModuleNotFoundError as error:\n    print(error.name)"
    )
    assert run(site, program) == "torchvision"


def test_installs_once(site: Path) -> None:
    program = (
        "import rlsys_torchvision_hook as hook; hook.install(); hook.install()\n"
        "print(sum(isinstance(finder, hook.TorchvisionFinder) for finder in sys.meta_path))"
    )
    assert run(site, program) == "1"


def test_this_environment_imports_torchvision_and_its_transforms() -> None:
    program = (
        "import torch, torchvision.transforms.v2 as t\n"
        "print(t.Resize(4)(torch.zeros(3, 8, 8, dtype=torch.uint8)).shape)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "torch.Size([3, 4, 4])", done.stderr
