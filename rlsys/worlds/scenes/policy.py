"""A small Qwen2.5-VL with random weights, a word-level tokenizer for the world's language, and a processor: an ordinary Hugging
Face folder that transformers and vLLM load without changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlsys.worlds.scenes.language import vocabulary
from rlsys.worlds.scenes.world import CELL_PIXELS

SCORE_TOKEN = "<score>"
END_TOKEN = "<|im_end|>"
PAD_TOKEN = "<|endoftext|>"
SPECIAL_TOKENS = (
    "<unk>",
    PAD_TOKEN,
    "<|im_start|>",
    END_TOKEN,
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
    SCORE_TOKEN,
)
_PATCH_PIXELS = CELL_PIXELS // 2
_MAX_CELLS = 64
"""Largest number of cells; the processor scales larger images down."""
_VOCABULARY_MULTIPLE = 32
_ROPE_THETA = 1000.0
_EMBEDDING_STD = 0.7
_HEAD_STD = 0.02
_RESIDUAL_OUTPUTS = ("o_proj.weight", "down_proj.weight", "attn.proj.weight")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }} "
    "{% if message['content'] is string %}{{ message['content'] }} {% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endif %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of the model. Head dimensions are 32, the smallest that attention kernels take."""

    hidden: int = 128
    layers: int = 4
    mlp: int = 384
    vision_hidden: int = 96
    vision_layers: int = 2
    vision_mlp: int = 192

    def __post_init__(self) -> None:
        for name in ("hidden", "vision_hidden"):
            value = getattr(self, name)
            if value < 32 or value % 32:
                raise ValueError(f"Shape.{name} must be a positive multiple of 32, got {value}")


def make_policy(directory: str | Path, *, seed: int, shape: Shape | None = None) -> Path:
    """Write a random checkpoint with tokenizer and processor.

    Args:
        directory: made if missing; files of the same names are replaced.
        seed: seed of the weights. The global random state of torch is restored afterwards.
        shape: sizes of the model; the defaults of `Shape` if `None`.

    Returns:
        The directory.
    """
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

    directory = Path(directory)
    tokenizer = make_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(_config(tokenizer, shape or Shape()))
        _initialise(model)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(directory)
    _processor(tokenizer).save_pretrained(directory)
    return directory


def _initialise(model: Any) -> None:
    """Draw the weights so that a model of this width learns to see within minutes.

    The usual normal(0, 0.02) is meant for widths in the thousands. Here every matrix keeps the variance of its input (LeCun et
    al., 1998), the matrices that write into the residual stream are shrunk by its depth (GPT-2), word embeddings have the same
    scale as what the first layers add to them, and the head starts near uniform.
    """
    import torch

    depths = {
        "visual": model.config.vision_config.depth,
        "language_model": model.config.text_config.num_hidden_layers,
    }
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            continue
        std = parameter[0].numel() ** -0.5
        if "embed_tokens" in name:
            std = _EMBEDDING_STD
        elif "lm_head" in name:
            std = _HEAD_STD
        elif name.endswith(_RESIDUAL_OUTPUTS):
            std /= (2 * next(depth for part, depth in depths.items() if part in name)) ** 0.5
        torch.nn.init.normal_(parameter, std=std)


def make_tokenizer() -> Any:
    """A word-level `PreTrainedTokenizerFast`; unused rows of the padded vocabulary are separate special tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*SPECIAL_TOKENS, *vocabulary()]
    padded = -(-len(words) // _VOCABULARY_MULTIPLE) * _VOCABULARY_MULTIPLE
    reserved = [f"<|reserved_{number}|>" for number in range(padded - len(words))]
    words += reserved
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        eos_token=END_TOKEN,
        pad_token=PAD_TOKEN,
        additional_special_tokens=[*SPECIAL_TOKENS[2:3], *SPECIAL_TOKENS[4:], *reserved],
        clean_up_tokenization_spaces=False,
    )


def _config(tokenizer: Any, shape: Shape) -> Any:
    from transformers import Qwen2_5_VLConfig

    def token(word: str) -> int:
        return tokenizer.convert_tokens_to_ids(word)

    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": shape.hidden,
            "intermediate_size": shape.mlp,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.hidden // 32,
            "num_key_value_heads": max(1, shape.hidden // 64),
            "max_position_embeddings": 2048,
            "rope_parameters": {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": _ROPE_THETA},
            "eos_token_id": token(END_TOKEN),
            "pad_token_id": token(PAD_TOKEN),
            "bos_token_id": token(PAD_TOKEN),
        },
        vision_config={
            "depth": shape.vision_layers,
            "hidden_size": shape.vision_hidden,
            "intermediate_size": shape.vision_mlp,
            "num_heads": shape.vision_hidden // 32,
            "patch_size": _PATCH_PIXELS,
            "spatial_merge_size": 2,
            "out_hidden_size": shape.hidden,
            "window_size": 8 * _PATCH_PIXELS,
            "fullatt_block_indexes": [shape.vision_layers - 1],
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=False,
    )


def _processor(tokenizer: Any) -> Any:
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    pixels = {"min_pixels": CELL_PIXELS**2, "max_pixels": CELL_PIXELS**2 * _MAX_CELLS}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(patch_size=_PATCH_PIXELS, merge_size=2, **pixels),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(patch_size=_PATCH_PIXELS, merge_size=2),
        chat_template=CHAT_TEMPLATE,
    )
