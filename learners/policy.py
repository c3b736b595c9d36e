"""The policy as one module: it takes a micro-batch and returns the logprobs of its responses' tokens.

Two paths lead to the same numbers. `_SharedPath` runs a prompt and its images once for all responses to it; it supports
Qwen2-VL and Qwen2.5-VL, and text models with standard attention. `_PlainPath` runs every response as a sequence of its own
through the stock model, and supports any other architecture.
Letters in shapes: N tokens of the row, L tokens of all responses, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import pad

from learners import attention, kernels, layers
from learners.logprobs import LogprobHead
from learners.micro_batch import MicroBatch
from learners.positions import Positions
from learners.tokens import ImageTensors
from learners.trees import Tree
from learners.vision import VisionFeatures
from rlsys.errors import ConfigError

SHARED_VISION_MODELS = ("qwen2_vl", "qwen2_5_vl")
"""Vision-language model types whose language model accepts embeddings, multimodal positions and the attention of trees."""


class PolicyModule(nn.Module):
    """A causal language model, with or without vision, that returns logprobs."""

    def __init__(self, model: nn.Module, *, path: str, head_chunk_mib: int, image_cache_mib: int) -> None:
        """
        Args:
            model: a transformers model, or a PEFT model around one. Parameters must be frozen before this call, because
                only here is it determined whether the vision tower is trained.
            path: `auto`, `shared` or `plain`.

        Raises:
            ConfigError: `path` is `shared` and the architecture does not support it, or the model's logits are not a plain
                matrix product.
        """
        super().__init__()
        self.model = model
        base = base_model(model)
        if not isinstance(base.get_output_embeddings(), LogprobHead):
            _check_head(base)
            base.set_output_embeddings(LogprobHead.take_over(base.get_output_embeddings(), head_chunk_mib))
        can_share = supports_shared(base)
        if path == "shared" and not can_share:
            raise ConfigError(f"learner.path=shared: no such path for {type(base).__name__}; take auto or plain")
        tower = getattr(base.model, "visual", model)
        self.trains_vision = any(parameter.requires_grad for parameter in tower.parameters())
        """Whether a part of the model that only images go through is trained; `True` if no such part can be told apart."""
        self._path = (_SharedPath if can_share and path != "plain" else _PlainPath)(base, image_cache_mib)

    @property
    def path(self) -> str:
        """`shared` or `plain`."""
        return self._path.name

    def forward(self, batch: MicroBatch, dummy_image: MicroBatch | None = None) -> torch.Tensor:
        """Compute the logprobs of a micro-batch's response tokens.

        Args:
            batch: a micro-batch on any device; its tensors are moved to the model's device.
            dummy_image: a dummy image that goes through the vision tower, without effect on the result, if the batch has no
                images. It is given where ranks work in step, because they must then run the same modules.

        Returns:
            float32 [2, L], the logprobs and raw logits of `batch.targets`; [3, L] with the raw logits of a value token, if
            `read_values` asked for them.
        """
        base = base_model(self.model)
        hidden_LD = self._path(base, batch, dummy_image)
        targets = pad(batch.targets, (0, len(hidden_LD) - batch.num_target_tokens))  # padding takes any target
        return base.get_output_embeddings()(hidden_LD, targets.to(hidden_LD.device))[:, : batch.num_target_tokens]

    def read_values(self, token_id: int | None) -> None:
        """Make `forward` also return the raw logit of a token at every predicted position; `None` switches that off."""
        base_model(self.model).get_output_embeddings().value_id = token_id


def base_model(model: nn.Module) -> Any:
    """The transformers model itself, without PEFT's wrapper if there is one."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def supports_shared(base: Any) -> bool:
    """Whether the architecture's attention can be replaced by the attention of trees."""
    if base.config.model_type in SHARED_VISION_MODELS:
        text = base.config.get_text_config()
    elif getattr(base.config, "vision_config", None) is None and getattr(base, "_supports_attention_backend", False):
        text = base.config
    else:
        return False
    kinds = getattr(text, "layer_types", None)
    if not kinds and getattr(text, "sliding_window", None):
        return False
    if getattr(text, "v_head_dim", None):  # values of another width than queries: multi-head latent attention
        return False
    return all(kind == "full_attention" for kind in kinds or ())


