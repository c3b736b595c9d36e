"""What an engine needs to know of a checkpoint on disk."""

from __future__ import annotations

import json
from pathlib import Path

from rlsys.errors import EngineError

_WANTED = ["*.safetensors", "*.json", "*.txt", "*.jinja", "*.model"]
_ANOTHER_FORMAT = ["consolidated*", "original/*"]
"""The same weights, under names that transformers does not know."""
_COMPUTED = ("__metadata__", "rotary_emb.inv_freq")


def local_folder(model: str) -> Path:
    """Folder of a model; one that is named by its place on the hub is downloaded, or found in the hub's cache.

    Raises:
        EngineError: there is no such folder and no such model.
    """
    folder = Path(model)
    if folder.is_dir():
        return folder
    if folder.is_absolute():
        raise EngineError(f"no model in {folder}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, allow_patterns=_WANTED, ignore_patterns=_ANOTHER_FORMAT))
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise EngineError(f"model {model!r} is neither a folder nor to be had from the hub: {error}") from error


def tensor_shapes(folder: Path) -> dict[str, list[int]]:
    """Name and shape of every tensor that an update of the model must bring, read from the headers of its safetensors.

    A head that is tied to the embeddings is not counted: it may or may not be on disk. Nor are rotary frequencies, which
    old checkpoints hold and transformers computes.

    Raises:
        EngineError: the folder has no safetensors.
    """
    shapes: dict[str, list[int]] = {}
    for path in _weight_files(folder):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        shapes |= {name: entry["shape"] for name, entry in header.items() if not name.endswith(_COMPUTED)}
    if not shapes:
        raise EngineError(f"no *.safetensors in {folder}")
    if _tied(json.loads((folder / "config.json").read_text())):
        shapes.pop("lm_head.weight", None)
    return shapes


def _weight_files(folder: Path) -> list[Path]:
    """Those of the model: beside them there may be an adapter, or the same weights in another format."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    whole = folder / "model.safetensors"
    return [whole] if whole.exists() else sorted(folder.glob("*.safetensors"))


def _tied(config: dict) -> bool:
    text = config.get("text_config", {})
    return bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False)))
