"""Hash of the code that determines the weights of a model: the part of a cached model's key that stands for programs.

A plug-in's module counts as a whole. Of the modules that it imports, only the definitions that it uses count. The code that
every training or every engine shares counts by the lists of modules in this file. Comments, docstrings and layout never count,
nor does any other code: another objective, a report or the transport of weights may change without any model being made again.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

LEARNING = (
    *(
        f"learners.{name}"
        for name in (
            *(
                "answers",
                "attention",
                "collate",
                "deepspeed_backend",
                "dot_products",
                "examples.kinds",
                "flash",
                "folder",
            ),
            *("group", "kernels", "layers", "learner", "logprobs", "loss", "micro_batch", "model", "names", "padding"),
            *("plan", "policy"),
            *("positions", "reference", "shards", "tokens", "trees", "vision", "weight_copies", "weights_source"),
        )
    ),
    "rlsys.chat",
    "rlsys.seeding",
    "rlsys.app.supervised",
)
"""Modules that hold the arithmetic of a training: from examples to batches, through the model, to the weights on disk."""
NOT_LEARNING = (
    *("allocator", "config", "memory", "metrics", "reference_check", "rendezvous", "sample", "state", "weight_sender"),
    *("__init__", "examples.__init__", "examples.probes"),
)
"""Modules of `learners` that change no weight. Options (`config`) count through their values."""
OF_A_KIND = ("examples.critiques", "examples.demonstrations", "examples.pairs", "examples.rated", "examples.responses")
"""Modules of `learners` that decide how one kind of example is trained on. A training counts only the module of its own kind.
"""
RESPONDING = ("actors.rollout", "rlsys.conversations.single_turn", "rlsys.seeding", "rlsys.app.supervised")
"""Modules that decide how an engine is asked for the responses that some examples are made of. The engine counts separately, as
a plug-in.
"""
PLUMBING = (
    *("rlsys.app", "rlsys.common", "rlsys.contracts", "rlsys.errors", "rlsys.placement", "rlsys.records"),
    *("rlsys.registry", "rlsys.report", "rlsys.transports", "rlsys.wire", "rlsys.data.base", "rlsys.stages.base"),
)
"""Modules and packages that plug-ins import but that decide no weights: they carry values and report errors."""

Find = Callable[[str], Path | None]
"""A function that returns the Python file of a module or package; `None` if there is no such module, or it is not written in
Python.
"""


def installed(module: str) -> Path | None:
    """The file that an import would read. Only the outermost package of the module is imported."""
    outermost, *inner = module.split(".")
    spec = find_spec(outermost)
    if spec is None:
        return None
    if not spec.submodule_search_locations:
        return None if inner or not spec.origin else Path(spec.origin)
    return next(filter(None, (below(Path(root), inner) for root in spec.submodule_search_locations)), None)


def below(folder: Path, names: Sequence[str]) -> Path | None:
    """The file of a module, given the folder of a package and the names that follow the package's name."""
    place = folder.joinpath(*names)
    found = (place / "__init__.py", place.with_name(f"{place.name}.py"))
    return next((path for path in found if path.is_file()), None)


def code_hash(plugins: Iterable[str], listed: Iterable[str] = (), *, find: Find = installed) -> str:
    """The sha256 of code in the form that `essence` gives it.

    Args:
        plugins: modules that count as a whole, with what they use of other modules.
        listed: modules that count alone.
        find: locates the file of a module.

    Raises:
        ValueError: there is no such module.
    """
    used = Used(find)
    for module in plugins:
        used.add(module)
    found = dict(used.found)
    for module in listed:
        found[module, ""] = essence(_parse(module, find))
    hasher = hashlib.sha256()
    for (module, name), text in sorted(found.items()):
        hasher.update(f"{module}\0{name}\0{text}\0".encode())
    return hasher.hexdigest()


def essence(tree: ast.AST) -> str:
    """Code without comments, layout, and standalone strings (docstrings). The strings are removed from the given tree."""
    for node in ast.walk(tree):
        for name in ("body", "orelse", "finalbody"):
            statements = getattr(node, name, None)
            if isinstance(statements, list):
                setattr(node, name, [each for each in statements if not _is_text(each)])
    return ast.unparse(tree)


