"""The plan of a learner rank's memory; tests/integration/test_learner_memory.py holds it against the real DeepSpeed."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from learners.config import LearnerConfig, LoraConfig
from learners.memory import Parameters, max_starts, plan_memory
from rlsys.app import config as configuration
from rlsys.app.plan import ModelSize, learner_memory, learner_role, model_size, round_needs, round_plans
from rlsys.errors import ConfigError
from rlsys.schedules.phases import Phase, Schedule

MIB = 1 << 20


def qwen2_5_7b():
    """Shapes of Qwen2.5-7B's weights on disk."""
    shapes = {
        "model.embed_tokens.weight": (152064, 3584),
        "lm_head.weight": (152064, 3584),
        "model.norm.weight": (3584,),
    }
    for layer in range(28):
        attention, mlp = f"model.layers.{layer}.self_attn", f"model.layers.{layer}.mlp"
        for name, rows in (("q_proj", 3584), ("k_proj", 512), ("v_proj", 512)):
            shapes |= {f"{attention}.{name}.weight": (rows, 3584), f"{attention}.{name}.bias": (rows,)}
        shapes[f"{attention}.o_proj.weight"] = (3584, 3584)
        shapes |= {f"{mlp}.{name}.weight": (18944, 3584) for name in ("gate_proj", "up_proj")}
        shapes[f"{mlp}.down_proj.weight"] = (3584, 18944)
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"model.layers.{layer}.{name}.weight"] = (3584,)
    return shapes


def test_adapters_and_frozen_parameters_are_counted_in_shapes():
    shapes = qwen2_5_7b()
    assert Parameters.of_shapes(shapes, LearnerConfig()) == Parameters(num_all=7_615_616_512, num_trained=7_615_616_512)
    # 28 layers, rank 16: q and o have 3584 + 3584 rows and columns, k and v 3584 + 512.
    adapters = LearnerConfig(lora=LoraConfig(r=16))
    assert Parameters.of_shapes(shapes, adapters) == Parameters(num_all=7_625_709_056, num_trained=10_092_544)
    half = LearnerConfig(lora=LoraConfig(r=16), freeze=["q_proj", "o_proj"])
    assert Parameters.of_shapes(shapes, half).num_trained == 28 * 16 * 2 * (3584 + 512)
    everywhere = LearnerConfig(lora=LoraConfig(r=1, target_modules=["all-linear"]))
    assert Parameters.of_shapes(shapes, everywhere).num_trained == 28 * (2 * 7168 + 2 * 4096 + 3 * 22528)
    no_embeddings = LearnerConfig(freeze=["embed_tokens", "lm_head"])
    assert Parameters.of_shapes(shapes, no_embeddings).num_trained == 7_615_616_512 - 2 * 152064 * 3584


@pytest.mark.parametrize(("frozen", "left"), [("visual", 10), ("language_model", 12), ("layers.0", 15), ("merger", 17)])
def test_parts_of_older_vision_checkpoints_are_known_by_their_names_in_the_module(frozen, left):
    shapes = {
        "visual.merger.weight": (2,),
        "visual.x.weight": (7,),
        "model.layers.0.w": (4,),
        "model.layers.10.w": (3,),
    }
    shapes["lm_head.weight"] = (3,)
    assert Parameters.of_shapes(shapes, LearnerConfig(freeze=[frozen])).num_trained == left


def test_without_shapes_adapters_are_one_percent_and_nothing_is_frozen():
    assert Parameters.of_number(1000, LearnerConfig(freeze=["visual"])) == Parameters(num_all=1000, num_trained=1000)
    adapters = LearnerConfig(lora=LoraConfig(r=4))
    assert Parameters.of_number(1000, adapters) == Parameters(num_all=1010, num_trained=10)


FULL = Parameters(num_all=100 * MIB, num_trained=100 * MIB)
"""Few enough for ZeRO-3 to hold gathered at a time."""


@pytest.mark.parametrize(
    ("words", "weights", "gradients", "optimizer"),
    [
        ("fp32 0 1", 4, 4, 8),
        ("fp32 0 4", 4, 4 + 4, 8),
        ("fp32 1 4", 4, 4 + 0.190735, 12 / 4),
        ("fp32 2 4", 4, 8 / 4 + 0.190735, 12 / 4),
        ("fp32 3 4", 4 / 4, 4 / 4 + 0.190735 + 4 + 1.907349, 12 / 4),
        ("fp32 3 1", 4, 8 + 0.190735, 12),
        ("bf16 0 1", 2, 8, 12),
        ("bf16 1 4", 2, 2 + 0.095367, 12 / 4),
        ("bf16 2 4", 2, 8 / 4, 12 / 4),
        ("bf16 3 4", 2 / 4, 2 / 4 + 0.095367 + 2 + 0.953674, 12 / 4),
    ],
)
def test_what_a_rank_holds_at_each_stage(words, weights, gradients, optimizer):
    """Bytes per parameter; the buffer has 5e6 elements, and ZeRO-3 gathers 5e7 ahead."""
    precision, stage, ranks = words.split()
    config = LearnerConfig(precision=precision, zero_stage=int(stage), num_ranks=int(ranks))
    found = plan_memory(config, FULL)
    per_parameter = [part / FULL.num_all for part in (found.weights, found.gradients, found.optimizer, found.copies)]
    assert per_parameter == pytest.approx([weights, gradients, optimizer, 0], abs=1e-5)


