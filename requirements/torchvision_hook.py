"""Lets torchvision be imported where its compiled operators cannot be loaded. Standard library only; torch when needed.

torchvision registers fake kernels for two operators, `nms` and `qnms`, whether or not the library that defines them
could be loaded. Where it could not, as with a CUDA build of torchvision on a CPU build of torch, `import torchvision`
ends with "operator torchvision::nms does not exist". Its image transforms, which is all that vision-language models
use, need no compiled operator.

This module waits for the name `torchvision` on `sys.meta_path`. On its first import it tries to load the compiled
library and, only if that fails, declares the two operators. A sound torchvision is left as it is, a process that never
imports torchvision pays nothing, and every process of the environment is served, also those other libraries start.

    python requirements/torchvision_hook.py

installs the hook into the environment of the interpreter that runs it: a copy of this file, and a `.pth` file that
calls `install` at interpreter start.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
import sysconfig
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec
from pathlib import Path
from types import ModuleType

PACKAGE = "torchvision"
SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
DECLARED_WITHOUT_LIBRARY = ("nms", "qnms")
INSTALLED_NAME = "rlsys_torchvision_hook"


def operators_load(package: Path) -> bool:
    """Whether the compiled library `_C` of the torchvision in directory `package` can be loaded into this torch."""
    import torch

    for suffix in EXTENSION_SUFFIXES:
        library = package / f"_C{suffix}"
        if library.exists():
            try:
                torch.ops.load_library(library)
            except OSError:
                return False
            return True
    return False


def declare_operators(package: Path) -> list[str]:
    """Declare the operators that `package` expects and cannot define itself.

    Returns:
        the names declared; empty where torchvision is sound, or where there is no torch to declare them in.
    """
    if importlib.util.find_spec("torch") is None or operators_load(package):
        return []
    import torch

    missing = [name for name in DECLARED_WITHOUT_LIBRARY if not hasattr(getattr(torch.ops, PACKAGE), name)]
    for name in missing:
        torch.library.define(f"{PACKAGE}::{name}", SCHEMA)
    return missing


class DeclaringLoader(Loader):
    """The real loader of torchvision, with one step before it."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # Whoever asks the module for its loader (resources, source lines) must meet the real one.
        module.__spec__.loader = module.__loader__ = self.loader
        declare_operators(Path(module.__spec__.origin).parent)
        self.loader.exec_module(module)

    def __getattr__(self, name: str) -> object:
        return getattr(self.loader, name)


class TorchvisionFinder(MetaPathFinder):
    """Finds torchvision as the other finders do, and puts `DeclaringLoader` around its loader."""

    def __init__(self) -> None:
        self.is_searching = False

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if fullname != PACKAGE or self.is_searching:
            return None
        self.is_searching = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self.is_searching = False
        if spec is not None and spec.loader is not None and spec.origin is not None:
            spec.loader = DeclaringLoader(spec.loader)
        return spec


def install() -> None:
    """Put the finder first on `sys.meta_path`, once."""
    if not any(isinstance(finder, TorchvisionFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, TorchvisionFinder())


def install_in_environment(site_packages: Path) -> None:
    """Copy this file to `site_packages` and have every interpreter of that environment call `install` at its start."""
    shutil.copyfile(__file__, site_packages / f"{INSTALLED_NAME}.py")
    (site_packages / f"{INSTALLED_NAME}.pth").write_text(f"import {INSTALLED_NAME}; {INSTALLED_NAME}.install()\n")


if __name__ == "__main__":
    install_in_environment(Path(sysconfig.get_path("purelib")))
