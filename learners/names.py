"""Gives weights the names that they have in the checkpoint on disk, which differ from those in the module.

transformers 5 renames parameters when it loads and when it saves, and engines expect the names of the checkpoint. An engine
silently ignores a weight under a wrong name. Therefore the reverse of transformers' own renaming is used, one tensor at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from learners.policy import base_model
from rlsys.errors import ConfigError

_BASE_LAYER = ".base_layer"


class LoraParts:
    """The LoRA factors that are merged into a weight."""

    def __init__(self, layer: Any) -> None:
        if any(getattr(layer, "use_dora", {}).values()) or getattr(layer, "fan_in_fan_out", False):
            raise ConfigError(f"LoRA on {type(layer).__name__}: DoRA and transposed weights cannot be merged here")
        (adapter,) = layer.lora_A
        self._a, self._b = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
        self._scaling = layer.scaling[adapter]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters that must be gathered before `merge`."""
        return [self._a, self._b]

    def merge(self, weight: torch.Tensor) -> torch.Tensor:
        """A new tensor weight + scaling * B A, computed in float32 and returned in the weight's dtype."""
        delta = self._b.float() @ self._a.float()
        return (weight.float() + self._scaling * delta).to(weight.dtype)


class Source:
    """A tensor of the checkpoint: its name and tensor in the module, and its LoRA factors if it has any."""

    def __init__(self, name: str, tensor: torch.Tensor, lora: LoraParts | None) -> None:
        self.name, self.tensor, self.lora = name, tensor, lora

    @property
    def shape(self) -> torch.Size:
        """The shape of the whole weight, even while it is partitioned."""
        return getattr(self.tensor, "ds_shape", self.tensor.shape)

    @property
    def parts(self) -> list[nn.Parameter]:
        """The parameters that must be gathered before `value`."""
        own = [self.tensor] if isinstance(self.tensor, nn.Parameter) else []
        return [*own, *(self.lora.parameters if self.lora else [])]

    def value(self) -> torch.Tensor:
        """The tensor, with LoRA merged."""
        tensor = self.tensor.detach()
        return tensor if self.lora is None else self.lora.merge(tensor)


class CheckpointNames:
    """Translates the tensors of a transformers model into those of its checkpoint, in a fixed order."""

    def __init__(self, model: nn.Module) -> None:
        """
        Raises:
            ConfigError: a tensor on disk is made of several tensors in the module, or the other way round.
        """
        self._base = base_model(model)
        self.sources = list(_sources(self._base))
        self._same_layout: dict[str, str] = {}
        """The names on disk of the tensors that have the same layout there, by their names in the module."""
        self._check()
        self._manifest = [
            (name, tensor.dtype, tuple(tensor.shape)) for name, tensor in map(self._described, self.sources)
        ]

    def rename(self, source: Source, value: torch.Tensor) -> tuple[str, torch.Tensor]:
        """The name of a tensor on disk, and its value in the layout that it has on disk."""
        if source.name in self._same_layout:
            return self._same_layout[source.name], value
        from transformers.core_model_loading import revert_weight_conversion

        ((name, tensor),) = revert_weight_conversion(self._base, {source.name: value}).items()
        if tensor is value:
            self._same_layout[source.name] = name
        return name, tensor

    def manifest(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
        """Name, dtype and shape of every tensor, without reading any."""
        return list(self._manifest)

    def _described(self, source: Source) -> tuple[str, torch.Tensor]:
        return self.rename(source, torch.empty(source.shape, dtype=source.tensor.dtype, device="meta"))

    def _check(self) -> None:
        from transformers.core_model_loading import revert_weight_conversion

        whole = {
            source.name: torch.empty(source.shape, dtype=source.tensor.dtype, device="meta") for source in self.sources
        }
        expected = {name: tuple(value.shape) for name, value in revert_weight_conversion(self._base, whole).items()}
        found = {name: tuple(tensor.shape) for name, tensor in map(self._described, self.sources)}
        if found != expected:
            differing = sorted(set(found.items()) ^ set(expected.items()))[:3]
            raise ConfigError(f"{type(self._base).__name__}: its checkpoint merges or splits tensors: {differing}")


def _sources(base: Any) -> Iterator[Source]:
    tied = set(getattr(base, "all_tied_weights_keys", None) or {})
    ignored = set(base._keys_to_ignore_on_save or [])
    layers = {name: module for name, module in base.named_modules() if hasattr(module, "lora_A")}
    tensors = {**dict(base.named_parameters(remove_duplicate=False)), **_saved_buffers(base)}
    for name, tensor in tensors.items():
        plain = name.replace(_BASE_LAYER, "")
        if ".lora_" in name or plain in tied or plain in ignored:
            continue
        owner = name.rpartition(".")[0].removesuffix(_BASE_LAYER)
        is_adapted = _BASE_LAYER in name and name.endswith(".weight")
        yield Source(plain, tensor, LoraParts(layers[owner]) if is_adapted else None)


def _saved_buffers(base: Any) -> dict[str, torch.Tensor]:
    saved = base.state_dict(keep_vars=True)
    return {name: buffer for name, buffer in base.named_buffers() if name in saved}
