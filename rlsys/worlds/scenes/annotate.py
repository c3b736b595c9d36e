"""The annotator, which knows the ground truth of `train` and `annotated` scenes and criticises responses claim by claim.

A critique has one short sentence per statement of the response, in the response's order, then one per omission:
`circle red true . square blue false . cross black misplaced . missing triangle green .`
A critique does not contain the `<score>` token; code that trains on it appends the token.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from rlsys.asking.prompts import judge_prompt
from rlsys.records import CritiquePair, Prompt
from rlsys.seeding import generator
from rlsys.worlds.scenes.language import JUDGE_TEMPLATE, read_question, true_answer
from rlsys.worlds.scenes.source import make_prompt, read_id, scene_of
from rlsys.worlds.scenes.truth import Answer, Sentence, check, parse
from rlsys.worlds.scenes.world import MAX_OBJECTS, Kind, Scene, name

ANNOTATED_SPLITS = ("train", "annotated")
_OMISSION_WORTH = 1.0 / (MAX_OBJECTS + 1)
"""Penalty per omission, chosen so that all omissions of a description together weigh less than one false statement."""


@dataclass(frozen=True, slots=True)
class Annotation:
    """The annotator's judgement of one response."""

    critique: str
    worth: float
    """0 is best. The worth is reduced by 1 for every statement that is not true and by 0.2 for every omitted object. If the
    response has no readable statement at all, an omitted object costs 1.2, so that changing the subject never pays.
    """


def annotate(prompt: Prompt, answer: str) -> Annotation:
    """Critique and worth of a response to a prompt of an annotated split.

    Raises:
        ValueError: the prompt is not of this world, or of a split whose truth the annotator may not see.
    """
    split = read_id(prompt.id)[0]
    if split not in ANNOTATED_SPLITS:
        raise ValueError(f"the annotator sees only splits {', '.join(ANNOTATED_SPLITS)}, got prompt {prompt.id!r}")
    scene = scene_of(prompt)
    parsed = parse(answer, prompt.question)
    verdicts = _verdicts(parsed, scene)
    missing = _missing(parsed, scene, prompt.question)
    sentences = [f"{subject} {verdict} ." for subject, verdict in verdicts]
    sentences += [f"missing {name(kind)} ." for kind in missing]
    faults = sum(verdict != "true" for _, verdict in verdicts)
    if not any(sentence.readable for sentence in parsed.sentences):
        faults += len(missing)
    return Annotation(" ".join(sentences), -faults - _OMISSION_WORTH * len(missing))


def _verdicts(parsed: Answer, scene: Scene) -> list[tuple[str, str]]:
    """(subject of the sentence, verdict) per sentence; the subject `answer` stands for a piece that could not be read."""
    verdicts: list[tuple[str, str]] = []
    said: set[str] = set()
    for sentence in parsed.sentences:
        subject = _subject(sentence)
        verdict = _verdict(sentence, scene)
        verdicts.append((subject, "repeated" if verdict == "true" and subject in said else verdict))
        said.add(subject)
    return verdicts


def _subject(sentence: Sentence) -> str:
    if not sentence.readable:
        return "answer"
    named = {name(claim.kind) for claim in sentence.claims if claim.kind}
    short = sentence.text.endswith((" yes", " no")) or not any(kind in sentence.text for kind in named)
    return named.pop() if len(named) == 1 and not short else sentence.text


def _verdict(sentence: Sentence, scene: Scene) -> str:
    if not sentence.readable:
        return "unclear"
    results = [(claim.about, check(claim, scene)) for claim in sentence.claims]
    if all(holds for _, holds in results):
        return "true"
    only_places = all(about == "position" for about, holds in results if not holds)
    return "misplaced" if only_places and any(about == "object" for about, _ in results) else "false"


def _missing(parsed: Answer, scene: Scene, question: str) -> list[Kind]:
    """Objects that a description omits. Responses to other questions omit nothing."""
    asked = read_question(question)
    if asked is not None and asked.task != "describe":
        return []
    mentioned = set(parsed.mentions)
    return [placed.kind for placed in scene.objects if placed.kind not in mentioned]


