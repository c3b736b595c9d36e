"""A method of one's own, as CONTRIBUTING.md shows it: each file does what it says."""

import importlib
import math
import sys

import numpy as np
import pytest
import torch

from rlsys import registry
from rlsys.app import config as configuration
from rlsys.asking.driver import run_program
from rlsys.objectives.inputs import ScoredInputs, Sequences
from rlsys.records import Generation, ScoredResponse
from tests.contributing import MODULES, write_examples
from tests.fakes import make_completion, make_generation, make_group


@pytest.fixture
def modules(tmp_path, monkeypatch):
    for name, value in write_examples(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield [importlib.import_module(name) for name in MODULES]
    for group, name in ((registry.feedback, "second_opinion"), (registry.objective, "plain_reinforce")):
        group.pop(name, None)
    registry.evaluation.pop("approved", None)
    for name in MODULES:
        sys.modules.pop(name, None)


def says_yes(ask, p):
    values = {"yes": math.log(p), "no": math.log(1 - p)}
    row = [values.get(token, -math.inf) for token in ask.sampling.candidate_tokens]
    return Generation(
        prompt_token_ids=np.zeros(1, np.int32), completions=(make_completion("?", candidate_values=np.float32([row])),)
    )


def test_the_feedback_asks_a_second_engine_where_the_first_is_not_sure(modules):
    waves = []

    def answer(asks):
        waves.append([ask.role for ask in asks])
        of_judge = {"sure": 0.9, "doubtful": 0.6}
        yield [
            says_yes(
                ask, 0.2 if ask.role == "labeller" else next(p for t, p in of_judge.items() if t in ask.prompt.question)
            )
            for ask in asks
        ]

    feedback = registry.feedback.make("second_opinion", unsure=0.3)
    verdicts = run_program(feedback.judge(make_group(("sure", "doubtful"))), answer)
    assert waves == [["judge", "judge"], ["labeller"]]
    assert [verdict.score for verdict in verdicts] == pytest.approx([0.9, 0.4])


def test_the_objective_is_the_policy_gradient(modules):
    tokens = Sequences.of([[-1.0, -2.0], [-0.5]])
    inputs = ScoredInputs(responses=tokens, advantages_B=torch.tensor([0.5, -1.0]), scores_B=torch.tensor([1.0, 0.0]))
    output = registry.objective.make("plain_reinforce")(inputs)
    assert float(output.loss.detach()) == pytest.approx(0.5 * 3.0 - 1.0 * 0.5)
    output.loss.backward()
    assert tokens.logps_M.grad.tolist() == [-0.5, -0.5, 1.0]


def test_the_evaluation_is_the_judges_mean(modules):
    def answer(asks):
        yield [make_generation("red circle .") if ask.role == "policy" else says_yes(ask, 0.75) for ask in asks]

    found = run_program(registry.evaluation.make("approved", num_scenes=3, resamples=10).run(), answer)
    assert found["approved"].value == pytest.approx(0.75)


def test_the_preset_composes_all_of_them(modules):
    config, _ = configuration.load(["preset=scenes", "method=opinions"])
    assert (type(config.feedback).__name__, config.feedback.unsure) == ("SecondOpinion", 0.3)
    assert config.objective.consumes is config.examples.produces is ScoredResponse
    assert set(config.evaluations) == {"scenes", "approved"} and config.evaluations["approved"].num_scenes == 20
    assert config.roles() == ["judge"] and config.roles_of_policy() == ["policy", "labeller"]
