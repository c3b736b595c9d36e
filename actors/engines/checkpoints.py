"""Information that an engine needs about a checkpoint on disk."""

from __future__ import annotations

import json
from pathlib import Path

from rlsys.errors import EngineError

_WANTED = ["*.safetensors", "*.json", "*.txt", "*.jinja", "*.model"]
_ANOTHER_FORMAT = ["consolidated*", "original/*"]
"""Files with the same weights under names that transformers does not know."""
_COMPUTED = ("__metadata__", "rotary_emb.inv_freq")


def local_folder(model: str) -> Path:
    """The local folder of a model. A model that is given by its name on the hub is downloaded, or taken from the hub's cache.

    Raises:
        EngineError: neither a folder nor a model of this name exists.
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
    """The name and shape of every tensor that an update of the model must contain, from the headers of its safetensors files.

    An output head that is tied to the embeddings is not listed, because it may or may not be on disk. Rotary frequencies are
    not listed either: old checkpoints contain them, and transformers computes them.

    Raises:
        EngineError: the folder has no safetensors files.
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
    """The weight files of the model. The folder may also contain an adapter, or the same weights in another format."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    whole = folder / "model.safetensors"
    return [whole] if whole.exists() else sorted(folder.glob("*.safetensors"))


def _tied(config: dict) -> bool:
    text = config.get("text_config", {})
    return bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False)))
