"""What an update must bring, by the files of a checkpoint."""

import json

import pytest
import torch
from safetensors.torch import save_file

from actors.engines.checkpoints import tensor_shapes
from rlsys.errors import EngineError


def save(folder, name, **shapes):
    save_file({key.replace("__", "."): torch.zeros(shape) for key, shape in shapes.items()}, folder / name)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def test_files_that_the_index_does_not_name_are_not_the_models(folder):
    """As of Mistral, whose folders hold the weights in two formats."""
    save(folder, "model-00001-of-00002.safetensors", a=(2, 3))
    save(folder, "model-00002-of-00002.safetensors", b=(4,))
    save(folder, "consolidated.safetensors", other=(5,))
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert tensor_shapes(folder) == {"a": [2, 3], "b": [4]}


def test_an_adapter_beside_the_model_is_not_the_models(folder):
    save(folder, "model.safetensors", a=(2, 3))
    save(folder, "adapter_model.safetensors", lora=(1,))
    assert tensor_shapes(folder) == {"a": [2, 3]}


def test_what_is_computed_or_tied_need_not_come(folder):
    (folder / "config.json").write_text(json.dumps({"text_config": {"tie_word_embeddings": True}}))
    save(folder, "weights.safetensors", a=(2,), layers__0__rotary_emb__inv_freq=(4,), lm_head__weight=(2, 2))
    assert tensor_shapes(folder) == {"a": [2]}


def test_a_folder_without_safetensors_is_refused(folder):
    with pytest.raises(EngineError, match=r"no \*\.safetensors in "):
        tensor_shapes(folder)