def shorten(answer: str, rng: np.random.Generator) -> str:
    """The response without one of its statements; unchanged if it has fewer than two."""
    statements = [piece.strip() for piece in answer.split(".") if piece.strip()]
    if len(statements) < 2:
        return answer
    statements.pop(int(rng.integers(len(statements))))
    return " ".join(f"{statement} ." for statement in statements)


def disturbed(prompt: Prompt, answer: str, rng: np.random.Generator) -> str:
    """A response of the kind that a policy produces when good responses alone are not rewarded enough: an empty response, a
    short reply to another question about the scene (`yes`, `two`), or such a word appended to the response.
    """
    split, index, _ = read_id(prompt.id)
    other = make_prompt(split, index, str(rng.choice(["polar", "open"])))
    question = read_question(other.question)
    assert question is not None
    word = true_answer(scene_of(prompt), question).split(" , ")[-1]
    return ["", word, f"{answer} {word}"][int(rng.integers(3))]


def critique_pairs(
    answered: Iterable[tuple[Prompt, Sequence[str]]],
    *,
    max_pairs_per_prompt: int = 4,
    num_shortened: int = 2,
    disturbed_rate: float = 0.5,
    seed: int = 0,
) -> Iterator[CritiquePair]:
    """Annotated pairs for objective `critique_reward`: two responses to one prompt that differ in worth, the better one chosen.

    Args:
        answered: prompts of annotated splits, each with responses to it (equal responses are used once).
        max_pairs_per_prompt: if a prompt has more pairs, a random choice of this many is kept; 0 keeps all.
        num_shortened: number of responses that are also shown with one statement removed. As long as the policy omits nothing,
            a critique reward model has no other chance to learn what an omission is, and the rounds would then teach silence.
        disturbed_rate: probability that a description's first response is also shown disturbed, for the same reason.
        seed: seed of all random choices.

    Raises:
        ValueError: a prompt of a split that the annotator may not see, a negative number, or a rate outside 0..1.
    """
    if not 0 <= disturbed_rate <= 1:
        raise ValueError(f"disturbed_rate must be within 0..1, got {disturbed_rate}")
    for option, value in (("max_pairs_per_prompt", max_pairs_per_prompt), ("num_shortened", num_shortened)):
        if value < 0:
            raise ValueError(f"{option} must be >= 0, got {value}")
    for prompt, answers in answered:
        rng = generator(seed, "critique_pairs", prompt.id)
        shortened = [shorten(answer, rng) for answer in list(answers)[:num_shortened]]
        described = read_id(prompt.id)[2] == "describe"
        strange = (
            [disturbed(prompt, answers[0], rng)] if described and answers and rng.random() < disturbed_rate else []
        )
        notes = {answer: annotate(prompt, answer) for answer in [*answers, *shortened, *strange]}
        for better, worse in _ranked_pairs(notes, max_pairs_per_prompt, rng):
            yield CritiquePair(
                chosen_prompt=judge_prompt(JUDGE_TEMPLATE, prompt, better),
                rejected_prompt=judge_prompt(JUDGE_TEMPLATE, prompt, worse),
                chosen_critique=notes[better].critique,
                rejected_critique=notes[worse].critique,
            )


def _ranked_pairs(notes: Mapping[str, Annotation], limit: int, rng: np.random.Generator) -> list[tuple[str, str]]:
    """(better, worse) responses of different worth; a random choice of `limit` of them if there are more."""
    ordered = [sorted(pair, key=lambda answer: -notes[answer].worth) for pair in combinations(notes, 2)]
    pairs = [(better, worse) for better, worse in ordered if notes[better].worth > notes[worse].worth]
    if not limit or len(pairs) <= limit:
        return pairs
    return [pairs[int(place)] for place in sorted(rng.choice(len(pairs), size=limit, replace=False))]
