"""Programs that ask engines: waves, order, composition."""

import pytest

from rlsys.asking.driver import advance, regroup, run_program, together, without_asking
from tests.fakes import make_ask, make_generation


def counts_down(name: str, waves: int):
    """Asks `waves` times, one question more each time; returns what it was told."""
    told = []
    for wave in range(1, waves + 1):
        generations = yield [make_ask(f"{name}{wave}.{number}") for number in range(wave)]
        told += [generation.completions[0].text for generation in generations]
    return (name, told)


class Engine:
    """Answers every question by its own words, a few at a time, and keeps what it was asked."""

    def __init__(self, at_once=2):
        self.waves, self.at_once = [], at_once

    def __call__(self, asks):
        self.waves.append([ask.prompt.question for ask in asks])
        answers = [make_generation(f"re {ask.prompt.question}") for ask in asks]
        for start in range(0, len(answers), self.at_once):
            yield answers[start : start + self.at_once]


def test_a_wave_is_the_questions_of_all_programs_that_have_not_returned():
    engine = Engine()
    found = [
        value
        for some in advance([counts_down("a", 2), counts_down("b", 0), counts_down("c", 1)], engine)
        for value in some
    ]
    assert engine.waves == [["a1.0", "c1.0"], ["a2.0", "a2.1"]]
    assert found == [("a", ["re a1.0", "re a2.0", "re a2.1"]), ("b", []), ("c", ["re c1.0"])]


def test_values_are_handed_on_in_order_as_soon_as_they_are_there():
    ready = advance(
        [counts_down("a", 1), counts_down("b", 1), counts_down("c", 2), counts_down("d", 0)], Engine(at_once=1)
    )
    assert [[name for name, _ in some] for some in ready] == [["a"], ["b"], ["c", "d"]]


def test_programs_that_only_compute_return_without_a_wave():
    engine = Engine()
    assert list(advance([counts_down("a", 0), counts_down("b", 0)], engine)) == [[("a", []), ("b", [])]]
    assert engine.waves == []
    assert without_asking(counts_down("a", 0)) == ("a", [])
    with pytest.raises(ValueError, match="a program that should only compute asks 'judge'"):
        without_asking(counts_down("a", 1))


def test_programs_asked_together_share_their_waves():
    def both():
        return (yield from together([counts_down("a", 2), counts_down("b", 1), counts_down("c", 0)]))

    engine = Engine()
    assert run_program(both(), engine) == [("a", ["re a1.0", "re a2.0", "re a2.1"]), ("b", ["re b1.0"]), ("c", [])]
    assert engine.waves == [["a1.0", "b1.0"], ["a2.0", "a2.1"]]


def test_too_few_and_too_many_generations_are_errors():
    with pytest.raises(ValueError, match="a wave of 2 questions did not get as many generations"):
        list(advance([counts_down("a", 1), counts_down("b", 1)], lambda asks: [[make_generation("x")]]))
    with pytest.raises(ValueError, match="1 more generations came than were asked for"):
        list(advance([counts_down("a", 1)], lambda asks: [[make_generation("x")] * 2]))


def test_a_batch_that_is_left_early_closes_its_programs():
    closed = []

    def program():
        try:
            yield [make_ask("q")]
        finally:
            closed.append(True)

    batch = advance([counts_down("a", 0), program()], Engine())
    assert next(batch) == [("a", [])]
    batch.close()
    assert closed == [True]


def test_an_error_of_a_program_is_raised():
    def program():
        yield [make_ask("q")]
        raise RuntimeError("no such claim")

    with pytest.raises(RuntimeError, match="no such claim"):
        run_program(program(), Engine())


def test_neighbours_are_regrouped():
    assert list(regroup([["a"], ["b", "c"], ["d"]], [2, 0, 1, 1])) == [[["a", "b"], [], ["c"]], [["d"]]]
    assert list(regroup([], [0, 0])) == [[[], []]]
    assert list(regroup([], [1])) == []
