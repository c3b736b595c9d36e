"""Rotary positions of trees.

The prompt has the positions that the model itself computes. The positions of every response count on from the prompt's last.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import pad

from learners.micro_batch import MicroBatch
from learners.trees import Tree
from rlsys.common.lru import ByteCache

_KEPT_BYTES = 16 << 20
"""Memory for positions of prompts that are kept. Prompts with the same image tokens and image sizes share them."""


class Positions:
    """Positions of a micro-batch's row, [3, 1, N] for multimodal rotary embeddings, [1, N] otherwise."""

    def __init__(self, base: Any) -> None:
        self._rope_index = getattr(base.model, "get_rope_index", None)
        self._image_token = getattr(base.config, "image_token_id", None)
        self._kept: ByteCache[tuple, torch.Tensor] = ByteCache(_KEPT_BYTES)

    def __call__(self, batch: MicroBatch) -> torch.Tensor:
        """int64 [3, 1, N] or [1, N]."""
        grids = {image.digest: image.values.get("image_grid_thw") for image in batch.images}
        pieces = []
        for tree in batch.trees:
            prompt = self._prompt(tree, [grids[image.digest] for image in tree.images])
            pieces.append(prompt)
            first = int(prompt.max()) + 1
            for answer in tree.answers:
                pieces.append(torch.arange(first, first + len(answer.token_ids)).expand(len(prompt), -1))
        row = torch.cat(pieces, dim=1)
        row = pad(row, (0, len(batch.token_ids) - row.shape[1]))  # padding takes any position
        return row[:, None] if self._rope_index is not None else row

    def _prompt(self, tree: Tree, grids: list[torch.Tensor]) -> torch.Tensor:
        if self._rope_index is None or not grids:
            width = 1 if self._rope_index is None else 3
            return torch.arange(len(tree.prompt_ids)).expand(width, -1)
        ids = torch.from_numpy(tree.prompt_ids.astype("int64"))[None]
        is_image = ids == self._image_token
        key = (is_image.numpy().tobytes(), *(tuple(grid.flatten().tolist()) for grid in grids))
        found = self._kept.get(key)
        if found is None:
            found = self._rope_index(ids, is_image.int(), image_grid_thw=torch.cat(grids))[0][:, 0]
            self._kept.put(key, found, num_bytes=found.nbytes)
        return found
