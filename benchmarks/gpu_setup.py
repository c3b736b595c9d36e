"""What the measurements on a GPU share: options, random models of real shapes, places on the one GPU, and its rates."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import arguments
from rlsys.placement import Placement
from rlsys.placement.machine import this_machine
from rlsys.report.progress import quiet_libraries
from rlsys.worlds.scenes.policy import Shape as ScenesShape
from rlsys.worlds.scenes.policy import make_policy, make_tokenizer

MATRIX = 8192
"""Rows and columns of the square product that the matrix rate is measured with."""
ENVIRONMENT = {"VLLM_USE_FLASHINFER_SAMPLER": "0", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
"""vLLM's sampler would import a library that it does not install on every machine."""


@dataclass(frozen=True, kw_only=True)
class Qwen:
    """Sizes of a Qwen2.5-VL."""

    hidden: int
    layers: int
    mlp: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool
    vision_layers: int = 32
    vision_hidden: int = 1280
    vision_mlp: int = 3420
    vision_heads: int = 16

    @property
    def layer_weights(self) -> int:
        """Weights of the language model's matrices that every token meets, head and embedding apart."""
        keys = self.hidden // self.heads * self.kv_heads
        return self.layers * (2 * self.hidden**2 + 2 * self.hidden * keys + 3 * self.hidden * self.mlp)

    @property
    def head_weights(self) -> int:
        """Weights of the output head."""
        return self.hidden * self.vocabulary

    @property
    def vision_weights(self) -> int:
        """Weights of the tower's matrices that every patch meets."""
        return self.vision_layers * (4 * self.vision_hidden**2 + 3 * self.vision_hidden * self.vision_mlp)


QWEN_2B = Qwen(hidden=1536, layers=28, mlp=8960, heads=12, kv_heads=2, vocabulary=151_936, tied=True)
"""The language model of Qwen2-VL-2B."""
QWEN_3B = Qwen(hidden=2048, layers=36, mlp=11008, heads=16, kv_heads=2, vocabulary=151_936, tied=True)
QWEN_7B = Qwen(hidden=3584, layers=28, mlp=18944, heads=28, kv_heads=4, vocabulary=152_064, tied=False)
TINY = Qwen(
    hidden=64,
    layers=2,
    mlp=128,
    heads=2,
    kv_heads=1,
    vocabulary=512,
    tied=True,
    vision_layers=2,
    vision_hidden=64,
    vision_mlp=96,
    vision_heads=2,
)


def options(
    description: str, words: Sequence[str] | None = None, *, cases: Callable[[bool], Iterable[str]]
) -> argparse.Namespace | None:
    """The command line: `--repeats`, `--only`, and `--tiny` (tiny models, also without a GPU; nothing is written).

    Args:
        cases: names of all, given whether they are the tiny ones.

    Returns:
        `None` if there is no GPU and `--tiny` is not given; that has then been said.
    """
    given = list(sys.argv[1:] if words is None else words)
    tiny = "--tiny" in given
    found = arguments.parse(
        description.splitlines()[0],
        [word for word in given if word != "--tiny"],
        cases=cases(tiny),
        on_two_cores=False,
    )
    found.tiny = tiny
    if not tiny and not on_gpu():
        print("no CUDA device: not measured")
        return None
    if tiny:
        found.repeats = 1
    found.written = 0 if tiny or found.only else found.repeats
    os.environ.update(ENVIRONMENT)
    quiet_libraries()
    return found


def on_gpu() -> bool:
    """Whether there is a CUDA device."""
    import torch

    return torch.cuda.is_available()


def precision() -> str:
    """Of learners: `bf16`, or `fp32` where the programs are only tried."""
    return "bf16" if on_gpu() else "fp32"


def make_model(directory: Path, shape: Qwen, *, seed: int = 0) -> Path:
    """A Qwen2.5-VL with random weights in bfloat16, and a tokenizer of as many words, so that every token is text."""
    import torch
    from transformers import AutoProcessor, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    make_policy(directory, seed=seed, shape=ScenesShape(hidden=32, layers=1, mlp=32, vision_hidden=32, vision_layers=1))
    processor = AutoProcessor.from_pretrained(directory)
    processor.tokenizer = tokenizer = _tokenizer(shape.vocabulary)
    size = {"shortest_edge": 28**2, "longest_edge": 28**2 * 1024}
    processor.image_processor.size = processor.image_processor.size | size
    processor.save_pretrained(directory)
    torch.manual_seed(seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda" if on_gpu() else "cpu"):
            model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**_config(shape, tokenizer)))
    finally:
        torch.set_default_dtype(before)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(directory)
    return directory


