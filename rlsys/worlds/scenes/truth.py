"""Reads an answer into claims and checks each against the scene.

What counts as what:
- An answer to `describe` is split at full stops. A sentence that fits one of `STATEMENTS` gives claims: `north
  circle red` claims an object and its position. A short answer (`yes`, `red`, `two`, `west`) is read with its question,
  and so is a polar one with what was seen before its yes or no (`north blue , red , no`).
- Whatever fits nothing is kept in `Answer.unparsed`, word for word. Objects named in such a piece are still claimed,
  or denied (`there is no red circle`), so a broken sentence hides no hallucination.
- A *mention* is every affirmed object: a shape and a colour side by side. It is true if
  such an object stands anywhere in the scene. A true object at a wrong place is a true mention with a false position
  claim. Repeated mentions count each time.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from rlsys.worlds.scenes.language import NUMBERS, OTHER, PLACED, SIDES, SLOTS, Question, pattern, read_question, sides
from rlsys.worlds.scenes.world import CELLS, COLORS, SHAPES, Kind, Scene

STATEMENTS: dict[str, re.Pattern[str]] = {
    "placed": pattern(PLACED),
    "placed_after": pattern("{shape} {color} at {cell}"),
    "object": pattern("{shape} {color}"),
    "relation": re.compile(
        pattern("{shape} {color} SIDE of {other_shape} {other_color}").pattern.replace(
            "SIDE", f"(?P<side>{'|'.join(SIDES)})"
        )
    ),
    "count": re.compile(f"(?P<number>{'|'.join(NUMBERS)}) (?:(?P<color>{'|'.join(COLORS)}) )?shapes?"),
}
"""Sentences that a description may be made of."""

_COLOR, _SHAPE = f"({'|'.join(COLORS)})", f"({'|'.join(SHAPES)})"
_MENTION = re.compile(
    rf"(?P<denied>\b(?:no|not|without) (?:(?:a|an|any|the) )?)?\b(?:{_SHAPE} {_COLOR}|{_COLOR} {_SHAPE})\b"
)
_SEEN = re.compile(f"(?P<cell>{'|'.join(CELLS)}) (?:(?P<color>{'|'.join(COLORS)})|(?P<shape>{'|'.join(SHAPES)}))")
_SHORT_ANSWERS: dict[str, tuple[str, ...]] = {
    "exists": ("yes", "no"),
    "is_color": ("yes", "no"),
    "is_shape": ("yes", "no"),
    "color": SLOTS["color"],
    "shape": SLOTS["shape"],
    "count": NUMBERS,
    "count_color": NUMBERS,
    "position": CELLS,
    "relation": SIDES,
}


@dataclass(frozen=True, slots=True)
class Claim:
    """One thing an answer says."""

    about: str
    """`object`, `attribute`, `position`, `count` or `relation`."""
    value: str
    """`there` for an object; a colour or shape; a cell; a number; a side."""
    kind: Kind | None = None
    """The object spoken of; `None` for attributes and counts."""
    other: Kind | None = None
    """The second object of a relation."""
    cell: int | None = None
    """Where an attribute is claimed."""
    color: str | None = None
    """What is counted; `None` counts every shape."""
    denied: bool = False
    """The answer says that it is not so."""


@dataclass(frozen=True, slots=True)
class Sentence:
    """A piece of an answer and what it claims; no claims and no mention if it could not be read at all."""

    text: str
    claims: tuple[Claim, ...]
    readable: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, read."""

    sentences: tuple[Sentence, ...]

    @property
    def claims(self) -> list[Claim]:
        """In the order of the answer."""
        return [claim for sentence in self.sentences for claim in sentence.claims]

    @property
    def mentions(self) -> list[Kind]:
        """Objects said to be there, repeats included."""
        return [claim.kind for claim in self.claims if claim.about == "object" and not claim.denied and claim.kind]

    @property
    def unparsed(self) -> list[str]:
        """Pieces that fit no sentence of the language; `['']` for an empty answer."""
        return [sentence.text for sentence in self.sentences if not sentence.readable]


