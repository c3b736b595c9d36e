"""What every objective in the registry must do, whoever wrote it."""

from dataclasses import fields, is_dataclass, replace
from typing import get_type_hints

import pytest
import torch
from omegaconf import OmegaConf

from learners.examples.kinds import kind_of
from rlsys import registry
from rlsys.objectives.inputs import NEEDS, LossOutput, Objective, Sequences
from rlsys.records import EXAMPLES

registry.discover()
NAMES = sorted(registry.objective)
OPTIONAL = ("reference_logps_M", "old_logps_M", "values_M")


def make_inputs(objective, count, seed=0):
    """Random, plausible inputs of `count` examples, of whatever record the objective's kind of example has."""
    generator = torch.Generator().manual_seed(seed)
    values = {}
    for name, hint in get_type_hints(kind_of(objective.consumes).inputs_type).items():
        if hint is Sequences:
            values[name] = make_sequences(count, generator)
        elif name.startswith(("is_", "has_")):
            values[name] = torch.rand(count, generator=generator) < 0.7
        elif name.endswith("_B"):
            own = 0.5 + torch.rand(count, generator=generator)
            values[name] = own.requires_grad_() if name.endswith("_scores_B") else own
    return kind_of(objective.consumes).inputs_type(**values)


def make_sequences(count, generator):
    lengths = torch.randint(1, 20, (count,), generator=generator)
    total = int(lengths.sum())
    logps_M = -2 * torch.rand(total, generator=generator)
    near = {name: logps_M + 0.1 * torch.randn(total, generator=generator) for name in OPTIONAL}
    return Sequences(
        size=count,
        owners_M=torch.repeat_interleave(torch.arange(count), lengths),
        mask_M=torch.ones(total),
        logps_M=logps_M.requires_grad_(),
        **near,
    )


def changed(inputs, change):
    """The inputs with a function put over every record of sequences and every tensor."""
    return replace(inputs, **{field.name: change(getattr(inputs, field.name)) for field in own_fields(inputs)})


def own_fields(inputs):
    return [field for field in fields(inputs) if field.name != "statistics"]


def part(inputs, rows):
    def cut(value):
        if not isinstance(value, Sequences):
            return value[rows]
        chosen = (value.owners_M >= rows.start) & (value.owners_M < rows.stop)
        names = ("owners_M", "mask_M", "logps_M", *OPTIONAL)
        cut_out = {name: getattr(value, name)[chosen] for name in names}
        return Sequences(size=rows.stop - rows.start, **{**cut_out, "owners_M": cut_out["owners_M"] - rows.start})

    return changed(inputs, cut)


def with_statistics(objective, inputs, *batch):
    """The inputs with the statistics of a whole batch; of their own if no other is given."""
    if not hasattr(objective, "statistics"):
        return inputs
    found = [objective.statistics(one) for one in batch or (inputs,)]
    return replace(inputs, statistics={name: sum(one[name] for one in found).detach() for name in found[0]})


@pytest.mark.parametrize("name", NAMES)
def test_is_a_plug_in_that_hydra_can_compose(name):
    made = registry.objective.make(name)
    assert is_dataclass(made)
    assert isinstance(made, Objective)
    assert EXAMPLES[made.consumes.__name__] is made.consumes
    assert kind_of(made.consumes).inputs_type
    assert made.needs <= NEEDS
    assert made.denominator in ("examples", "tokens")
    assert OmegaConf.to_object(OmegaConf.structured(registry.objective[name])) == made


@pytest.mark.parametrize("name", NAMES)
def test_sums_over_examples_so_that_accumulation_changes_nothing(name):
    made = registry.objective.make(name)
    inputs = make_inputs(made, 7)
    whole = made(with_statistics(made, inputs))
    pieces = [part(inputs, rows) for rows in (slice(0, 3), slice(3, 7))]
    parts = [made(with_statistics(made, piece, *pieces)) for piece in pieces]
    assert whole.loss.item() == pytest.approx(sum(p.loss.item() for p in parts), rel=1e-5)
    for metric, value in whole.metrics.items():
        assert value.item() == pytest.approx(sum(p.metrics[metric].item() for p in parts), rel=1e-4, abs=1e-5), metric


@pytest.mark.parametrize("name", NAMES)
def test_is_pure_and_its_metrics_are_detached_scalars(name):
    made = registry.objective.make(name)
    inputs = with_statistics(made, make_inputs(made, 5))
    first, second = made(inputs), made(inputs)
    assert isinstance(first, LossOutput)
    assert first.loss.shape == ()
    assert first.loss.requires_grad
    assert torch.equal(first.loss, second.loss)
    assert all(value.shape == () and not value.requires_grad for value in first.metrics.values())


@pytest.mark.parametrize("name", NAMES)
def test_reads_nothing_that_it_does_not_need(name):
    made = registry.objective.make(name)
    names = [f"{need if need == 'values' else need + '_logps'}_M" for need in ("reference", "old", "values")]
    unneeded = {n: None for n in names if n.partition("_")[0] not in made.needs}
    inputs = make_inputs(made, 3)
    bare = changed(inputs, lambda value: replace(value, **unneeded) if isinstance(value, Sequences) else value)
    assert torch.equal(made(with_statistics(made, bare)).loss, made(with_statistics(made, inputs)).loss)


@pytest.mark.parametrize("name", NAMES)
def test_statistics_of_no_example_have_the_same_names(name):
    made = registry.objective.make(name)
    if hasattr(made, "statistics"):
        inputs = make_inputs(made, 3)
        none = made.statistics(part(inputs, slice(0, 0)))
        assert none.keys() == made.statistics(inputs).keys()
        assert all(value.shape == () and value.item() == 0 for value in none.values())


@pytest.mark.parametrize("name", NAMES)
def test_a_small_step_against_the_gradient_lowers_the_loss(name):
    made = registry.objective.make(name)
    inputs = with_statistics(made, make_inputs(made, 5))
    loss = made(inputs).loss
    loss.backward()

    def moved(value):
        if isinstance(value, Sequences):
            return replace(value, logps_M=moved(value.logps_M))
        return value if value.grad is None else (value - 1e-2 * value.grad).detach()

    assert made(changed(inputs, moved)).loss.item() < loss.item()
