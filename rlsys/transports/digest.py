"""A fingerprint of named tensors, the same on both ends of a weight update."""

from __future__ import annotations

import hashlib

import torch


class TensorDigest:
    """sha256 over names, dtypes, shapes and raw bytes, in the order of the updates.

    digest = TensorDigest()
    digest.update("lm_head.weight", tensor)
    digest.hexdigest()
    """

    def __init__(self) -> None:
        self._hasher = hashlib.sha256()

    def update(self, name: str, tensor: torch.Tensor) -> None:
        """Add a tensor. A contiguous tensor in host memory is read in place, others are copied there first."""
        dtype = str(tensor.dtype).removeprefix("torch.")
        self._hasher.update(f"{name}\0{dtype}\0{tuple(tensor.shape)}\0".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        self._hasher.update(memoryview(flat.numpy()))

    def hexdigest(self) -> str:
        """What has been added so far, 64 hex digits."""
        return self._hasher.hexdigest()
