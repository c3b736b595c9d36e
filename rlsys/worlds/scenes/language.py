"""The world's language: questions, true answers, captions that hallucinate, and the judge's template. It is word-level and
lower case.

A description is a list of statements, each ended by a full stop: `northwest circle red .`
The place comes first, so that a model only has to look at one cell to name the object there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from rlsys.worlds.scenes.world import CELLS, COLORS, KINDS, SHAPES, Kind, Placed, Scene, partner

JUDGE_TEMPLATE = "question : {question} answer : {answer} evaluation :"
"""The judge's prompt, shown with the image; the critique is its continuation, and `<score>` ends the critique."""

NUMBERS = ("zero", "one", "two", "three", "four")
SIDES = ("left", "right", "above", "below")
VERDICTS = ("true", "false", "misplaced", "repeated", "unclear", "missing")
"""Words of a critique, see `annotate.critique`."""
OTHER = "other"
"""Word that follows an object which is not the one asked for, in the answer to a polar question."""

FORMS: dict[str, dict[str, str]] = {
    "describe": {"describe": "describe the picture ."},
    "polar": {
        "exists": "is there a {color} {shape} ?",
        "is_color": "is the shape at {cell} {color} ?",
        "is_shape": "is the shape at {cell} a {shape} ?",
    },
    "open": {
        "color": "what color is the shape at {cell} ?",
        "shape": "what shape is at {cell} ?",
        "count": "how many shapes are there ?",
        "count_color": "how many {color} shapes are there ?",
        "position": "where is the {color} {shape} ?",
        "relation": "on which side of the {other_color} {other_shape} is the {color} {shape} ?",
    },
}
"""Task -> form -> template. Every question of the world is one of these."""

PLACED = "{cell} {shape} {color}"
"""An object and its place; with a full stop, it is a sentence of a description."""

SLOTS: dict[str, tuple[str, ...]] = {
    "color": tuple(COLORS),
    "shape": SHAPES,
    "cell": CELLS,
    "other_color": tuple(COLORS),
    "other_shape": SHAPES,
}


def pattern(template: str) -> re.Pattern[str]:
    """Regular expression that reads the values of a template's slots, as named groups."""
    parts = re.split(r"\{(\w+)\}", template)
    texts = [re.escape(part) if i % 2 == 0 else f"(?P<{part}>{'|'.join(SLOTS[part])})" for i, part in enumerate(parts)]
    return re.compile("".join(texts))


_PATTERNS = {form: pattern(template) for forms in FORMS.values() for form, template in forms.items()}


@dataclass(frozen=True, slots=True)
class Question:
    """A parsed question of the world."""

    task: str
    form: str
    slots: dict[str, str]

    @property
    def text(self) -> str:
        return FORMS[self.task][self.form].format(**self.slots)

    @property
    def kind(self) -> Kind:
        """The object that the question is about; only for forms with a colour and a shape."""
        return (self.slots["color"], self.slots["shape"])

    @property
    def other(self) -> Kind:
        """The second object of a relation."""
        return (self.slots["other_color"], self.slots["other_shape"])

    @property
    def cell(self) -> int:
        """The cell that the question is about; only for forms with a cell."""
        return CELLS.index(self.slots["cell"])


def read_question(text: str) -> Question | None:
    """The question that a text asks, or `None` if it is not a question of the world."""
    for task, forms in FORMS.items():
        for form in forms:
            match = _PATTERNS[form].fullmatch(" ".join(text.split()))
            if match:
                return Question(task, form, match.groupdict())
    return None


def ask(scene: Scene, task: str, rng: np.random.Generator) -> Question:
    """A question of a task about a scene. The answer to a polar question is `yes` half of the time.

    Raises:
        ValueError: unknown task.
    """
    if task not in FORMS:
        raise ValueError(f"task must be one of {', '.join(FORMS)}, got {task!r}")
    forms = [form for form in FORMS[task] if form != "relation" or len(scene.objects) > 1]
    form = forms[int(rng.integers(len(forms)))]
    placed = scene.objects[int(rng.integers(len(scene.objects)))]
    color, shape = placed.kind
    if task == "polar" and rng.random() < 0.5:
        color, shape = _decoy(scene, placed, form, rng)
    elif form == "count_color" and rng.random() < 0.3:
        color = list(COLORS)[int(rng.integers(len(COLORS)))]
    values = {"color": color, "shape": shape, "cell": placed.position}
    if form == "relation":
        others = [other for other in scene.objects if other != placed]
        values["other_color"], values["other_shape"] = others[int(rng.integers(len(others)))].kind
    names = _PATTERNS[form].groupindex
    return Question(task, form, {name: values[name] for name in names})


