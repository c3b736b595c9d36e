"""The judged evaluation: win rates by hand, in both orders; and the names of several evaluations' metrics."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from rlsys.app.evaluate import main as evaluate
from rlsys.asking.driver import run_program
from rlsys.errors import ConfigError
from rlsys.evaluations.judged import Judged, refuses
from rlsys.evaluations.names import directions, told_apart
from rlsys.evaluations.scenes import ScenesEvaluation, ScenesPolarEvaluation
from rlsys.records import Generation
from tests.fakes import make_completion, make_generation

NONE = Generation(prompt_token_ids=np.zeros(0, np.int32), completions=())


@pytest.fixture
def path(tmp_path):
    rows = tmp_path / "prompts.jsonl"
    rows.write_text("".join(json.dumps({"id": str(i), "prompt": f"q{i}"}) + "\n" for i in range(4)))
    return str(rows)


def says(texts):
    """A policy with these responses."""

    def answer(asks):
        if asks and asks[0].role == "policy":
            yield [NONE if text is None else make_generation(text) for text in texts]
        else:
            yield [likes_longer(ask) for ask in asks]

    return answer


def likes_longer(ask):
    """A judge that is sure of the longer response, and of the first one besides: P(A) is 0.9 or 0.3."""
    lines = ask.prompt.question.split("\n")
    a, b = lines[lines.index("[Response A]") + 1], lines[lines.index("[Response B]") + 1]
    if "mute" in (a, b):
        return NONE
    p = 0.9 if len(a) > len(b) else 0.3
    values = {"A": math.log(p), "B": math.log(1 - p)}
    row = [values.get(token, -math.inf) for token in ask.sampling.candidate_tokens]
    return Generation(
        prompt_token_ids=np.zeros(1, np.int32), completions=(make_completion("?", candidate_values=np.float32([row])),)
    )


def run(evaluation, texts):
    return {name: found.value for name, found in run_program(evaluation.run(), says(texts)).items()}


START = ["aa", "bb b", "cc", "I'm sorry, but I can't help with that."]


def test_the_first_measurement_is_the_baseline(path):
    found = run(Judged(path=path, resamples=10), START)
    assert found == pytest.approx({"win_rate": 0.5, "mean_length": 3.0, "refusal_share": 0.25, "judge_failed": 0.0})


def test_wins_are_means_of_both_orders_and_equal_texts_are_ties(path):
    evaluation = Judged(path=path, resamples=10)
    run(evaluation, START)
    found = run(evaluation, ["aaaa", "b", "cc", None])
    # longer: (0.9 + 0.7) / 2 = 0.8; shorter: (0.3 + 0.1) / 2 = 0.2; equal: 0.5; the last did not come.
    assert found == pytest.approx({"win_rate": 0.5, "mean_length": 1.0, "refusal_share": 0.0, "judge_failed": 0.25})
    found = run(evaluation, ["aaaa", "bb bb", "ccc", "mute"])
    assert found["win_rate"] == pytest.approx(0.8)
    assert found["judge_failed"] == 0.25


def test_close_comparisons_are_ties(path):
    evaluation = Judged(path=path, resamples=10, tie=0.35)
    run(evaluation, START)
    assert run(evaluation, ["aaaa", "bbbbbb", "ccc", "d"])["win_rate"] == 0.5


def test_a_resumed_run_compares_with_the_same_responses(path, tmp_path):
    first = Judged(path=path, resamples=10, folder=str(tmp_path / "kept"))
    run(first, START)
    resumed = Judged(path=path, resamples=10, folder=str(tmp_path / "kept"))
    longer = [f"{text} longer" for text in START]
    assert run(resumed, longer)["win_rate"] == pytest.approx(0.8) == run(first, longer)["win_rate"]
    another = Judged(path=path, resamples=10, against=str(tmp_path / "kept" / "baseline.msgpack"))
    assert run(another, longer)["win_rate"] == pytest.approx(0.8)


def test_a_baseline_of_other_prompts_is_refused(path, tmp_path):
    kept = tmp_path / "kept"
    run(Judged(path=path, resamples=10, folder=str(kept)), START)
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({"id": str(i), "prompt": f"q{i}"}) + "\n" for i in (0, 1, 7, 3)))
    against = str(kept / "baseline.msgpack")
    with pytest.raises(ConfigError, match=r"other prompts: prompt 2 is '2' there and '7' in .*other\.jsonl"):
        run(Judged(path=str(other), resamples=10, against=against), START)
    with pytest.raises(ConfigError, match=r"other prompts: prompt 3 is '3' there and None in"):
        run(Judged(path=path, num_prompts=3, resamples=10, against=against), START[:3])


def test_a_policy_that_has_moved_is_no_baseline(path):
    def moved(asks):
        yield [replace(make_generation(text), version=2) for text in START]

    with pytest.raises(ConfigError, match=r"the policy is at version 2 and no responses of version 0 were kept"):
        run_program(Judged(path=path, resamples=10).run(), moved)


def test_a_measurement_outside_a_run_names_its_baseline(path, capsys):
    assert evaluate(["preset=scenes", "evaluations=judged", f"evaluations.judged.path={path}"]) == 2
    said = "rlsys: evaluations.judged.against must name the responses to compare with, got ''\n"
    assert capsys.readouterr().err == said


def test_mistakes_are_one_line(path):
    with pytest.raises(ConfigError, match=r"evaluation\.path must name a file of held-out prompts"):
        Judged()
    with pytest.raises(ConfigError, match=r"feedback.tie must be in \[0, 0.5\), got 0.5"):
        Judged(path=path, tie=0.5)
    with pytest.raises(ConfigError, match=r"evaluation\.against: no file 'nowhere'"):
        run(Judged(path=path, against="nowhere"), START)


@pytest.mark.parametrize(
    ("text", "is_refusal"),
    [
        ("I'm sorry, I cannot answer that.", True),
        ("I can't see an image.", True),
        ("As an AI, I have no opinion.", True),
        ("The man in the photo is sorry.", False),
        ("A cat. " * 20 + "I cannot say more.", False),
        ("", False),
    ],
)
def test_refusals_are_known_by_their_first_words(text, is_refusal):
    assert refuses(text) is is_refusal


def test_metrics_that_two_evaluations_share_get_the_evaluations_name():
    evaluations = {"scenes": ScenesEvaluation(), "polar": ScenesPolarEvaluation()}
    known = directions(evaluations)
    assert known["chair_i"] == -1 and known["accuracy"] == +1
    assert known["scenes.unparsable"] == known["polar.unparsable"] == -1 and "unparsable" not in known
    found = told_apart({"scenes": {"chair_i": 1, "unparsable": 2}, "polar": {"unparsable": 3}}, evaluations)
    assert found == {"chair_i": 1, "scenes.unparsable": 2, "polar.unparsable": 3}
    assert told_apart({"scenes": {"unparsable": 2}}, {"scenes": ScenesEvaluation()}) == {"unparsable": 2}
