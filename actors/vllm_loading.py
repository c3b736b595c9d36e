"""Two ways to load new weights into an existing model.

`InPlace` writes the weights directly to the parameters. On a GPU nothing else is needed. On a CPU, vLLM's linear layers compute
with a packed copy of their weight: such a layer gets an unpacked weight again while the weight's shards arrive, and the weight
is packed as soon as it is complete. `Layerwise` is vLLM's own reload, for all models whose layers transform their weights
(quantized layers, experts, latent attention). It loads every weight into newly allocated memory, and counts the elements that
each call copies.

The functions of vLLM's reload that only a CPU needs are imported inside functions, because vLLM versions for GPUs may not have
them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

AS_THEY_ARE = {"UnquantizedLinearMethod", "UnquantizedEmbeddingMethod"}
"""vLLM's methods of layers whose weights stay as they are, except for the packed copy on a CPU."""
NO_WEIGHTS = {"Attention", "MMEncoderAttention"}
"""Layers with a processing step after loading that does not use weights."""


def way_of_loading(model: torch.nn.Module, model_config: Any, *, ranks: int) -> InPlace | Layerwise:
    """The faster way of loading that the model allows.

    Args:
        ranks: number of ranks of the tensor-parallel group.
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
    """vLLM's own reload, layer by layer."""

    keeps = True
    """Whether the tensors that are passed to the model's `load_weights` are still used after the call."""

    def __init__(self, model: torch.nn.Module, model_config: Any) -> None:
        self._model, self._config = model, model_config

    def begin(self) -> None:
        """Prepare all layers for new weights."""
        self._tied = tuple(tied(self._model))
        initialize_layerwise_reload(self._model)

    def end(self) -> None:
        """Put the received weights in place."""
        finalize_layerwise_reload(self._model, self._config)
        for module, twin in self._tied:
            module.weight = twin.weight
            module.quant_method.process_weights_after_loading(module)  # makes the packed copy on a CPU


class InPlace:
    """Loading that writes every weight directly to its parameter."""

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
        """Prepare all layers for new weights."""
        for layer in self._layers:
            layer.begin()

    def end(self) -> None:
        """Pack all weights that are not packed yet."""
        for layer in self._layers:
            layer.end()
        for module in self._twins:
            _pack(module)


class _Packed:
    """A layer that has a packed copy of its weight, and usually not the unpacked weight."""

    def __init__(self, module: torch.nn.Module) -> None:
        self._module = module
        self._load: Any = None
        """vLLM's own loader of the weight."""
        self._missing = 0
        """Number of elements of the weight that have not arrived yet."""
        self._has_some = False
        """Whether any element of the weight has arrived."""

    def begin(self) -> None:
        """Prepare the layer for the shards of its weight."""
        from vllm.model_executor.model_loader.reload.meta import restore_layer_on_meta

        if not self._module.weight.numel():
            restore_layer_on_meta(self._module, self._info())
        weight = self._module.weight
        self._missing, self._has_some = weight.numel(), False
        if self._load is None:
            self._load = weight.weight_loader
        weight.weight_loader = self._take

    def _take(self, param: torch.Tensor, loaded_weight: torch.Tensor, *which: Any, **named: Any) -> None:
        """Load a shard of the weight. The method has the interface of vLLM's weight loaders.

        Args:
            param: the parameter from the time when the model began to load. It is not used, because the layer's parameter has
                been replaced by one with memory.
            which: identifies the shard of the weight.
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
        """Pack the weight if it is not packed yet. This is the case for an embedding, which has more rows than the checkpoint
        has tokens, so that some elements never arrive."""
        if self._missing > 0:
            self._finish()

    def _finish(self) -> None:
        self._missing = 0
        weight = self._module.weight
        weight.weight_loader = self._load
        if self._has_some:
            _pack(self._module)
        elif weight.is_meta:  # nothing arrived, so the old packed copy stays in use
            self._module.weight = torch.nn.Parameter(torch.empty(0, dtype=weight.dtype), requires_grad=False)

    def _info(self) -> Any:
        """vLLM's information about the layer before it was packed for the first time."""
        from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

        return get_layerwise_info(self._module)


def _is_packed(module: torch.nn.Module) -> bool:
    return isinstance(getattr(module, "quant_method", None), QuantizeMethodBase)


def _pack(module: torch.nn.Module) -> None:
    module.quant_method.process_weights_after_loading(module)


def tied(model: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, torch.nn.Module]]:
    """Pairs of a module and the earlier module whose weight it shares, such as an output head that is tied to the embedding."""
    first: dict[int, torch.nn.Module] = {}
    for module in model.modules():
        weight = module._parameters.get("weight")
        if weight is not None and first.setdefault(id(weight), module) is not module:
            yield module, first[id(weight)]