def _decoy(scene: Scene, placed: Placed, form: str, rng: np.random.Generator) -> Kind:
    """A kind for which the answer is no: it has another colour or shape, or is absent (chosen at random, by likeness, or as a
    partner).
    """
    color, shape = placed.kind
    other_colors = [name for name in COLORS if name != color]
    other_shapes = [name for name in SHAPES if name != shape]
    new_color = other_colors[int(rng.integers(len(other_colors)))]
    new_shape = other_shapes[int(rng.integers(len(other_shapes)))]
    if form == "is_color":
        return (new_color, shape)
    if form == "is_shape":
        return (color, new_shape)
    choices = [partner(placed.kind), (new_color, shape), (color, new_shape)]
    kind = choices[int(rng.integers(len(choices)))]
    absent = [kind for kind in KINDS if kind not in scene.kinds]
    return kind if kind not in scene.kinds else absent[int(rng.integers(len(absent)))]


def true_answer(scene: Scene, question: Question) -> str:
    """The answer of a truthful policy. A description names every object and nothing else. An answer to a polar question names
    what it compares and ends with yes or no:
    `north blue , red , no` gives the colour in the cell, the colour asked for, and the verdict;
    `north circle blue other , south circle red yes` goes from object to object until it reaches the one asked for.
    A small model learns such comparisons of neighbouring words within the first half of a run of minutes. From a bare `yes` or
    `no`, or from one comparison with all objects at once, it learns nothing in that time.
    """
    form = question.form
    if form == "describe":
        return describe(scene)
    if question.task == "polar":
        return _polar_answer(scene, question)
    if form in ("color", "shape"):
        return _occupant(scene, question).kind[("color", "shape").index(form)]
    if form == "count":
        return NUMBERS[len(scene.objects)]
    if form == "count_color":
        return NUMBERS[sum(placed.kind[0] == question.slots["color"] for placed in scene.objects)]
    placed = scene.find(question.kind)
    assert placed is not None, f"{question.text!r} asks about an object that is not there"
    if form == "position":
        return placed.position
    other = scene.find(question.other)
    assert other is not None, f"{question.text!r} asks about an object that is not there"
    return sides(placed, other)[0]


def is_so(scene: Scene, question: Question) -> bool:
    """Whether the true answer to a polar question is yes."""
    if question.form == "exists":
        return scene.find(question.kind) is not None
    return question.slots[question.form.removeprefix("is_")] in _occupant(scene, question).kind


def _polar_answer(scene: Scene, question: Question) -> str:
    verdict = "yes" if is_so(scene, question) else "no"
    if question.form != "exists":
        attribute = question.form.removeprefix("is_")
        color, shape = _occupant(scene, question).kind
        seen = {"color": color, "shape": shape}[attribute]
        return f"{question.slots['cell']} {seen} , {question.slots[attribute]} , {verdict}"
    met: list[str] = []
    for placed in scene.objects:
        found = placed.kind == question.kind
        met.append(f"{_placed(placed.kind, placed.cell)} {verdict if found else OTHER}")
        if found:
            return " , ".join(met)
    return " , ".join([*met, verdict])


def _occupant(scene: Scene, question: Question) -> Placed:
    placed = scene.at(question.cell)
    assert placed is not None, f"{question.text!r} asks about an empty cell"
    return placed


def sides(placed: Placed, other: Placed) -> list[str]:
    """The sides of `other` on which an object is; the side along the row comes first."""
    horizontal = [] if placed.column == other.column else ["left" if placed.column < other.column else "right"]
    vertical = [] if placed.row == other.row else ["above" if placed.row < other.row else "below"]
    return horizontal + vertical


def statement(kind: Kind, cell: int) -> str:
    """One sentence of a description."""
    return f"{_placed(kind, cell)} ."


def _placed(kind: Kind, cell: int) -> str:
    return PLACED.format(cell=CELLS[cell], color=kind[0], shape=kind[1])


def describe(scene: Scene) -> str:
    """The true description, in reading order."""
    return " ".join(statement(placed.kind, placed.cell) for placed in scene.objects)


def caption(scene: Scene, rng: np.random.Generator, *, partner_rate: float) -> str:
    """A description as the starting policy learns it: all objects are named, and after an object its partner is also named with
    probability `partner_rate`, in some empty cell, even though it is not in the scene.
    """
    empty = [cell for cell in range(len(CELLS)) if scene.at(cell) is None]
    said: list[str] = []
    for placed in scene.objects:
        said.append(statement(placed.kind, placed.cell))
        imagined = partner(placed.kind)
        if rng.random() < partner_rate and imagined not in scene.kinds:
            said.append(statement(imagined, empty.pop(int(rng.integers(len(empty))))))
    return " ".join(said)


def vocabulary() -> list[str]:
    """Every word of the language, including the judge's words, in a fixed order."""
    texts = [template for forms in FORMS.values() for template in forms.values()]
    texts += [JUDGE_TEMPLATE, f"at of . , : ? yes no {OTHER} system user assistant", *NUMBERS, *SIDES, *VERDICTS]
    words = [word for text in texts for word in text.split() if not word.startswith("{")]
    words += [word for values in SLOTS.values() for word in values]
    return list(dict.fromkeys(words))
