"""A kind of example from outside of this repository: one record and one adapter."""

import numpy as np
import pytest

from learners.answers import Answers
from learners.collate import Collator
from learners.examples.kinds import kind_of
from learners.shards import shards
from learners.tokens import Processor
from rlsys import registry
from rlsys.errors import ConfigError
from rlsys.journal import Journal
from rlsys.records import EXAMPLES, Response, example
from rlsys.worlds.scenes.policy import Shape, make_policy
from tests.fakes import make_prompt

MODULE = """
from dataclasses import dataclass

from learners.examples.kinds import ExampleKind, example_kind
from rlsys.objectives.inputs import Inputs, Sequences
from rlsys.records import Prompt, Response, TokenIds, example

@example
@dataclass(frozen=True, kw_only=True)
class Triple:
    prompt: Prompt
    prompt_token_ids: TokenIds
    first: Response
    second: Response
    third: Response

@dataclass(frozen=True, kw_only=True)
class TripleInputs(Inputs):
    first: Sequences
    second: Sequences
    third: Sequences

@example_kind(Triple)
class Triples(ExampleKind):
    inputs_type = TripleInputs

    def units(self, records, trees):
        return trees.shared((r, [trees.branch(one, None) for one in (r.first, r.second, r.third)]) for r in records)

    def inputs(self, batch, answers):
        return TripleInputs(first=answers.at(0), second=answers.at(1), third=answers.at(2))

    def cost(self, record):
        return float(sum(len(one.token_ids) for one in (record.first, record.second, record.third)))
"""
SMALL = Shape(hidden=32, layers=1, mlp=32, vision_hidden=32, vision_layers=1, vision_mlp=32)


@pytest.fixture
def triple(tmp_path, monkeypatch):
    (tmp_path / "my_triples.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(registry.PLUGINS, "my_triples")
    registry.discover()
    kind = EXAMPLES["Triple"]
    one, two, three = (Response(text="", token_ids=np.array([20 + n, 30], np.int32)) for n in range(3))
    yield kind(prompt=make_prompt(), prompt_token_ids=np.array([1, 2], np.int32), first=one, second=two, third=three)
    del EXAMPLES["Triple"]


def test_a_kind_from_outside_is_journalled_shared_out_and_trained_on(triple, tmp_path):
    import torch

    with Journal(tmp_path / "journal") as journal:
        journal.begin(0)
        journal.append(0, triple)
        (read,) = journal.read(0, type(triple))
    assert read.third == triple.third
    assert shards([triple], 2) == [[triple], []]
    processor = Processor(make_policy(tmp_path / "policy", seed=0, shape=SMALL))
    (batch,) = Collator(processor, micro_batch_tokens=100)([read])
    inputs = kind_of(type(triple)).inputs(batch, Answers(batch, torch.tensor([[1.0, 2, 3, 4, 5, 6], [0.0] * 6])))
    assert (inputs.first.logps_B.item(), inputs.third.logps_B.item()) == (3.0, 11.0)


def test_two_records_of_one_name_are_refused():
    other = type("PreferencePair", (), {"__module__": "elsewhere"})
    with pytest.raises(ConfigError, match=r"PreferencePair is already rlsys.records.examples.PreferencePair"):
        example(other)
