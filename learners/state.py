"""A rank's part of the learner's state on disk, in safetensors.

It consists of the trained weights, AdamW's masters and moments, and the weight copies that are kept.
The tensors of a rank are written and read unchanged, so that training continues exactly and nothing has to be gathered. Tensors
that are the same on several ranks are written by one of them. When the state is read, the number of ranks, the ZeRO stage and
the trained parameters must be the same as when it was written.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from learners import weight_copies
from learners.deepspeed_backend import Engine
from rlsys.errors import CheckpointError

_WEIGHTS, _KEPT = "weights", "kept"
_OTHER_GROUPS = "learner.weight_decay makes other parameter groups when it is 0 and when it is not"


def _path(directory: Path, rank: int) -> Path:
    return directory / "optimizer" / f"rank_{rank}.safetensors"


def write(
    directory: Path,
    engine: Engine,
    *,
    layout: dict[str, str],
    rank: int,
    weights_rank: int,
    kept: dict[str, weight_copies.Weights],
) -> None:
    """Write this rank's part into `directory/optimizer/`.

    Args:
        layout: values that must be the same when the state is read, e.g. the number of ranks and the ZeRO stage.
        weights_rank: the rank that writes the weights that this rank holds.
        kept: weight copies, by any name without `/`.
    """
    tensors = {f"masters/{number}": master.data for number, master in _separate_masters(engine).items()}
    for number, state in enumerate(engine.moments()):
        tensors.update({f"moments/{number}/{name}": value for name, value in state.items()})
    if rank == weights_rank:
        tensors.update({f"{_WEIGHTS}/{name}": value for name, value in engine.local_weights().items()})
        for label, weights in kept.items():
            tensors.update({f"{_KEPT}/{label}/{name}": value for name, value in weights.items()})
    path = _path(directory, rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    held = {name: value.detach().to("cpu").contiguous() for name, value in tensors.items()}
    save_file(held, path, metadata=layout)


def read(
    directory: Path, engine: Engine, *, layout: dict[str, str], rank: int, weights_rank: int
) -> dict[str, weight_copies.Weights]:
    """Restore the state that `write` wrote.

    Returns:
        The weight copies that were written as `kept`.

    Raises:
        CheckpointError: there is no state for this rank, or it has another layout.
    """
    sections = _sections(_path(directory, rank), layout)
    if weights_rank != rank:
        sections |= _sections(_path(directory, weights_rank), layout, only=(_WEIGHTS, _KEPT))
    masters = {int(number): master for number, master in sections.get("masters", {}).items()}
    put(engine, sections[_WEIGHTS], masters)
    engine.set_moments(_moments(engine, sections.get("moments", {})))
    kept: dict[str, weight_copies.Weights] = {}
    for name, value in sections.get(_KEPT, {}).items():
        label, _, parameter = name.partition("/")
        kept.setdefault(label, {})[parameter] = value.to(engine.device)
    return kept


def _moments(engine: Engine, tensors: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """AdamW's state of each master from tensors named `<number of the master>/<name>`.

    Raises:
        CheckpointError: a tensor does not have the shape of its master.
    """
    shapes = [master.shape for master in engine.masters()]
    moments: list[dict[str, torch.Tensor]] = [{} for _ in shapes]
    for name, tensor in tensors.items():
        number, _, key = name.partition("/")
        own = shapes[int(number)] if int(number) < len(shapes) else None
        if own is None or (tensor.ndim and tensor.shape != own):  # the step count has no dimensions
            raise CheckpointError(f"moments/{name}: shape {tuple(tensor.shape)} on disk, {own} here; {_OTHER_GROUPS}")
        moments[int(number)][key] = tensor
    return moments


def _sections(path: Path, layout: dict[str, str], only: Sequence[str] = ()) -> dict[str, dict[str, torch.Tensor]]:
    """The tensors of a rank's file, grouped by the first part of their names.

    Args:
        only: the first parts to read; empty for all.
    """
    if not path.exists():
        raise CheckpointError(f"no learner state at {path}")
    sections: dict[str, dict[str, torch.Tensor]] = {}
    with safe_open(path, framework="pt") as file:
        found = file.metadata()
        if found != layout:
            raise CheckpointError(f"{path}: written with {found}, this learner has {layout}")
        for name in file.keys():  # noqa: SIM118, a safe_open is no mapping
            section, _, rest = name.partition("/")
            if not only or section in only:
                sections.setdefault(section, {})[rest] = file.get_tensor(name)
    return sections


@torch.no_grad()
def put(engine: Engine, weights: weight_copies.Weights, masters: dict[int, torch.Tensor]) -> None:
    """Copy values into this rank's weights and masters, in place.

    Args:
        masters: the masters that are not the weights themselves, by their number.

    Raises:
        CheckpointError: names, shapes or numbers of masters differ.
    """
    engine.release_gathered()
    own = engine.local_weights()
    if own.keys() != weights.keys():
        raise CheckpointError(f"other trained parameters: {sorted(own.keys() ^ weights.keys())[:3]}")
    for name, value in weights.items():
        if own[name].shape != value.shape:
            raise CheckpointError(f"{name}: shape {tuple(value.shape)} on disk, {tuple(own[name].shape)} here")
        own[name].copy_(value)
    own_masters = _separate_masters(engine)
    here, on_disk = ({n: tuple(m.shape) for n, m in sorted(found.items())} for found in (own_masters, masters))
    if here != on_disk:
        raise CheckpointError(f"masters of shapes {on_disk} on disk, {here} here; {_OTHER_GROUPS}")
    for number, value in masters.items():
        own_masters[number].data.copy_(value)


def _separate_masters(engine: Engine) -> dict[int, torch.Tensor]:
    """Masters by their number, without those that are the weights themselves."""
    weights = {value.data_ptr() for value in engine.local_weights().values()}
    return {number: master for number, master in enumerate(engine.masters()) if master.data_ptr() not in weights}
