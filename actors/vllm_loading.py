"""New weights into a model that stands, in two ways.

`InPlace` writes them straight to where they are used. On a GPU that is all there is to do. On a CPU vLLM's linear layers
compute with a packed copy: such a layer has a weight of its own again while its parts come, and is packed as soon as it has
all of them. `Layerwise` is vLLM's own reload, for all models whose layers make something else of their weights (quantized
ones, experts, latent attention): it takes every weight through fresh memory, and counts what each call copies.

What only a CPU needs of vLLM's reload is imported where it is used: versions for GPUs may not have it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

AS_THEY_ARE = {"UnquantizedLinearMethod", "UnquantizedEmbeddingMethod"}
"""What vLLM's layers do with weights that stay as they are, but for the packed copy on a CPU."""
NO_WEIGHTS = {"Attention", "MMEncoderAttention"}
"""Layers that compute something after loading, but not from weights."""


def way_of_loading(model: torch.nn.Module, model_config: Any, *, ranks: int) -> InPlace | Layerwise:
    """The faster of the two that the model allows.

    Args:
        ranks: of the tensor-parallel group.
    """
    on_cpu = next(model.parameters()).device.type == "cpu"
    if _keeps_weights(model, model_config) and not (on_cpu and ranks > 1):
        return InPlace(model, packs=on_cpu)
    return Layerwise(model, model_config)


def _keeps_weights(model: torch.nn.Module, model_config: Any) -> bool:
    if model_config.quantization is not None:
        return False
    for module in model.modules():
        method = getattr(module, "quant_method", None)
        if isinstance(method, QuantizeMethodBase) and type(method).__name__ not in AS_THEY_ARE:
            return False
        if hasattr(module, "process_weights_after_loading") and type(module).__name__ not in NO_WEIGHTS:
            return False
    return True


class Layerwise:
    """vLLM's reload, layer by layer."""

    keeps = True
    """What is given to the model's `load_weights` is used after the call."""

    def __init__(self, model: torch.nn.Module, model_config: Any) -> None:
        self._model, self._config = model, model_config

    def begin(self) -> None:
        """All layers wait for weights."""
        self._tied = tuple(tied(self._model))
        initialize_layerwise_reload(self._model)

    def end(self) -> None:
        """Put in place what came."""
        finalize_layerwise_reload(self._model, self._config)
        for module, twin in self._tied:
            module.weight = twin.weight
            module.quant_method.process_weights_after_loading(module)  # on CPU: its packed copy


class InPlace:
    """What comes is written to where it is used."""

    keeps = False

    def __init__(self, model: torch.nn.Module, *, packs: bool) -> None:
        """
        Args:
            packs: whether the layers compute with packed copies of their weights.
        """
        twins = {id(module) for module, _ in tied(model)}
        packing = [module for module in model.modules() if _is_packed(module)] if packs else []
        self._layers = [_Packed(module) for module in packing if id(module) not in twins]
        self._twins = [module for module in packing if id(module) in twins]

    def begin(self) -> None:
        """All layers wait for weights."""
        for layer in self._layers:
            layer.begin()

    def end(self) -> None:
        """Pack what is not packed yet."""
        for layer in self._layers:
            layer.end()
        for module in self._twins:
            _pack(module)


class _Packed:
    """A layer with a packed copy of its weight, and usually without the weight."""

    def __init__(self, module: torch.nn.Module) -> None:
        self._module = module
        self._load: Any = None
        """vLLM's own loader of the weight."""
        self._missing = 0
        self._has_some = False

    def begin(self) -> None:
        """Wait for the weight's parts."""
        from vllm.model_executor.model_loader.reload.meta import restore_layer_on_meta

        if not self._module.weight.numel():
            restore_layer_on_meta(self._module, self._info())
        weight = self._module.weight
        self._missing, self._has_some = weight.numel(), False
        if self._load is None:
            self._load = weight.weight_loader
        weight.weight_loader = self._take

    def _take(self, param: torch.Tensor, loaded_weight: torch.Tensor, *which: Any, **named: Any) -> None:
        """A loader of weights in the manner of vLLM's.

        Args:
            param: as it was when the model began to load; the layer's has memory meanwhile.
            which: part of the weight.
        """
        from vllm.model_executor.model_loader.reload.meta import materialize_layer

        if self._module.weight.is_meta:
            materialize_layer(self._module, self._info())
        self._load(self._module.weight, loaded_weight, *which, **named)
        self._has_some = True
        self._missing -= loaded_weight.numel()
        if self._missing == 0:
            self._finish()

    def end(self) -> None:
        """Pack a weight that has all that there is of it: an embedding has more rows than there are tokens."""
        if self._missing > 0:
            self._finish()

    def _finish(self) -> None:
        self._missing = 0
        weight = self._module.weight
        weight.weight_loader = self._load
        if self._has_some:
            _pack(self._module)
        elif weight.is_meta:  # nothing came: the packed copy is the old one
            self._module.weight = torch.nn.Parameter(torch.empty(0, dtype=weight.dtype), requires_grad=False)

    def _info(self) -> Any:
        """What vLLM noted of the layer before it was packed for the first time."""
        from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

        return get_layerwise_info(self._module)


def _is_packed(module: torch.nn.Module) -> bool:
    return isinstance(getattr(module, "quant_method", None), QuantizeMethodBase)


def _pack(module: torch.nn.Module) -> None:
    module.quant_method.process_weights_after_loading(module)


def tied(model: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, torch.nn.Module]]:
    """Modules whose weight is that of a module before them, with that module: a head that is the embedding."""
    first: dict[int, torch.nn.Module] = {}
    for module in model.modules():
        weight = module._parameters.get("weight")
        if weight is not None and first.setdefault(id(weight), module) is not module:
            yield module, first[id(weight)]
