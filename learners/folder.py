"""Writes a checkpoint as a Hugging Face folder: the weights in several safetensors files, and copies of the other files of the
folder that training started from.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".index.json", ".pt", ".pth", ".gguf")
SHARD_BYTES = 4 << 30


def write_weights(
    tensors: Iterable[tuple[str, torch.Tensor]], directory: Path, *, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write tensors as they come; only the tensors of one file are in memory at a time.

    Args:
        tensors: names and values.
        shard_bytes: largest size of a file; a single tensor may be larger.
    """
    pieces: list[list[str]] = []
    waiting: dict[str, torch.Tensor] = {}
    total = size = 0

    def flush() -> None:
        pieces.append(list(waiting))
        save_file(waiting, directory / f"piece-{len(pieces)}.safetensors", metadata={"format": "pt"})
        waiting.clear()

    for name, tensor in tensors:
        num_bytes = tensor.numel() * tensor.element_size()
        if waiting and size + num_bytes > shard_bytes:
            flush()
            size = 0
        waiting[name] = tensor.detach().to("cpu", copy=True).contiguous()
        size += num_bytes
        total += num_bytes
    flush()
    _name_pieces(pieces, directory, total)


def _name_pieces(pieces: list[list[str]], directory: Path, total: int) -> None:
    if len(pieces) == 1:
        (directory / "piece-1.safetensors").rename(directory / "model.safetensors")
        return
    places: dict[str, str] = {}
    for number, names in enumerate(pieces, start=1):
        final = f"model-{number:05d}-of-{len(pieces):05d}.safetensors"
        (directory / f"piece-{number}.safetensors").rename(directory / final)
        places.update(dict.fromkeys(names, final))
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def copy_surroundings(source: Path, directory: Path, dtype: torch.dtype) -> None:
    """Copy configuration, tokenizer and processor files, and set the configuration's dtype to that of the written weights."""
    for path in source.iterdir():
        if path.is_file() and not path.name.endswith(_WEIGHT_SUFFIXES):
            shutil.copyfile(path, directory / path.name)
    path = directory / "config.json"
    config = json.loads(path.read_text())
    _set_dtype(config, str(dtype).removeprefix("torch."))
    path.write_text(json.dumps(config, indent=2) + "\n")


def _set_dtype(config: dict[str, Any], dtype: str) -> None:
    for key, value in config.items():
        if key in ("dtype", "torch_dtype"):
            config[key] = dtype
        elif isinstance(value, dict):
            _set_dtype(value, dtype)
