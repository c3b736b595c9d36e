"""Image features: they are computed once per distinct image of a micro-batch, and replace the row's image placeholders."""

from __future__ import annotations

from typing import Any

import torch
from transformers import vision_utils

from learners.micro_batch import MicroBatch
from learners.tokens import ImageTensors, RefusedRecord
from rlsys.common.lru import ByteCache

_MIB = 1 << 20
_KEPT_PLACES = 64
"""Number of combinations of image sizes for which the positions and windows of patches are kept."""


class VisionFeatures:
    """The vision tower of a Qwen2-VL or Qwen2.5-VL model. Features of a frozen tower are kept between steps."""

    def __init__(self, base: Any, cache_mib: int) -> None:
        self._model = base.model
        # Determined once, because PEFT switches `requires_grad` while an adapter is off.
        self._is_frozen = not any(parameter.requires_grad for parameter in base.model.visual.parameters())
        self._image_token = base.config.image_token_id
        self._merge = base.model.visual.spatial_merge_size**2
        self._cache: ByteCache[str, torch.Tensor] = ByteCache(cache_mib * _MIB)
        self._kept_places: dict[tuple, dict[str, torch.Tensor]] = {}

    def place(self, embeddings_ND: torch.Tensor, batch: MicroBatch, dummy_image: MicroBatch | None) -> torch.Tensor:
        """The embeddings, with image features at the positions of the image tokens.

        Args:
            dummy_image: a dummy image that goes through the tower, without effect on the result, if the batch has no images.
                If it is given, the tower runs in every call and kept features are not used, so that ranks that work in step
                run the same modules.

        Raises:
            RefusedRecord: the row has more or fewer image tokens than its images have features.
        """
        places = (batch.token_ids == self._image_token).nonzero()[:, 0].to(embeddings_ND.device)
        if not batch.images:
            if len(places):
                raise RefusedRecord(f"{len(places)} image tokens in prompts without images")
            return (
                embeddings_ND
                if dummy_image is None
                else embeddings_ND + 0.0 * self._run([dummy_image.images[0].values])[0].sum()
            )
        features = self._features(batch.images, keep=dummy_image is None)
        shown = torch.cat([features[number] for number in batch.image_order])
        if len(shown) != len(places):
            raise RefusedRecord(f"{len(places)} image tokens for pictures with {len(shown)} features")
        return embeddings_ND.index_copy(0, places, shown.to(embeddings_ND.dtype))

    def _features(self, images: list[ImageTensors], *, keep: bool) -> list[torch.Tensor]:
        if not self._is_frozen:
            return self._run([image.values for image in images])
        with torch.no_grad():
            missing = [image for image in images if not keep or image.digest not in self._cache]
            new = self._run([image.values for image in missing]) if missing else []
        found = {image.digest: feature for image, feature in zip(missing, new, strict=True)}
        result = [found[image.digest] if image.digest in found else self._cache.get(image.digest) for image in images]
        if keep:
            for digest, feature in found.items():
                self._cache.put(digest, feature, num_bytes=feature.numel() * feature.element_size())
        return result

    def _run(self, values: list[dict[str, torch.Tensor]]) -> list[torch.Tensor]:
        device = next(self._model.language_model.parameters()).device
        pixels = torch.cat([value["pixel_values"] for value in values]).to(device)
        grids = torch.cat([value["image_grid_thw"] for value in values]).to(device)
        dtype = self._model.visual.patch_embed.proj.weight.dtype
        output = self._model.visual(pixels.to(dtype), grid_thw=grids, **self._places(grids))
        return list(output.pooler_output.split((grids.prod(-1) // self._merge).tolist()))

    def _places(self, grids: torch.Tensor) -> dict[str, torch.Tensor]:
        """Positions and windows of the patches. They are kept, because the tower would compute them anew for every batch."""
        visual = self._model.visual
        key = tuple(map(tuple, grids.tolist()))
        if key not in self._kept_places:
            if len(self._kept_places) >= _KEPT_PLACES:
                self._kept_places.clear()
            self._kept_places[key] = found = {
                "position_ids": vision_utils.get_vision_position_ids(grids, visual.spatial_merge_size),
                "cu_seqlens": vision_utils.get_vision_cu_seqlens(grids),
            }
            if hasattr(visual, "window_size"):
                sizes = (visual.spatial_merge_size, visual.window_size, visual.patch_size)
                index, bounds = vision_utils.get_vision_window_index(grids, *sizes)
                found |= {"window_index": index.to(grids.device), "cu_window_seqlens": bounds}
        return self._kept_places[key]
