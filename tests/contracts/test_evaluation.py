"""What every evaluation in the registry promises: a repeatable program, and a direction for every metric it returns."""

import json

import pytest

from rlsys import registry
from rlsys.asking.driver import run_program
from rlsys.records import Generation
from tests.fakes import make_completion, make_generation

registry.discover()


def make(name, folder):
    rows = folder / "prompts.jsonl"
    rows.write_text(
        "".join(json.dumps({"id": str(number), "prompt": f"question {number} ?"}) + "\n" for number in range(6))
    )
    options = {"judged": {"path": str(rows)}}.get(name, {"num_scenes": 6})
    return registry.evaluation.make(name, resamples=10, **options)


def answer(asks):
    """The same words to everything, and no candidate's values; the last question gets no answer."""
    silent = Generation(prompt_token_ids=make_generation().prompt_token_ids, completions=())
    texts = ["yes", "circle red at north . square blue at south ."]
    found = [make_generation(texts[number % 2]) for number in range(len(asks))]
    yield [*found[:-1], silent] if found else []


@pytest.mark.parametrize("name", sorted(registry.evaluation))
def test_an_evaluation_is_a_program_with_directions(name, tmp_path):
    evaluation = make(name, tmp_path)
    asks = next(make(name, tmp_path).run())
    assert {ask.role for ask in asks} <= set(evaluation.roles) and "policy" in evaluation.roles
    assert asks == next(make(name, tmp_path).run()), "the same questions with the same seeds"
    found = run_program(evaluation.run(), answer)
    assert found and set(found) <= set(evaluation.directions)
    assert set(evaluation.directions.values()) <= {-1, 0, 1}
    assert found == run_program(make(name, tmp_path).run(), answer)


@pytest.mark.parametrize("name", sorted(registry.evaluation))
def test_a_policy_that_says_nothing_is_measured_without_an_error(name, tmp_path):
    def mute(asks):
        yield [make_generation("") for _ in asks]

    found = run_program(make(name, tmp_path).run(), mute)
    assert set(found) <= set(make(name, tmp_path).directions)
    assert make_completion("").text == ""
