"""`rlsys train` on the real learner: from rows in a file to a folder that transformers loads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from rlsys.worlds.scenes.policy import CHAT_TEMPLATE, make_tokenizer

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]
DEADLINE_S = 300
ANSWERS = {"red": "there is a red circle .", "blue": "there is a blue square ."}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A text model of random weights, with a word-level tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def rlsys_train(tmp_path, *words):
    """What the command printed, and the loss of every step."""
    command = [sys.executable, "-m", "rlsys", "train", *words, f"output.runs_dir={tmp_path}", "name=mine"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == 0, done.stdout + done.stderr
    steps = [json.loads(line) for line in (tmp_path / "mine" / "training.jsonl").read_text().splitlines()]
    return done.stdout, [step["loss"] for step in steps]


def greedy(folder, prompt_ids, count):
    loaded = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        found = loaded.generate(torch.tensor([prompt_ids]), max_new_tokens=count, do_sample=False)
    return AutoTokenizer.from_pretrained(folder).decode(found[0, len(prompt_ids) :])


def test_a_model_learns_what_a_file_of_rows_shows_it(model, tmp_path):
    rows = [{"prompt": f"is there a {color} circle", "response": text} for color, text in ANSWERS.items()] * 16
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["data=jsonl", f"data.path={tmp_path / 'rows.jsonl'}", "objective=sft", f"train.model={model}"]
    recipe = ["train.epochs=10", "train.lr=1e-2", "train.batch_size=8", "train.lr_schedule=constant"]
    said, losses = rlsys_train(tmp_path, *words, *recipe)
    folder = tmp_path / "mine" / "model"
    curve, place = said.splitlines()
    assert place == str(folder) and curve.startswith("40 steps, loss ")
    assert len(losses) == 40
    assert losses[0] > 4 and np.mean(losses[-4:]) < 0.1
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for color, text in ANSWERS.items():
        message = [{"role": "user", "content": f"is there a {color} circle"}]
        prompt = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(prompt, add_special_tokens=False).input_ids
        assert greedy(folder, ids, 10).removesuffix(" <|im_end|>") == text
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == [
        "config.yaml",
        "model",
        "overrides.json",
        "training.jsonl",
    ]


def test_plain_text_is_learned_from_its_first_token_on_two_ranks(model, tmp_path):
    (tmp_path / "text.txt").write_text("\n\n".join(["there is a green cross left of the red circle ."] * 32))
    words = ["data=text", f"data.path={tmp_path / 'text.txt'}", "data.max_characters=60", "objective=sft"]
    words += [f"train.model={model}", "train.epochs=6", "train.lr=1e-2", "train.batch_size=8"]
    _, losses = rlsys_train(tmp_path, *words, "learner.num_ranks=2", "learner.zero_stage=2")
    assert len(losses) == 24 and losses[-1] < 0.5 * losses[0]
    folder = tmp_path / "mine" / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    assert greedy(folder, [start], 3).startswith("there is a")
