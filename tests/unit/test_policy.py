"""One prompt for many answers against every answer on its own: the same numbers and the same gradients."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from learners import flash, model
from learners.attention import TreeLayout, tree_attention
from learners.collate import Collator
from learners.config import LearnerConfig, LoraConfig
from learners.memory import Parameters
from learners.names import CheckpointNames
from learners.policy import PolicyModule, base_model, supports_shared
from learners.tokens import Processor, RefusedRecord
from learners.trees import Branch, Tree
from rlsys.app.plan import model_size
from rlsys.errors import ConfigError
from rlsys.records import Image, Prompt, Turn
from rlsys.worlds.scenes.policy import Shape, make_policy, make_tokenizer
from tests.unit.varlen import one_after_another

SMALL = Shape(hidden=64, layers=2, mlp=64, vision_hidden=32, vision_layers=2, vision_mlp=32)
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }} {{ m['content'] }} <|im_end|>{% endfor %}<|im_start|>assistant "
)


def text_checkpoint(directory, kind):
    """A random text model with the scenes' tokenizer."""
    import transformers

    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHAT
    names = {"qwen2": "Qwen2", "llama": "Llama", "qwen3": "Qwen3", "tied": "Qwen2", "gemma2": "Gemma2"}
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 256, "head_dim": 32}
    config = getattr(transformers, f"{names[kind]}Config")(
        **sizes, **heads, tie_word_embeddings=kind == "tied", initializer_range=0.2
    )
    torch.manual_seed(0)
    getattr(transformers, f"{names[kind]}ForCausalLM")(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folders = {"vision": make_policy(tmp_path_factory.mktemp("vision"), seed=0, shape=SMALL)}
    for kind in ("qwen2", "qwen3", "llama", "tied", "gemma2"):
        folders[kind] = text_checkpoint(tmp_path_factory.mktemp(kind), kind)
    return folders


def load(folder, **options):
    return model.load(folder, LearnerConfig(**options))


def random_batch(processor, seed, *, pictures, multiple=1):
    """Trees of random sizes; some prompts share a picture, some have two, some none."""
    rng = np.random.default_rng(seed)
    images = [
        Image(pixels=rng.integers(0, 256, (28 * int(rng.integers(1, 5)), 84, 3), dtype=np.uint8)) for _ in range(3)
    ]
    trees = []
    for number in range(int(rng.integers(1, 5))):
        shown = tuple(images[: int(rng.integers(0, 3))]) if pictures else ()
        words = " ".join(["describe the picture"] * int(rng.integers(1, 4)))
        prompt = Prompt(id=str(number), turns=(Turn(role="user", text=words),), images=shown)
        answers = [
            Branch(token_ids=rng.integers(12, 60, int(rng.integers(1, 9))).astype(np.int32))
            for _ in range(int(rng.integers(1, 4)))
        ]
        trees.append(Tree(prompt_ids=processor.prompt_ids(prompt), images=shown, answers=answers))
    return Collator(processor, micro_batch_tokens=10_000, multiple=multiple).join(trees)


def outputs(module, batch, mix):
    """Values, and gradients of a random mixture of them."""
    module.zero_grad()
    found = module(batch)
    (found * mix).sum().backward()
    gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    return found.detach(), gradients


@pytest.mark.parametrize("kind", ["vision", "qwen2", "qwen3", "llama", "tied"])
@pytest.mark.parametrize("seed", range(4))
def test_both_paths_give_the_same_values_and_gradients(checkpoints, kind, seed):
    processor = Processor(checkpoints[kind])
    batch = random_batch(processor, seed, pictures=kind == "vision" and seed != 3)
    mix = torch.randn(2, batch.num_target_tokens, generator=torch.Generator().manual_seed(seed)) / 10
    shared, plain = (load(checkpoints[kind], path=path) for path in ("shared", "plain"))
    assert (shared.path, plain.path) == ("shared", "plain")
    values, gradients = outputs(shared, batch, mix)
    expected, expected_gradients = outputs(plain, batch, mix)
    torch.testing.assert_close(values, expected, atol=1e-5, rtol=0)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("kind", ["vision", "qwen2"])
@pytest.mark.parametrize("seed", range(4))
def test_what_fills_a_row_up_has_no_effect(checkpoints, kind, seed):
    processor = Processor(checkpoints[kind])
    batch, filled = (random_batch(processor, seed, pictures=kind == "vision", multiple=m) for m in (1, 16))
    assert len(filled.token_ids) % 16 == 0 and len(filled.predict) % 16 == 0
    assert len(filled.token_ids) > len(batch.token_ids) and torch.equal(filled.targets, batch.targets)
    mix = torch.randn(2, batch.num_target_tokens, generator=torch.Generator().manual_seed(seed)) / 10
    module = load(checkpoints[kind], path="shared")
    values, gradients = outputs(module, batch, mix)
    found, found_gradients = outputs(module, filled, mix)
    torch.testing.assert_close(found, values, atol=1e-5, rtol=0)
    for name, gradient in gradients.items():
        torch.testing.assert_close(found_gradients[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("kind", ["vision", "qwen2"])
@pytest.mark.parametrize("seed", range(4))
def test_a_row_taken_as_sequences_gives_the_same_values_and_gradients(checkpoints, kind, seed, monkeypatch):
    batch = random_batch(Processor(checkpoints[kind]), seed, pictures=kind == "vision", multiple=16)
    mix = torch.randn(2, batch.num_target_tokens, generator=torch.Generator().manual_seed(seed)) / 10
    module = load(checkpoints[kind], path="shared")
    values, gradients = outputs(module, batch, mix)
    monkeypatch.setattr(flash, "fits", lambda query: True)
    monkeypatch.setattr(flash, "varlen", one_after_another)
    found, found_gradients = outputs(module, batch, mix)
    torch.testing.assert_close(found, values, atol=1e-5, rtol=0)
    for name, gradient in gradients.items():
        torch.testing.assert_close(found_gradients[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("kind", ["vision", "qwen3"])
def test_a_policy_in_bfloat16_asks_in_bfloat16(checkpoints, kind, monkeypatch):
    """As FlashAttention needs it, which would else be passed by without a word."""
    asked = []
    monkeypatch.setattr(flash, "fits", lambda query: asked.append(query.dtype))
    module = load(checkpoints[kind], precision="bf16", path="shared")
    module(random_batch(Processor(checkpoints[kind]), 0, pictures=kind == "vision"))
    assert asked == [torch.bfloat16] * 2


def test_a_frozen_tower_gives_the_same_features_when_they_are_remembered(checkpoints):
    batch = random_batch(Processor(checkpoints["vision"]), 1, pictures=True)
    assert batch.images
    module = load(checkpoints["vision"], freeze=["visual"])
    runs = []
    tower = base_model(module.model).model.visual
    tower.register_forward_hook(lambda *_: runs.append(1))
    mix = torch.ones(2, batch.num_target_tokens)
    first, gradients = outputs(module, batch, mix)
    again, _ = outputs(module, batch, mix)
    assert len(runs) == 1
    assert torch.equal(first, again)
    assert not any("visual" in name for name in gradients)
    trained, _ = outputs(load(checkpoints["vision"]), batch, mix)
    torch.testing.assert_close(first, trained, atol=1e-5, rtol=0)


ALL_LINEAR = LoraConfig(r=3, target_modules=["all-linear"])


def counted_cases():
    anywhere = [
        {},
        {"freeze": ["layers.0"]},
        {"lora": LoraConfig(r=4)},
        {"lora": LoraConfig(r=2, target_modules=["proj", "down_proj"])},
        {"lora": ALL_LINEAR},
        {"lora": ALL_LINEAR, "freeze": ["layers.1", "self_attn"]},
    ]
    with_tower = [{"freeze": ["visual"]}, {"freeze": ["language_model"]}, {"freeze": ["visual"], "lora": ALL_LINEAR}]
    yield from ((kind, options) for kind in ("vision", "qwen2", "qwen3", "tied") for options in anywhere)
    yield from (("vision", options) for options in with_tower)
    yield from ((kind, {"freeze": ["lm_head", "embed_tokens"]}) for kind in ("vision", "qwen2"))


@pytest.mark.parametrize(("kind", "options"), counted_cases(), ids=str)
def test_parameters_counted_on_disk_are_those_of_the_module(checkpoints, kind, options):
    config = LearnerConfig(**options)
    parameters = list(model.load(checkpoints[kind], config).parameters())
    counted = Parameters.of_shapes(model_size(str(checkpoints[kind]), None).shapes, config)
    assert counted.num_all == sum(parameter.numel() for parameter in parameters)
    assert counted.num_trained == sum(parameter.numel() for parameter in parameters if parameter.requires_grad)


@pytest.mark.parametrize(("frozen", "expected_runs"), [(["visual"], 1), ([], 2)])
def test_whether_the_tower_is_trained_does_not_change_while_the_adapter_is_off(checkpoints, frozen, expected_runs):
    """PEFT switches `requires_grad` of all adapters off with the adapter, and on again with it."""
    batch = random_batch(Processor(checkpoints["vision"]), 1, pictures=True)
    module = load(checkpoints["vision"], lora=LoraConfig(r=2, target_modules=["all-linear"]), freeze=frozen)
    runs = []
    base_model(module.model).model.visual.register_forward_hook(lambda *_: runs.append(1))
    assert module.trains_vision is (frozen == [])
    with module.model.disable_adapter(), torch.no_grad():
        module(batch)
        assert module.trains_vision is (frozen == [])
    module(batch)
    assert module.trains_vision is (frozen == [])
    assert len(runs) == expected_runs  # features of a frozen tower are remembered


@pytest.mark.parametrize("path", ["shared", "plain"])
def test_a_touch_runs_the_tower_and_changes_nothing(checkpoints, path):
    processor = Processor(checkpoints["vision"])
    batch = random_batch(processor, 3, pictures=False)
    module = load(checkpoints["vision"], path=path)
    collator = Collator(processor, micro_batch_tokens=100)
    touch = collator.join([collator.blank()])
    mix = torch.ones(2, batch.num_target_tokens)
    plain, without = outputs(module, batch, mix)
    module.zero_grad()
    touched = module(batch, touch)
    (touched * mix).sum().backward()
    torch.testing.assert_close(touched, plain, atol=1e-5, rtol=0)
    assert not any("visual" in name for name in without)
    assert all(p.grad is not None for p in module.parameters())
    assert all((p.grad == 0).all() for name, p in module.named_parameters() if "visual" in name)


def test_placeholders_without_pictures_are_refused(checkpoints):
    processor = Processor(checkpoints["vision"])
    place = processor.token_id("<|image_pad|>")
    tree = Tree(prompt_ids=np.array([20, place], np.int32), answers=[Branch(token_ids=np.array([21], np.int32))])
    batch = Collator(processor, micro_batch_tokens=100).join([tree])
    with pytest.raises(RefusedRecord, match="1 image tokens in prompts without images"):
        load(checkpoints["vision"])(batch)


def test_models_whose_logits_are_no_plain_product_are_refused(checkpoints):
    with pytest.raises(ConfigError, match=r"final_logit_softcapping=30\.0"):
        load(checkpoints["gemma2"])


def test_a_path_the_architecture_does_not_have_is_refused(checkpoints):
    base = base_model(load(checkpoints["qwen2"], path="plain").model)
    base.config.layer_types = ["sliding_attention", "full_attention"]
    with pytest.raises(ConfigError, match="no such path for Qwen2ForCausalLM"):
        PolicyModule(base, path="shared", head_chunk_mib=1, image_cache_mib=1)


def test_a_sliding_window_without_kinds_of_layers_takes_the_plain_path():
    from transformers import DeepseekV3Config, MistralConfig

    def asked(config):
        return supports_shared(SimpleNamespace(config=config, _supports_attention_backend=True))

    assert [asked(MistralConfig(sliding_window=window)) for window in (4096, None)] == [False, True]
    assert not asked(DeepseekV3Config())


def test_an_attention_that_does_more_is_refused():
    layout = TreeLayout.build([2], [[1]])
    states = torch.zeros(1, 1, 3, 8)
    with pytest.raises(ConfigError, match=r"Identity has softcap: take learner\.path=plain"):
        tree_attention(torch.nn.Identity(), states, states, states, None, tree_layout=layout, softcap=30.0)
    assert tree_attention(torch.nn.Identity(), states, states, states, None, tree_layout=layout, sliding_window=None)[
        0
    ].shape == (1, 3, 1, 8)


def test_tied_weights_stand_once_under_the_name_that_is_saved(checkpoints):
    from safetensors.torch import load_file

    for kind in ("tied", "qwen2", "vision"):
        names = CheckpointNames(load(checkpoints[kind]).model)
        saved = load_file(checkpoints[kind] / "model.safetensors")
        assert {name: shape for name, _, shape in names.manifest()} == {
            name: tuple(tensor.shape) for name, tensor in saved.items()
        }
        for source in names.sources:
            name, value = names.rename(source, source.value())
            assert torch.equal(value, saved[name])
    assert ("lm_head.weight" in saved) is True
    assert "lm_head.weight" not in load_file(checkpoints["tied"] / "model.safetensors")
