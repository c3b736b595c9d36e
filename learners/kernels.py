"""Faster replacements for modules of transformers, with the same results and the same parameters under the same names."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear


class _Normalize(torch.autograd.Function):
    """x / rms(x) * weight with a hand-written gradient, which makes a third of the passes over memory.

    The computation is in float32. The normalized x that is multiplied with `weight`, and its gradient, have the dtype of x.
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        full = hidden.float()
        scale = torch.linalg.vecdot(full, full).unsqueeze(-1).div_(hidden.shape[-1]).add_(epsilon).rsqrt_()
        normal = (full * scale).to(hidden.dtype)
        ctx.save_for_backward(normal, weight, scale)
        return normal * weight

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        normal, weight, scale = ctx.saved_tensors
        grad_weight = (grad * normal).flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        weighted, full = (grad * weight).float(), normal.float()
        along = torch.linalg.vecdot(weighted, full).unsqueeze(-1).div_(-full.shape[-1])
        return weighted.addcmul_(full, along).mul_(scale).to(normal.dtype), grad_weight, None


class RMSNorm(nn.Module):
    """Root mean square normalization (arXiv:1910.07467) in the form that Qwen and Llama use."""

    def __init__(self, stock: Any) -> None:
        super().__init__()
        self.weight = stock.weight
        self.variance_epsilon = stock.variance_epsilon

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Same shape as `hidden`."""
        return _Normalize.apply(hidden, self.weight, self.variance_epsilon)


class PatchProjection(nn.Conv3d):
    """A convolution over whole patches, computed as a matrix product."""

    @classmethod
    def take_over(cls, stock: nn.Conv3d) -> PatchProjection:
        """A projection with the parameters of `stock`, whose kernel size must equal its stride."""
        new = cls.__new__(cls)
        nn.Module.__init__(new)
        new.__dict__.update({name: value for name, value in vars(stock).items() if not name.startswith("_")})
        new.weight, new.bias = stock.weight, stock.bias
        return new

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Map patches [patches, C, T, H, W], each of the kernel's size, to [patches, D, 1, 1, 1]."""
        flat = linear(patches.flatten(1), self.weight.flatten(1), self.bias)
        return flat[..., None, None, None]


def speed_up(base: nn.Module) -> None:
    """Replace, in place, all modules of a model that are known to be replaceable."""
    for parent in list(base.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__.endswith(("Qwen2RMSNorm", "LlamaRMSNorm", "Qwen2_5_VLRMSNorm", "Qwen3RMSNorm")):
                setattr(parent, name, RMSNorm(child))
            elif type(child) is nn.Conv3d and type(parent).__name__.endswith("PatchEmbed") and _is_whole(child):
                setattr(parent, name, PatchProjection.take_over(child))


def _is_whole(convolution: nn.Conv3d) -> bool:
    return (
        convolution.stride == convolution.kernel_size
        and not any(convolution.padding)
        and set(convolution.dilation) == {1}
        and convolution.groups == 1
    )
