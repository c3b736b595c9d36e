"""A random vision-language checkpoint, pictures, and what transformers says of it."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from rlsys.records import Image, Prompt, Turn
from rlsys.transports.buckets import make_manifest
from rlsys.worlds.scenes.policy import Shape, make_policy

SHAPE = Shape(hidden=64, layers=2, mlp=96, vision_hidden=64, vision_layers=2, vision_mlp=96)
STD = 0.12
"""Of the weights: every part of the model then shows in its log-probabilities."""
QUESTIONS = ("describe the picture", "is there a red circle", "how many squares are there")


def make_small(directory: Path, seed: int = 1) -> Path:
    make_policy(directory, seed=seed, shape=SHAPE)
    source = torch.Generator().manual_seed(seed)
    drawn = {
        name: STD * torch.randn(tensor.shape, generator=source) if tensor.dim() > 1 else tensor
        for name, tensor in weights_of(directory).items()
    }
    save_file(drawn, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def tie(directory: Path) -> Path:
    """Make the head of a checkpoint its embedding."""
    file = directory / "config.json"
    config = json.loads(file.read_text())
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = True
    file.write_text(json.dumps(config))
    weights = weights_of(directory)
    del weights["lm_head.weight"]
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def make_prompts(count: int, *, seed: int = 0, cells: int = 3) -> list[Prompt]:
    rng = np.random.default_rng(seed)
    return [
        Prompt(
            id=f"p{seed}-{number}",
            turns=(Turn(role="user", text=QUESTIONS[number % len(QUESTIONS)]),),
            images=(Image(pixels=rng.integers(0, 256, (28 * cells, 28 * cells, 3), dtype=np.uint8)),),
        )
        for number in range(count)
    ]


class Transformers:
    """The checkpoint in transformers: the truth that engines are held against."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.folder = folder
        self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        self.processor = AutoProcessor.from_pretrained(folder)

    def logits(self, prompt: Prompt, response: np.ndarray) -> torch.Tensor:
        """float32 [T, V] at the positions that emit the response."""
        content = [{"type": "image"} for _ in prompt.images] + [{"type": "text", "text": prompt.question}]
        text = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        images = [image.pixels for image in prompt.images]
        inputs = dict(self.processor(text=[text], images=images or None, return_tensors="pt"))
        answer = torch.as_tensor(response, dtype=torch.long)[None]
        inputs["input_ids"] = torch.cat([inputs["input_ids"], answer], 1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        if "mm_token_type_ids" in inputs:
            types = inputs["mm_token_type_ids"]
            inputs["mm_token_type_ids"] = torch.cat([types, torch.zeros_like(answer, dtype=types.dtype)], 1)
        with torch.no_grad():
            return self.model(**inputs).logits[0, -len(response) - 1 : -1].float()

    def logprobs(self, prompt: Prompt, response: np.ndarray) -> np.ndarray:
        """float32 [T]."""
        picked = torch.as_tensor(response, dtype=torch.long)[:, None]
        return self.logits(prompt, response).log_softmax(-1).gather(1, picked)[:, 0].numpy()

    def load(self, weights: dict[str, torch.Tensor], directory: Path) -> None:
        """Take other weights, in the names of the checkpoint, by way of a folder on disk."""
        shutil.copytree(self.folder, directory, dirs_exist_ok=True)
        save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
        from transformers import AutoModelForImageTextToText

        self.model = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32).eval()


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """The checkpoint's tensors in the names on disk."""
    return load_file(folder / "model.safetensors")


class WeightSender:
    """A hand-written learner's end: sends any tensors."""

    def __init__(self, transport, weights: dict[str, torch.Tensor]) -> None:
        self.transport = transport
        self.weights = weights
        self.sender = None

    def open_transport(self, transport, num_receivers: int) -> dict:
        self.close()
        self.sender = transport.sender(num_receivers)
        self._connected = False
        return self.sender.offer()

    def manifest(self, bucket_bytes: int) -> dict:
        described = [(name, tensor.dtype, tensor.shape) for name, tensor in self.weights.items()]
        return make_manifest(described, bucket_bytes)

    def send(self, manifest: dict) -> dict:
        if not self._connected:
            self.sender.connect()
            self._connected = True
        for bucket in manifest["buckets"]:
            self.sender.send_bucket([(name, self.weights[name]) for name in bucket["names"]])
        return self.sender.finish()

    def close(self) -> None:
        if self.sender is not None:
            self.sender.close()
            self.sender = None


def push(sending: WeightSender, engine, version: int) -> dict:
    """One update of one engine in this process; the sender works in another thread."""
    outcome: dict = {}
    manifest = sending.manifest(sending.transport.bucket_bytes)

    def work():
        try:
            outcome["sent"] = sending.send(manifest)
        except Exception as error:
            outcome["error"] = error

    if sending.sender is None:
        offer = sending.open_transport(sending.transport, 1)
        thread = threading.Thread(target=work)
        thread.start()
        engine.connect({**offer, "receiver": 0})
    else:
        thread = threading.Thread(target=work)
        thread.start()
    try:
        engine.begin_update()
        engine.receive(manifest)
        return {"received": engine.end_update(version), **outcome}
    finally:
        thread.join(60)
        if "error" in outcome:
            raise outcome["error"]
