"""Parsing of a response into claims, and the check of each claim against the scene.

The rules:
- A response to `describe` is split at full stops. A sentence that fits one of `STATEMENTS` gives claims: `north circle red`
  claims an object and its position. A short response (`yes`, `red`, `two`, `west`) is read with its question. So is a polar
  one, with the observations before its yes or no (`north blue , red , no`).
- Text that fits none of these is kept in `Answer.unparsed`, word for word. Objects named in such a piece still count as
  claimed, or denied (`there is no red circle`), so that a broken sentence hides no hallucination.
- A *mention* is every affirmed object: a shape and a colour side by side. It is true if such an object is anywhere in the
  scene. A true object at a wrong place is a true mention with a false position claim. Repeated mentions count each time.
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
"""Sentences that a description may consist of."""

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
    """One claim of a response."""

    about: str
    """`object`, `attribute`, `position`, `count` or `relation`."""
    value: str
    """`there` for an object; otherwise a colour or shape, a cell, a number, or a side."""
    kind: Kind | None = None
    """The object that the claim is about; `None` for attributes and counts."""
    other: Kind | None = None
    """The second object of a relation."""
    cell: int | None = None
    """The cell of a claimed attribute."""
    color: str | None = None
    """Colour of the counted shapes; `None` counts every shape."""
    denied: bool = False
    """Whether the response denies the claim."""


@dataclass(frozen=True, slots=True)
class Sentence:
    """A piece of a response and its claims; without claims and mentions if it could not be read at all."""

    text: str
    claims: tuple[Claim, ...]
    readable: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """A parsed response."""

    sentences: tuple[Sentence, ...]

    @property
    def claims(self) -> list[Claim]:
        """The claims in the order of the response."""
        return [claim for sentence in self.sentences for claim in sentence.claims]

    @property
    def mentions(self) -> list[Kind]:
        """Objects that the response affirms, repeats included."""
        return [claim.kind for claim in self.claims if claim.about == "object" and not claim.denied and claim.kind]

    @property
    def unparsed(self) -> list[str]:
        """Pieces that fit no sentence of the language; `['']` for an empty response."""
        return [sentence.text for sentence in self.sentences if not sentence.readable]


def parse(answer: str, question: str) -> Answer:
    """Parse a response to a question. Never raises: text that cannot be read is reported in `Answer.unparsed`.

    Args:
        answer: text of the response.
        question: text of the question; a text that is not a question of the world is treated as `describe`.
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
    """A piece of the text before the verdict of a polar response: an object, what is seen in the cell, or what was
    asked for.
    """
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
    """Whether a claim is true. A position or relation of an object that is not in the scene is false."""
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
