"""What every example builder in the registry promises, whatever it makes, on many random groups."""

import inspect

import numpy as np
import pytest

from learners.examples.kinds import kind_of
from rlsys import registry
from rlsys.contracts import ExampleBuilder
from rlsys.journal import Journal
from rlsys.records import EXAMPLES, ScoredGroup
from tests.fakes import make_group, make_prompt, make_verdict, sampled_response

registry.discover()
BUILDERS = sorted(registry.examples)


def random_group(seed: int) -> ScoredGroup:
    random = np.random.default_rng(seed)
    names = [f"response {number}" for number in range(int(random.integers(0, 7)))]
    responses = tuple(sampled_response(name, seed=1, count=int(random.integers(1, 4))) for name in names)
    scores = [float(random.integers(0, 4)) if random.random() > 0.2 else None for _ in names]
    group = make_group(prompt=make_prompt(f"p{seed}"), round=1, index=seed, responses=responses)
    return ScoredGroup(group=group, verdicts=tuple(map(make_verdict, scores)))


@pytest.mark.parametrize("name", BUILDERS)
def test_builder(name, tmp_path):
    build = registry.examples.make(name)
    assert isinstance(build, ExampleBuilder) and not inspect.isabstract(type(build))
    assert EXAMPLES[build.produces.__name__] is build.produces
    kind, built = kind_of(build.produces), []
    with Journal(tmp_path) as journal:
        journal.begin(1)
        for group in map(random_group, range(60)):
            examples = build(group)
            assert examples == build(group), "the same group gives the same examples"
            assert {type(example) for example in examples} <= {build.produces}
            assert all(kind.cost(example) > 0 for example in examples)
            assert len({kind.group(example) for example in examples}) <= 1, "examples of a prompt belong together"
            if not group.scored:
                assert examples == []
            journal.append(1, *examples)
            built += examples
        assert list(journal.read(1, build.produces)) == built
    assert len(built) > 20


@pytest.mark.parametrize("name", BUILDERS)
def test_some_objective_learns_from_what_it_makes(name):
    produces = registry.examples[name].produces
    assert any(objective.consumes is produces for objective in registry.objective.values())
