"""Loads a checkpoint as a policy module ready for training: precision, frozen parts, adapters, activation checkpointing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from learners.config import LearnerConfig, LoraConfig
from learners.policy import PolicyModule, base_model
from rlsys.errors import ConfigError
from rlsys.seeding import child_seed

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def load(directory: Path, config: LearnerConfig) -> PolicyModule:
    """The checkpoint in `directory` as a module.

    Raises:
        ConfigError: an option does not fit the model.
    """
    model = _read(directory, DTYPES[config.precision])
    if config.has_adapter:
        model = _adapt(model, config.lora)
    freeze(model, config.freeze)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(f"learner.freeze={config.freeze} leaves nothing to train")
    module = PolicyModule(
        model, path=config.path, head_chunk_mib=config.head_chunk_mib, image_cache_mib=config.image_cache_mib
    )
    if config.activation_checkpointing:
        base_model(model).gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return module


def _read(directory: Path, dtype: torch.dtype) -> nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.utils import logging

    logging.disable_progress_bar()
    config = AutoConfig.from_pretrained(directory)
    has_vision = type(config) in AutoModelForImageTextToText._model_mapping
    kind = AutoModelForImageTextToText if has_vision else AutoModelForCausalLM
    return kind.from_pretrained(directory, dtype=dtype, attn_implementation="sdpa")


def _adapt(model: nn.Module, lora: LoraConfig) -> nn.Module:
    import peft

    targets: Any = "all-linear" if lora.target_modules == ["all-linear"] else list(lora.target_modules)
    with torch.random.fork_rng(devices=[]):
        # The adapter's initial weights are the same on every rank and after every start.
        torch.manual_seed(child_seed(0, "lora"))
        return peft.get_peft_model(
            model,
            peft.LoraConfig(r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets),
        )


def freeze(model: nn.Module, names: Sequence[str]) -> None:
    """Stop training parameters by name.

    Args:
        model: a transformers or PEFT model, before it becomes part of a `PolicyModule`.
        names: dotted parts of the names that the parameters have in a `PolicyModule`:
            `visual` matches `model.visual.blocks.0.norm1.weight`, but not `model.visual_head.weight`.

    Raises:
        ConfigError: one of `names` matches no parameter.
    """
    parameters = {f"model.{name}": parameter for name, parameter in model.named_parameters()}
    for wanted in names:
        met = [parameter for name, parameter in parameters.items() if f".{wanted}." in f".{name}."]
        if not met:
            raise ConfigError(f"learner.freeze: no parameter has {wanted!r} in its name")
        for parameter in met:
            parameter.requires_grad_(False)