def _tokenizer(size: int) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    small = make_tokenizer()
    known = small.get_vocab()
    words = sorted(known, key=known.__getitem__)
    words += [f"word{number}" for number in range(size - len(words))]
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=small.unk_token))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    named = {"unk_token": small.unk_token, "eos_token": small.eos_token, "pad_token": small.pad_token}
    others = [token for token in small.all_special_tokens if token not in named.values()]
    return PreTrainedTokenizerFast(tokenizer_object=core, additional_special_tokens=others, **named)


def _config(shape: Qwen, tokenizer: Any) -> dict[str, Any]:
    token, half = tokenizer.convert_tokens_to_ids, shape.hidden // shape.heads // 2
    return {
        "text_config": {
            "vocab_size": shape.vocabulary,
            "hidden_size": shape.hidden,
            "intermediate_size": shape.mlp,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads,
            "max_position_embeddings": 32768,
            "rope_parameters": {
                "rope_type": "default",
                "mrope_section": [half // 4, half * 3 // 8, half * 3 // 8],
                "rope_theta": 1e6,
            },
            "tie_word_embeddings": shape.tied,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.pad_token_id,
        },
        "vision_config": {
            "depth": shape.vision_layers,
            "hidden_size": shape.vision_hidden,
            "intermediate_size": shape.vision_mlp,
            "num_heads": shape.vision_heads,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "out_hidden_size": shape.hidden,
            "window_size": 112,
            "fullatt_block_indexes": list(range(7, shape.vision_layers, 8)) or [shape.vision_layers - 1],
        },
        "image_token_id": token("<|image_pad|>"),
        "video_token_id": token("<|video_pad|>"),
        "vision_start_token_id": token("<|vision_start|>"),
        "vision_end_token_id": token("<|vision_end|>"),
        "tie_word_embeddings": shape.tied,
    }


def place(share: float) -> Placement:
    """A process on a share of the GPU; without one, on all cores."""
    machine = this_machine()
    if not on_gpu():
        return Placement(num_cpus=0.5, cores=machine.cores, num_threads=max(1, int(machine.num_cpus)))
    return Placement(num_cpus=2, num_gpus=share, num_threads=max(1, int(machine.num_cpus) // 4))


def engine(kind: str = "vllm", **given: Any) -> Any:
    """vLLM in bfloat16, its cache sized for one of several processes on the GPU."""
    from actors import engines

    engines.discover()
    usual = {"dtype": "bfloat16", "gpu_memory_utilization": 0.3} if on_gpu() else {"kv_cache_gib": 0.25}
    return engines.engine.make(kind, **{**usual, **given})


def synchronized(work: Callable[[], Any]) -> float:
    """Seconds of some work and of all that it has started on the GPU."""
    import torch

    wait = torch.cuda.synchronize if on_gpu() else lambda: None
    wait()
    started = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - started


def matrix_rate(size: int | None = None, times: int = 20) -> float:
    """FLOP per second of a square bfloat16 product, after one that is not counted."""
    import torch

    size = size or (MATRIX if on_gpu() else 512)
    device = "cuda" if on_gpu() else "cpu"
    one, two = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))

    def products() -> None:
        for _ in range(times):
            one @ two

    products()
    return 2.0 * size**3 * times / synchronized(products)


def copy_rate(num_bytes: int, times: int = 10) -> float:
    """Bytes per second that one buffer is copied to another with, in the device's memory."""
    import torch

    device = "cuda" if on_gpu() else "cpu"
    one, two = (torch.zeros(num_bytes, dtype=torch.uint8, device=device) for _ in range(2))

    def copies() -> None:
        for _ in range(times):
            two.copy_(one)

    copies()
    return num_bytes * times / synchronized(copies)
