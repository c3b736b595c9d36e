"""Who may import whom: rlsys.app -> actors, learners -> rlsys; and the core loads without the heavy libraries."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = ("rlsys", "actors", "learners", "configs", "benchmarks")

MAY_IMPORT = {
    "rlsys": {"rlsys"},
    "actors": {"actors", "rlsys"},
    "learners": {"learners", "rlsys"},
    "configs": {"configs", "actors", "learners", "rlsys"},
    "rlsys.app": {"rlsys.app", "rlsys", "actors", "learners", "configs"},
    "benchmarks": {"benchmarks", "rlsys.app", "rlsys", "actors", "learners", "configs"},
}
"""Layer -> layers it may import, at module level and inside functions."""

HEAVY = {"ray", "vllm", "deepspeed", "transformers"}
"""Never imported when a module of the core is."""


def layer(module: str) -> str:
    """The layer a module belongs to; `python -m rlsys` is a command line too."""
    if module in ("rlsys.app", "rlsys.__main__") or module.startswith("rlsys.app."):
        return "rlsys.app"
    return module.split(".")[0]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources() -> list[Path]:
    return [path for package in OURS for path in sorted((ROOT / package).rglob("*.py"))]


def imported(node: ast.AST, package: str) -> Iterator[str]:
    """Full names of the modules that one import statement may load."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*above, base] if base else above)
        # `from rlsys import app` names a package without saying so in its first half.
        yield base
        yield from (f"{base}.{alias.name}" for alias in node.names)


def at_module_level(tree: ast.AST) -> Iterator[ast.AST]:
    """The statements that run when a module is imported; not those of functions, nor those for type checkers."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from at_module_level(node)


def direction_errors(source: str, module: str, package: str) -> list[str]:
    """Imports of `source` that the table does not allow."""
    allowed = MAY_IMPORT[layer(module)]
    names = [name for node in ast.walk(ast.parse(source)) for name in imported(node, package)]
    wrong = {name for name in names if name.split(".")[0] in OURS and layer(name) not in allowed}
    return [f"{module} imports {name}" for name in sorted(wrong)]


def heavy_errors(source: str, module: str, package: str) -> list[str]:
    """Heavy libraries that importing a core module with this source would load."""
    names = [name for node in at_module_level(ast.parse(source)) for name in imported(node, package)]
    return [f"{module} imports {name}" for name in sorted({name.split(".")[0] for name in names} & HEAVY)]


def package_of(path: Path) -> str:
    name = module_name(path)
    return name if path.name == "__init__.py" else name.rpartition(".")[0]


def core_sources() -> list[Path]:
    return [path for path in sources() if layer(module_name(path)) == "rlsys"]


def test_imports_point_downward() -> None:
    errors = [
        error for path in sources() for error in direction_errors(path.read_text(), module_name(path), package_of(path))
    ]
    assert errors == []


def test_core_names_no_heavy_library_at_module_level() -> None:
    errors = [
        error
        for path in core_sources()
        for error in heavy_errors(path.read_text(), module_name(path), package_of(path))
    ]
    assert errors == []


def test_core_loads_no_heavy_library() -> None:
    names = [module_name(path) for path in core_sources()]
    program = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        f"print(*sorted({HEAVY!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        (
            "actors.rollout",
            "from learners.group import Group",
            ["actors.rollout imports learners.group", "actors.rollout imports learners.group.Group"],
        ),
        ("learners.learner", "def f():\n    import actors.pool", ["learners.learner imports actors.pool"]),
        ("rlsys.rounds", "from rlsys import app", ["rlsys.rounds imports rlsys.app"]),
        (
            "rlsys.rounds",
            "from .app import cli",
            ["rlsys.rounds imports rlsys.app", "rlsys.rounds imports rlsys.app.cli"],
        ),
        ("rlsys.app.align", "import actors, learners, rlsys.rounds", []),
        ("actors.pool", "import ray, application", []),
    ],
)
def test_direction_is_checked(module: str, source: str, expected: list[str]) -> None:
    found = direction_errors(source, module, module.rpartition(".")[0])
    assert found == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import torch, ray", ["rlsys.x imports ray"]),
        ("try:\n    from vllm import LLM\nexcept ImportError:\n    LLM = None", ["rlsys.x imports vllm"]),
        ("class A:\n    import deepspeed", ["rlsys.x imports deepspeed"]),
        ("def f():\n    import transformers", []),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import ray", []),
    ],
)
def test_heavy_imports_are_checked(source: str, expected: list[str]) -> None:
    assert heavy_errors(source, "rlsys.x", "rlsys") == expected