@pytest.mark.parametrize(
    ("options", "num_starts", "copies"),
    [
        ({"initial_copy": True}, 0, 4),
        ({"initial_copy": True, "precision": "bf16"}, 0, 2),
        ({"initial_copy": True, "lora": LoraConfig(r=4)}, 0, 0),
        ({"ema_decay": 0.9, "precision": "bf16"}, 0, 4),
        ({"ema_decay": 0.9, "initial_copy": True, "precision": "bf16"}, 3, 4 + 2 + 3 * 2),
        ({"ema_decay": 0.9, "precision": "bf16", "zero_stage": 3, "num_ranks": 2}, 1, 6 / 2),
        ({"ema_decay": 0.9, "precision": "bf16", "zero_stage": 2, "num_ranks": 2}, 1, 6),
    ],
    ids=str,
)
def test_copies_are_of_the_trained_weights(options, num_starts, copies):
    parameters = Parameters(num_all=1000, num_trained=100)
    assert plan_memory(LearnerConfig(**options), parameters, num_starts=num_starts).copies == copies * 100


@pytest.mark.parametrize(
    ("phases", "most"),
    [
        ([{"rounds": 5}], 0),
        ([{"rounds": 5, "lag": 1}], 2),
        ([{"rounds": 5, "lag": 2, "reference": "ema"}], 3),
        ([{"rounds": 2, "lag": 2}], 2),
        ([{"rounds": 5, "replay": "accumulated"}], 1),
        ([{"rounds": 5, "replay": "accumulated", "reference": "initial"}], 0),
        ([{"rounds": 5}, {"rounds": 5, "lag": 1, "replay": "accumulated"}, {"rounds": 1, "lag": 3}], 3),
    ],
    ids=str,
)
def test_weights_at_starts_of_rounds_are_kept_as_long_as_the_lag(phases, most):
    schedule = Schedule([Phase(**phase) for phase in phases])
    plans = map(schedule.plan, range(schedule.num_rounds))
    assert max_starts([replace(plan, brings_others="replay" in plan.options) for plan in plans]) == most


@pytest.mark.parametrize(
    ("phases", "options", "most"),
    [
        (
            [{"rounds": 3, "examples": "desirable", "objective": "kto"}],
            {},
            1,
        ),  # its mismatched responses have no recorded logprobs
        ([{"rounds": 3, "examples": "desirable", "objective": "kto", "reference": "initial"}], {}, 0),
        ([{"rounds": 3, "objective": "simpo", "lag": 2}], {}, 0),  # it needs no reference
        ([{"rounds": 3, "objective": "simpo"}, {"rounds": 3, "lag": 2}], {}, 3),
        ([{"rounds": 3}], {"start_copy": True}, 1),
        ([{"rounds": 3}], {}, 0),
    ],
    ids=str,
)
def test_what_an_objective_needs_decides_the_copies_that_are_planned(phases, options, most):
    given = ", ".join("{" + ", ".join(f"{key}: {value}" for key, value in phase.items()) + "}" for phase in phases)
    words = ["preset=scenes", "learner.initial_copy=true", f"schedule.phases=[{given}]"]
    config, _ = configuration.load([*words, *(f"learner.{key}={str(value).lower()}" for key, value in options.items())])
    plans = round_plans(config)
    assert max_starts(plans, round_needs(config, plans), start_copy=config.learner.start_copy) == most


def test_adapters_on_a_model_of_seven_billion_fit_one_gpu():
    policy = ModelSize(num_parameters=7_615_616_512, shapes=qwen2_5_7b())
    learner = LearnerConfig(precision="bf16", lora=LoraConfig(r=16), initial_copy=True, gpus=1)
    # 14.20 GiB of weights, 0.11 of optimizer, and 1.88 of gradients with DeepSpeed's two buffers of 5e8 elements.
    assert learner_role(learner, policy).gpu_memory_gib == pytest.approx(16.20, abs=0.01)
    assert str(learner_memory(learner, policy)) == "weights 14.2, gradients 1.9, optimizer 0.1, copies 0.0 GiB"
    whole = learner_role(LearnerConfig(precision="bf16", gpus=1), policy).gpu_memory_gib
    assert whole == pytest.approx(22 * 7_615_616_512 / (1 << 30), abs=0.01)  # 2 + 12, and 8 in the step


def test_headers_on_disk_say_more_than_the_configuration(tmp_path):
    save_file({"a.weight": torch.zeros(2, 3), "a.bias": torch.zeros(2)}, tmp_path / "model.safetensors")
    assert model_size(str(tmp_path), 7.0) == ModelSize(num_parameters=8, shapes={"a.weight": (2, 3), "a.bias": (2,)})
    assert model_size("somewhere/else", 7.0) == ModelSize(num_parameters=7_000_000_000)
    assert learner_memory(LearnerConfig(), model_size("somewhere/else", None)) is None
    with pytest.raises(ConfigError, match=r"num_parameters_b must be > 0, got -1"):
        model_size(str(tmp_path), -1)