def _check_head(base: Any) -> None:
    head = base.get_output_embeddings()
    if type(head) is not nn.Linear:
        raise ConfigError(f"{type(base).__name__}: its output head is {type(head).__name__}, a linear layer is needed")
    text = base.config.get_text_config()
    for name in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
        value = getattr(text, name, None)
        if value not in (None, 1, 1.0):
            raise ConfigError(
                f"{type(base).__name__} has {name}={value}: logits that are no plain product are not supported"
            )


class _SharedPath:
    """Runs one row of tokens, in which the prompt of each tree stands once."""

    name = "shared"

    def __init__(self, base: Any, image_cache_mib: int) -> None:
        attention.register()
        kernels.speed_up(base)
        self._text = base.model.language_model if hasattr(base.model, "language_model") else base.model
        self._text.config._attn_implementation = attention.NAME
        self._predictors_only = layers.put_in(self._text)
        self._positions = Positions(base)
        self._vision = None
        if hasattr(base.model, "visual"):
            layers.put_in_vision(base.model.visual)
            self._vision = VisionFeatures(base, image_cache_mib)

    def __call__(self, base: Any, batch: MicroBatch, dummy_image: MicroBatch | None) -> torch.Tensor:
        embed = base.get_input_embeddings()
        device = next(self._text.parameters()).device
        embeddings_ND = embed(batch.token_ids.to(device))
        if self._vision is not None:
            embeddings_ND = self._vision.place(embeddings_ND, batch, dummy_image)
        predict = batch.predict.to(device)
        output = self._text(
            inputs_embeds=embeddings_ND[None],
            attention_mask=None,
            position_ids=self._positions(batch).to(device),
            use_cache=False,
            tree_layout=batch.layout.to(device),
            predict=predict,
        )
        hidden = output.last_hidden_state[0]
        return hidden if self._predictors_only else hidden.index_select(0, predict)


class _PlainPath:
    """Runs every response as a padded sequence through the stock model; its images are computed again for each response."""

    name = "plain"

    def __init__(self, base: Any, image_cache_mib: int) -> None:
        self._image_token = getattr(base.config, "image_token_id", None)
        self._pad = base.config.get_text_config().pad_token_id or 0

    def __call__(self, base: Any, batch: MicroBatch, dummy_image: MicroBatch | None) -> torch.Tensor:
        device = base.get_output_embeddings().weight.device
        rows = _sequences(batch)
        num_answers = len(rows)
        shown = batch.images
        if dummy_image is not None and not batch.images:
            rows += _sequences(dummy_image)
            shown = dummy_image.images
        ids = nn.utils.rnn.pad_sequence([row for _, _, row in rows], batch_first=True, padding_value=self._pad)
        lengths = torch.tensor([len(row) for _, _, row in rows])
        inputs = {
            "input_ids": ids.to(device),
            "attention_mask": (torch.arange(ids.shape[1]) < lengths[:, None]).long().to(device),
            **{name: value.to(device) for name, value in _shown(shown, [tree for tree, _, _ in rows]).items()},
        }
        if self._image_token is not None and "pixel_values" in inputs:
            inputs["mm_token_type_ids"] = (inputs["input_ids"] == self._image_token).int()
        hidden = base.model(**inputs, use_cache=False).last_hidden_state
        return torch.cat([hidden[i, start - 1 : len(row) - 1] for i, (_, start, row) in enumerate(rows[:num_answers])])


def _sequences(batch: MicroBatch) -> list[tuple[Tree, int, torch.Tensor]]:
    """For every response: its tree, the position at which it begins, and the tokens of prompt and response."""
    return [
        (tree, len(tree.prompt_ids), torch.tensor([*tree.prompt_ids.tolist(), *answer.token_ids.tolist()]))
        for tree in batch.trees
        for answer in tree.answers
    ]


def _shown(images: Sequence[ImageTensors], trees: Sequence[Tree]) -> dict[str, torch.Tensor]:
    """Image arguments of the stock model, in the order in which the sequences show them."""
    known = {image.digest: image for image in images}
    order = [known[image.digest] for tree in trees for image in tree.images]
    if not order:
        return {}
    return {name: torch.cat([image.values[name] for image in order]) for name in order[0].values}