def parse(answer: str, question: str) -> Answer:
    """Read an answer to a question. Never raises: what cannot be read is reported in `Answer.unparsed`.

    Args:
        question: the text asked; a text that is no question of the world is taken as `describe`.
    """
    text = " ".join(answer.lower().split())
    asked = read_question(question)
    if asked is not None and asked.task != "describe":
        spoken = text.removesuffix(".").strip()
        evidence, _, short = spoken.rpartition(" ")
        if short in _SHORT_ANSWERS[asked.form]:
            pieces = [piece for piece in evidence.removesuffix(" ,").split(" , ") if piece]
            seen = [_evidence(piece, asked) for piece in pieces]
            claims = [claim for piece in seen for claim in piece.claims]
            readable = all(piece.readable for piece in seen)
            return Answer((Sentence(spoken, (*claims, _short_claim(short, asked)), readable),))
    pieces = [piece.strip() for piece in text.split(".")]
    pieces = [piece for piece in pieces if piece] or [""]
    return Answer(tuple(_sentence(piece) for piece in pieces))


def _short_claim(text: str, question: Question) -> Claim:
    form, denied = question.form, text == "no"
    if form == "exists":
        return Claim("object", "there", kind=question.kind, denied=denied)
    if form in ("is_color", "is_shape"):
        return Claim("attribute", question.slots[form.removeprefix("is_")], cell=question.cell, denied=denied)
    if form in ("color", "shape"):
        return Claim("attribute", text, cell=question.cell)
    if form in ("count", "count_color"):
        return Claim("count", text, color=question.slots.get("color"))
    if form == "position":
        return Claim("position", text, kind=question.kind)
    return Claim("relation", text, kind=question.kind, other=question.other)


def _evidence(text: str, question: Question) -> Sentence:
    """A piece of what stands before the verdict of a polar answer: an object, what is seen in the cell, or what was
    asked for."""
    if question.task != "polar":
        return Sentence(text, (), False)
    seen = _SEEN.fullmatch(text)
    if seen:
        value = seen["color"] or seen["shape"]
        return Sentence(text, (Claim("attribute", value, cell=CELLS.index(seen["cell"])),), True)
    if text == question.slots.get(question.form.removeprefix("is_")):
        return Sentence(text, (), True)
    return _sentence(text.removesuffix(f" {OTHER}"))


def _sentence(text: str) -> Sentence:
    for name, regex in STATEMENTS.items():
        match = regex.fullmatch(text)
        if match:
            return Sentence(text, _statement_claims(name, match.groupdict()), True)
    claims = []
    for denied, shape, color, other_color, other_shape in _MENTION.findall(text):
        kind = (color or other_color, shape or other_shape)
        claims.append(Claim("object", "there", kind=kind, denied=bool(denied)))
    return Sentence(text, tuple(claims), False)


def _statement_claims(name: str, slots: dict[str, str | None]) -> tuple[Claim, ...]:
    if name == "count":
        return (Claim("count", str(slots["number"]), color=slots["color"]),)
    kind = (str(slots["color"]), str(slots["shape"]))
    there = Claim("object", "there", kind=kind)
    if name == "object":
        return (there,)
    if name.startswith("placed"):
        return (there, Claim("position", str(slots["cell"]), kind=kind))
    other = (str(slots["other_color"]), str(slots["other_shape"]))
    relation = Claim("relation", str(slots["side"]), kind=kind, other=other)
    return (there, Claim("object", "there", kind=other), relation)


def check(claim: Claim, scene: Scene) -> bool:
    """Whether a claim is true. A position or relation of an object that is not there is false."""
    return _holds(claim, scene) != claim.denied


def _holds(claim: Claim, scene: Scene) -> bool:
    if claim.about == "count":
        counted = [placed for placed in scene.objects if claim.color in (None, placed.kind[0])]
        return NUMBERS.index(claim.value) == len(counted)
    if claim.about == "attribute":
        placed = None if claim.cell is None else scene.at(claim.cell)
        return placed is not None and claim.value in placed.kind
    placed = None if claim.kind is None else scene.find(claim.kind)
    if placed is None:
        return False
    if claim.about == "object":
        return True
    if claim.about == "position":
        return placed.position == claim.value
    other = None if claim.other is None else scene.find(claim.other)
    return other is not None and claim.value in sides(placed, other)
