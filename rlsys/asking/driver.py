"""Advances programs that ask engines (`rlsys.contracts.Asking`), wave by wave.

    wave 1:  program a asks 2, b asks 1, c asks 0      -> one list of 3 questions
    wave 2:  program a asks 1, b and c have returned   -> one list of 1 question

The questions of a wave are those of all programs of a batch that have not returned, in the order of the programs. A wave
depends on the batch and the generations before it only, never on timing, so that engines compute the same sums again in a
repeated run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any, Generic, TypeVar

from rlsys.contracts import Asking
from rlsys.records import Ask, Generation

T = TypeVar("T")

Answer = Callable[[Sequence[Ask]], Iterable[Sequence[Generation]]]
"""Generations of all questions of a wave, in order; those that are ready at once come as one list."""


@dataclass(kw_only=True, eq=False)
class _Running(Generic[T]):
    """A program and where it stands."""

    program: Asking[T]
    asks: list[Ask] = field(default_factory=list)
    """Its questions of the current wave."""
    returned: bool = False
    value: Any = None

    def resume(self, generations: list[Generation] | None) -> None:
        """Send the program its generations (`None` starts it); it asks again or returns."""
        try:
            self.asks = list(self.program.send(generations))
        except StopIteration as done:
            self.returned, self.value = True, done.value


def advance(programs: Iterable[Asking[T]], answer: Answer) -> Iterator[list[T]]:
    """Run the programs of a batch to their ends.

    Yields:
        Values in the order of the programs; those that are there at once, each soon after it and all before it have
        returned, are one list.

    Raises:
        ValueError: `answer` gave more or fewer generations than questions were asked.
    """
    batch = [_Running(program=program) for program in programs]
    waiting = deque(batch)
    try:
        for running in batch:
            running.resume(None)
        yield from _returned(waiting)
        while waiting:
            asking = [running for running in batch if not running.returned]
            wave = [ask for running in asking for ask in running.asks]
            left = iter(asking)
            # The sizes are taken now: a program that is resumed has other questions.
            for whole in regroup(answer(wave), [len(running.asks) for running in asking]):
                for generations, running in zip(whole, left, strict=False):
                    running.resume(generations)
                yield from _returned(waiting)
            if next(left, None) is not None:
                raise ValueError(f"a wave of {len(wave)} questions did not get as many generations")
    finally:
        for running in batch:
            running.program.close()


def together(programs: Sequence[Asking[T]]) -> Asking[list[T]]:
    """Several programs as one, which asks their questions in common waves and returns their values in order."""
    batch = [_Running(program=program) for program in programs]
    for running in batch:
        running.resume(None)
    while asking := [running for running in batch if not running.returned]:
        left = iter((yield [ask for running in asking for ask in running.asks]))
        for running in asking:
            running.resume(list(islice(left, len(running.asks))))
    return [running.value for running in batch]


def run_program(program: Asking[T], answer: Answer) -> T:
    """The value of one program."""
    ((value,),) = advance([program], answer)
    return value


def without_asking(program: Asking[T]) -> T:
    """The value of a program that only computes.

    Raises:
        ValueError: it asks an engine.
    """
    return run_program(program, _nobody)


def regroup(ready: Iterable[Sequence[T]], sizes: Iterable[int]) -> Iterator[list[list[T]]]:
    """Neighbours put together, `sizes` of them each; those that are whole at once are one list.

    >>> list(regroup([["a"], ["b", "c"], ["d"]], [2, 0, 1, 1]))
    [[['a', 'b'], [], ['c']], [['d']]]
    """
    left, found = deque(sizes), deque()
    for some in chain(ready, [()]):  # the empty one lets go what needs nothing, if nothing comes
        found.extend(some)
        whole = []
        while left and left[0] <= len(found):
            whole.append([found.popleft() for _ in range(left.popleft())])
        if whole:
            yield whole
    if found:
        raise ValueError(f"{len(found)} more generations came than were asked for")


def _returned(waiting: deque[_Running[T]]) -> Iterator[list[T]]:
    """The values that may be handed on now: those of programs before which none is still running."""
    values = []
    while waiting and waiting[0].returned:
        values.append(waiting.popleft().value)
    if values:
        yield values


def _nobody(asks: Sequence[Ask]) -> Iterator[list[Generation]]:
    if asks:
        raise ValueError(f"a program that should only compute asks {asks[0].role!r}")
    yield []
