"""Buckets: named tensors packed into flat buffers, so that one operation sends many tensors.

A manifest describes the tensors in all buckets of an update. Sender and receiver both derive the layout of the buffers from it:

    {"buckets": [{"names": ["a", "b"], "dtypes": ["float32", "bfloat16"], "shapes": [[2, 3], [4]]}, ...]}
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rlsys.common.lazy import torch
from rlsys.errors import SyncError

ALIGN = 16
"""Alignment in bytes: every tensor begins at a multiple of it, so that the buffer can be viewed as any dtype there."""

Named = tuple[str, "torch.Tensor"]
Described = tuple[str, "torch.dtype", Sequence[int]]
Bucket = dict[str, list[Any]]


def make_manifest(
    tensors: Iterable[tuple[str, torch.dtype, Sequence[int]]], bucket_bytes: int
) -> dict[str, list[Bucket]]:
    """Assign tensors to buckets, in their order.

    Args:
        tensors: name, dtype and shape of every tensor.
        bucket_bytes: largest size of a bucket; a larger tensor gets a bucket of its own.
    """
    buckets: list[Bucket] = []
    used = bucket_bytes
    for name, dtype, shape in tensors:
        size = _aligned(math.prod(shape) * dtype.itemsize)
        if not buckets or used + size > bucket_bytes:
            buckets.append({"names": [], "dtypes": [], "shapes": []})
            used = 0
        used += size
        buckets[-1]["names"].append(name)
        buckets[-1]["dtypes"].append(str(dtype).removeprefix("torch."))
        buckets[-1]["shapes"].append(list(shape))
    return {"buckets": buckets}


def describe(tensors: Iterable[Named]) -> Bucket:
    """The manifest's entry for a bucket."""
    listed = list(tensors)
    return {
        "names": [name for name, _ in listed],
        "dtypes": [str(tensor.dtype).removeprefix("torch.") for _, tensor in listed],
        "shapes": [list(tensor.shape) for _, tensor in listed],
    }


def flat_bytes(bucket: Bucket) -> int:
    """Size of a bucket's buffer in bytes, alignment included."""
    return sum(_aligned(size) for size in _sizes(bucket))


def payload_bytes(bucket: Bucket) -> int:
    """Size of a bucket's tensors in bytes, without alignment."""
    return sum(_sizes(bucket))


def pack(tensors: Sequence[Named], device: torch.device | str) -> torch.Tensor:
    """uint8 [flat_bytes]: copies of the tensors on `device`."""
    flat = torch.empty(flat_bytes(describe(tensors)), dtype=torch.uint8, device=device)
    return pack_into(flat, tensors)


def pack_into(flat: torch.Tensor, tensors: Sequence[Named]) -> torch.Tensor:
    """As `pack`, into the front of an existing buffer.

    Raises:
        SyncError: the buffer is too small.
    """
    bucket = describe(tensors)
    needed = flat_bytes(bucket)
    if needed > flat.numel():
        raise SyncError(
            f"a bucket of {needed} bytes does not fit a buffer of {flat.numel()}: {bucket['names'][:3]} ..."
        )
    padding = torch.zeros(ALIGN, dtype=torch.uint8, device=flat.device)
    pieces = []
    for (_, tensor), size in zip(tensors, _sizes(bucket), strict=True):
        pieces.append(tensor.detach().to(flat.device).reshape(-1).view(torch.uint8))
        pieces += [padding[: _aligned(size) - size]] if size % ALIGN else []
    return torch.cat(pieces, out=flat[:needed])


def unpack(flat: torch.Tensor, bucket: Bucket) -> list[Named]:
    """The tensors in a received buffer, as views of it.

    Raises:
        SyncError: the buffer's size is not the bucket's, or a dtype is unknown.
    """
    entries = zip(bucket["names"], bucket["dtypes"], bucket["shapes"], _pieces(flat, bucket), strict=True)
    return [(name, piece.view(_dtype(dtype)).view(shape)) for name, dtype, shape, piece in entries]


def described_bytes(flat: torch.Tensor, bucket: Bucket) -> Iterator[tuple[str, str, tuple[int, ...], memoryview]]:
    """Name, dtype, shape and bytes of every tensor in a buffer in host memory. The bytes are views of the buffer."""
    data, offset = memoryview(flat.numpy()), 0
    entries = zip(bucket["names"], bucket["dtypes"], bucket["shapes"], _sizes(bucket), strict=True)
    for name, dtype, shape, size in entries:
        yield name, dtype, tuple(shape), data[offset : offset + size]
        offset += _aligned(size)


def _pieces(flat: torch.Tensor, bucket: Bucket) -> list[torch.Tensor]:
    """One uint8 view per tensor. All views are made in one operation, because making a view costs as much as copying a small
    tensor."""
    sizes = _sizes(bucket)
    whole = [_aligned(size) for size in sizes]
    if flat.numel() != sum(whole):
        raise SyncError(f"a bucket of {sum(whole)} bytes arrived as {flat.numel()}: {bucket['names'][:3]} ...")
    found = flat.split(whole)
    return [piece if len(piece) == size else piece[:size] for piece, size in zip(found, sizes, strict=True)]


def _sizes(bucket: Bucket) -> list[int]:
    entries = zip(bucket["dtypes"], bucket["shapes"], strict=True)
    return [math.prod(shape) * _dtype(dtype).itemsize for dtype, shape in entries]


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise SyncError(f"the manifest names a dtype that torch does not have: {name!r}")
    return dtype


def _aligned(size: int) -> int:
    return -(-size // ALIGN) * ALIGN
