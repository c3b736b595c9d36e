"""Plug-ins by name. A plug-in is a dataclass: its fields are its options, its methods the behaviour.

    @objective("ipo")
    @dataclass(kw_only=True)
    class IPO:
        beta: float = 0.1

puts the class into Hydra's group `objective`; `objective=ipo objective.beta=0.3` then composes a live object. A plug-in
outside this repository is found when its module is named in `RLSYS_PLUGINS` (comma-separated) and can be imported.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, TypeVar

from rlsys.errors import ConfigError

T = TypeVar("T", bound=type)


class Registry(dict[str, type]):
    """The plug-ins of one kind: name -> dataclass."""

    def __init__(self, group: str) -> None:
        super().__init__()
        self.group = group

    def __call__(self, name: str) -> Callable[[T], T]:
        """Decorator that registers a dataclass under `name`.

        Raises:
            ConfigError: the name is taken by another class.
        """

        def add(cls: T) -> T:
            known = self.get(name)
            if known is not None and known.__qualname__ != cls.__qualname__:
                raise ConfigError(f"{self.group} {name!r} is already {known.__module__}.{known.__qualname__}")
            self[name] = cls
            # Hydra is imported here so that a plug-in's file stays as light as its own imports where no config is composed.
            from hydra.core.config_store import ConfigStore

            ConfigStore.instance().store(group=self.group, name=name, node=cls)
            return cls

        return add

    def make(self, name: str, **options: Any) -> Any:
        """A plug-in by name.

        Raises:
            ConfigError: no such name (the message lists those there are), or an option it does not have.
        """
        kind = self._class(name)
        try:
            return kind(**options)
        except TypeError as error:
            raise ConfigError(f"{self.group} {name!r}: {error}") from error

    def name_of(self, plugin: Any) -> str:
        """The name that a plug-in of this group is registered under; its class's own name if it is not registered."""
        return next((name for name, cls in self.items() if cls is type(plugin)), type(plugin).__name__)

    def configured(self, plugin: Any, options: Mapping[str, Any]) -> Any:
        """A plug-in with some of its options set to other values.

        Args:
            options: by field name; the key `name` stands for another plug-in of the group, with its own defaults.

        Raises:
            ConfigError: no such plug-in or option, or a value that the plug-in refuses.
        """
        changes = dict(options)
        if "name" in changes:
            plugin = self._class(changes.pop("name"))
        elif not changes:
            return plugin
        kind = plugin if isinstance(plugin, type) else type(plugin)
        known = [field.name for field in fields(kind)]
        for option in changes:
            if option not in known:
                raise ConfigError(
                    f"{self.group} {kind.__name__} has no option {option!r}; there are: {', '.join(known)}"
                )
        # OmegaConf checks and converts each value by the field's type, as it does for values of the command line.
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException

        try:
            return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(plugin), changes))
        except OmegaConfBaseException as error:
            raise ConfigError(
                f"{self.group} {kind.__name__}, option {error.full_key}: {str(error).splitlines()[0]}"
            ) from error

    def _class(self, name: str) -> type:
        if name not in self:
            discover()  # a process that composes no configuration has imported only the plug-ins that it was handed
        if name not in self:
            raise ConfigError(f"no {self.group} named {name!r}; there are: {', '.join(sorted(self))}")
        return self[name]


prompts = Registry("prompts")
feedback = Registry("feedback")
conversation = Registry("conversation")
examples = Registry("examples")
objective = Registry("objective")
replay = Registry("replay")
transport = Registry("transport")
evaluation = Registry("evaluation")
data = Registry("data")
stage = Registry("stage")

PLUGINS = "RLSYS_PLUGINS"
"""Environment variable with the modules of plug-ins outside this repository, comma-separated."""
BUILT_IN = (
    "rlsys.prompts",
    "rlsys.feedback",
    "rlsys.conversations",
    "rlsys.examples",
    "rlsys.objectives",
    "rlsys.replay",
    "rlsys.transports",
    "rlsys.evaluations",
    "rlsys.data",
    "rlsys.stages",
)


def discover() -> None:
    """Import every built-in plug-in, and those named in `RLSYS_PLUGINS`.

    Raises:
        ConfigError: one of these cannot be imported.
    """
    for package_name in BUILT_IN:
        package = importlib.import_module(package_name)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package_name}.{module.name}")
    discover_outside()


def discover_outside() -> None:
    """Import the modules that `RLSYS_PLUGINS` names.

    Raises:
        ConfigError: one of these cannot be imported.
    """
    for name in filter(None, os.environ.get(PLUGINS, "").split(",")):
        try:
            importlib.import_module(name.strip())
        except ImportError as error:
            raise ConfigError(f"{PLUGINS}: {name.strip()!r} cannot be imported: {error}") from error


def passed_on() -> dict[str, str]:
    """What another process needs in its environment to discover the same: the nodes of a cluster that was joined have one of
    their own.
    """
    return {PLUGINS: os.environ[PLUGINS]} if PLUGINS in os.environ else {}
