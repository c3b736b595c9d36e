"""What every objective in the registry must do, whoever wrote it."""

from dataclasses import fields, is_dataclass

import pytest
import torch
from omegaconf import OmegaConf

from rlsys import registry
from rlsys.objectives.inputs import CritiqueInputs, LossOutput, Objective, PairInputs, SequenceInputs
from rlsys.records import CritiquePair, Demonstration, PreferencePair

registry.discover()
NAMES = sorted(registry.objective)
INPUTS = {Demonstration: SequenceInputs, PreferencePair: PairInputs, CritiquePair: CritiqueInputs}


def make_inputs(kind, count, seed=0):
    """Random, plausible inputs of `count` examples."""
    generator = torch.Generator().manual_seed(seed)
    values = {}
    for field in fields(kind):
        if field.name == "has_critiques_B":
            values[field.name] = torch.rand(count, generator=generator) < 0.7
        elif "num_tokens" in field.name:
            values[field.name] = torch.randint(1, 20, (count,), generator=generator)
        elif field.name == "beta_scale_B":
            values[field.name] = 1 + torch.rand(count, generator=generator)
        elif "scores" in field.name:
            values[field.name] = torch.randn(count, generator=generator).requires_grad_()
        else:
            values[field.name] = -10 * torch.rand(count, generator=generator)
            if not field.name.startswith("reference"):
                values[field.name].requires_grad_()
    return kind(**values)


def part(inputs, rows):
    return type(inputs)(**{field.name: getattr(inputs, field.name)[rows] for field in fields(inputs)})


@pytest.mark.parametrize("name", NAMES)
def test_is_a_plug_in_that_hydra_can_compose(name):
    made = registry.objective.make(name)
    assert is_dataclass(made)
    assert isinstance(made, Objective)
    assert made.consumes in INPUTS
    assert made.denominator in ("examples", "tokens")
    assert OmegaConf.to_object(OmegaConf.structured(registry.objective[name])) == made


@pytest.mark.parametrize("name", NAMES)
def test_sums_over_examples_so_that_accumulation_changes_nothing(name):
    made = registry.objective.make(name)
    inputs = make_inputs(INPUTS[made.consumes], 7)
    whole = made(inputs)
    parts = [made(part(inputs, rows)) for rows in (slice(0, 3), slice(3, 7))]
    assert whole.loss.item() == pytest.approx(sum(p.loss.item() for p in parts), rel=1e-5)
    for metric, value in whole.metrics.items():
        assert value.item() == pytest.approx(sum(p.metrics[metric].item() for p in parts), rel=1e-4, abs=1e-5), metric


@pytest.mark.parametrize("name", NAMES)
def test_is_pure_and_its_metrics_are_detached_scalars(name):
    made = registry.objective.make(name)
    inputs = make_inputs(INPUTS[made.consumes], 5)
    first, second = made(inputs), made(inputs)
    assert isinstance(first, LossOutput)
    assert first.loss.shape == ()
    assert first.loss.requires_grad
    assert torch.equal(first.loss, second.loss)
    assert all(value.shape == () and not value.requires_grad for value in first.metrics.values())


@pytest.mark.parametrize("name", NAMES)
def test_a_small_step_against_the_gradient_lowers_the_loss(name):
    made = registry.objective.make(name)
    inputs = make_inputs(INPUTS[made.consumes], 5)
    loss = made(inputs).loss
    loss.backward()
    moved = {}
    for field in fields(inputs):
        value = getattr(inputs, field.name)
        moved[field.name] = value if value.grad is None else (value - 1e-2 * value.grad).detach()
    assert made(type(inputs)(**moved)).loss.item() < loss.item()