class Used:
    """The definitions that plug-ins use, in their own modules and in the modules that they import from their own package or
    from `rlsys`. Modules of `PLUMBING` are left out.

    used = Used(installed)
    used.add("rlsys.objectives.dpo")
    used.found[("rlsys.objectives.inputs", "token_mean")]    # its code
    """

    def __init__(self, find: Find) -> None:
        self._find = find
        self._sources: dict[str, Source | None] = {}
        self._packages = {"rlsys"}
        self.found: dict[tuple[str, str], str] = {}

    def add(self, module: str) -> None:
        """Add a plug-in's module as a whole, and everything that it uses.

        Raises:
            ValueError: there is no such module.
        """
        self._packages.add(module.split(".")[0])
        if self._source(module) is None:
            raise ValueError(f"there is no module {module!r}, whose code decides a model's weights")
        self._take([(module, "")])

    def _take(self, wanted: list[tuple[str, str]]) -> None:
        """Add definitions, given by module and name, and everything that they use; an empty name adds the whole module."""
        while wanted:
            module, name = wanted.pop()
            source = self._source(module)
            if source is None or (module, name) in self.found:
                continue
            if (
                name and self._source(f"{module}.{name}") is not None
            ):  # the name is a submodule imported from its package
                wanted.append((f"{module}.{name}", ""))
                continue
            if name in source.imports:  # the module re-exports a name that it imports
                wanted.append(source.imports[name])
                continue
            nodes = source.named(name)
            if not nodes:
                continue
            self.found[module, name] = "\n".join(essence(node) for node in nodes)
            wanted += [each for node in nodes for each in source.uses(node)]
            if name:
                wanted += [(module, each) for each in source.always]

    def _source(self, module: str) -> Source | None:
        """The parsed module; `None` if it does not count, or is not written in Python."""
        if module.split(".")[0] not in self._packages or _is_plumbing(module):
            return None
        if module not in self._sources:
            path = self._find(module)
            package = module if path and path.name == "__init__.py" else module.rpartition(".")[0]
            self._sources[module] = Source(_tree(path.read_text()), module, package) if path else None
        return self._sources[module]


class Source:
    """The definitions, imports and other statements of a module."""

    def __init__(self, tree: ast.Module, module: str, package: str) -> None:
        self._module, self._package = module, package
        self.imports: dict[str, tuple[str, str]] = {}
        """Local name -> module and name there; the name is empty for a whole module."""
        self._definitions: dict[str, list[ast.stmt]] = {}
        self.always: list[str] = []
        """Keys of the statements that define nothing; they run whenever the module is imported."""
        for node in tree.body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                self.imports |= _imported(node, package)
            elif not _is_text(node) and not _is_for_type_checkers(node):
                self._add(node)

    def named(self, name: str) -> list[ast.stmt]:
        """The statements that define a name; all statements if the name is empty."""
        if name:
            return self._definitions.get(name, [])
        return list({id(node): node for nodes in self._definitions.values() for node in nodes}.values())

    def uses(self, node: ast.AST) -> Iterator[tuple[str, str]]:
        """Module and name of every definition that a statement uses, in this module and in others."""
        for each in ast.walk(node):
            if isinstance(each, ast.Name) and each.id in self.imports:
                yield self.imports[each.id]
            elif isinstance(each, ast.Name) and each.id in self._definitions:
                yield self._module, each.id
            elif isinstance(each, ast.Import | ast.ImportFrom):
                yield from _imported(each, self._package).values()

    def _add(self, node: ast.stmt) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names = [node.name]
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)]
        else:
            names = [f"statement {len(self.always)}"]
            self.always += names
        for name in names:
            self._definitions.setdefault(name, []).append(node)


def _imported(node: ast.Import | ast.ImportFrom, package: str) -> dict[str, tuple[str, str]]:
    """The bindings that an import statement makes: local name -> module and name there."""
    if isinstance(node, ast.Import):  # `import a.b` binds `a`, and a use of `a` may refer to anything in `a.b`
        return {(alias.asname or alias.name.split(".")[0]): (alias.name, "") for alias in node.names}
    above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
    base = ".".join([*above, *([node.module] if node.module else [])])
    return {(alias.asname or alias.name): (base, "" if alias.name == "*" else alias.name) for alias in node.names}


def _parse(module: str, find: Find) -> ast.Module:
    path = find(module)
    if path is None:
        raise ValueError(f"there is no module {module!r}, whose code decides a model's weights")
    return _tree(path.read_text())


@functools.lru_cache(512)
def _tree(source: str) -> ast.Module:
    """The parsed tree of a source. Trees are cached, because stages share most modules. `essence` removes docstrings from the
    cached trees; nothing in this module reads those.
    """
    return ast.parse(source)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _is_for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def _is_plumbing(module: str) -> bool:
    return any(module == each or module.startswith(f"{each}.") for each in PLUMBING)
