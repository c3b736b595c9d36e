"""The world: coloured shapes on a 3 x 3 grid, at most one object of a kind, one object per cell.

A scene is a pure function of (split, index). A hash of its content (the kind in each cell) decides its split, and candidates of
another split are rejected, so that no content of one split ever appears in another one.

Every kind has a fixed *partner*. Partners appear together more often than by chance, and the reference captions of the `train`
split name the partner of an object whether or not the partner is in the scene (`language.caption`). From this the starting
policy learns to hallucinate.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass

import numpy as np
from PIL import Image as PillowImage
from PIL import ImageDraw

from rlsys.seeding import generator

Kind = tuple[str, str]
"""(colour, shape)."""

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (235, 40, 40),
    "green": (40, 200, 70),
    "blue": (40, 70, 235),
    "yellow": (245, 225, 40),
    "purple": (175, 50, 210),
    "black": (12, 12, 12),
}
SHAPES = ("circle", "square", "triangle", "cross")
KINDS: tuple[Kind, ...] = tuple((color, shape) for color in COLORS for shape in SHAPES)
CELLS = ("northwest", "north", "northeast", "west", "center", "east", "southwest", "south", "southeast")
"""The cells row by row from the top left. Each is a single word, so that a place is one token."""
NUM_COLUMNS = 3
MAX_OBJECTS = 4
CELL_PIXELS = 28
"""Side of a cell, pixels: one cell is one image token of a Qwen2.5-VL with patches of 14 pixels merged 2 x 2."""
IMAGE_PIXELS = CELL_PIXELS * NUM_COLUMNS

SPLITS: dict[str, range] = {
    "train": range(0, 11),
    "annotated": range(11, 14),
    "online": range(14, 17),
    "heldout": range(17, 20),
}
"""The buckets, of the 20 buckets of content hashes, that belong to each split."""
_NUM_BUCKETS = 20
_NUM_OBJECTS_PROBS = (0.15, 0.25, 0.3, 0.3)
"""Probability of 1, 2, 3 and 4 objects."""
_TOGETHER = 0.25
"""Probability that the next object of a scene is the partner of an object that is already in it."""
_GROUND = (122, 117, 104)
"""Colour of the ground: the grey that image processors of the CLIP family normalise to zero, so that an untrained vision tower
sees the objects and not the ground.
"""
_TINT = 72
"""Tint of the ground's tiles: they become redder from left to right and bluer from top to bottom, by this much to either side
of the grey. The tint shows where a cell is: rotary positions are relative, and a small model is slow to learn places from them
alone.
"""
_OUTLINE = (255, 255, 255)
_OUTLINE_PIXELS = 2
"""Width of the outline of every object, which is the same for all, so that a model can see the shape before it knows the
colour.
"""
_ZOOM = 3
"""Factor by which shapes are drawn larger and then averaged down, for smooth edges."""
_REMEMBERED = 4096
"""Number of scenes in the cache: the scenes of a round are drawn once, and used again for the ground truth of every
response.
"""


@dataclass(frozen=True, slots=True)
class Placed:
    """An object in its cell."""

    kind: Kind
    cell: int
    """Index into `CELLS`."""
    shift: tuple[int, int] = (0, 0)
    """Offset from the middle of the cell, pixels right and down."""
    radius: int = 10
    """Half the object's width, pixels."""

    @property
    def row(self) -> int:
        return self.cell // NUM_COLUMNS

    @property
    def column(self) -> int:
        return self.cell % NUM_COLUMNS

    @property
    def position(self) -> str:
        """The cell as a word, as in `northwest`."""
        return CELLS[self.cell]


@dataclass(frozen=True, slots=True)
class Scene:
    """The objects and their cells: the ground truth of an image."""

    objects: tuple[Placed, ...]
    """The objects in reading order (by cell)."""

    def find(self, kind: Kind) -> Placed | None:
        """The object of a kind, or `None` if it is not in the scene."""
        return next((placed for placed in self.objects if placed.kind == kind), None)

    def at(self, cell: int) -> Placed | None:
        """The object in a cell, or `None` if the cell is empty."""
        return next((placed for placed in self.objects if placed.cell == cell), None)

    @property
    def kinds(self) -> frozenset[Kind]:
        return frozenset(placed.kind for placed in self.objects)

    @property
    def content(self) -> tuple[tuple[int, Kind], ...]:
        """The content that decides the split; size and offset inside the cell do not count."""
        return tuple((placed.cell, placed.kind) for placed in self.objects)

    @property
    def split(self) -> str:
        """The split that this content belongs to."""
        digest = hashlib.sha256(repr(self.content).encode()).digest()
        bucket = int.from_bytes(digest[:8], "little") % _NUM_BUCKETS
        return next(split for split, buckets in SPLITS.items() if bucket in buckets)


def name(kind: Kind) -> str:
    """The kind in words, as in `circle red`. The shape comes first because it is harder to see: a small model that may name the
    colour first learns only the colour, and learns shapes only after twice as many steps.
    """
    return f"{kind[1]} {kind[0]}"


def partner(kind: Kind) -> Kind:
    """The partner of a kind: it appears beside the kind more often than by chance, and the starting policy imagines it there.
    It has another colour and another shape.
    """
    colors = list(COLORS)
    color, shape = kind
    return (
        colors[(colors.index(color) + 2) % len(colors)],
        SHAPES[(SHAPES.index(shape) + 1) % len(SHAPES)],
    )


@functools.lru_cache(_REMEMBERED)
def sample(split: str, index: int) -> Scene:
    """Scene number `index` of a split; always the same.

    Raises:
        ValueError: unknown split or negative index.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if index < 0:
        raise ValueError(f"index of a scene must not be negative, got {index}")
    rng = generator(0, "scenes", split, index)
    while True:
        scene = _propose(rng)
        if scene.split == split:
            return scene


def _propose(rng: np.random.Generator) -> Scene:
    """One scene without regard to its split."""
    num_objects = 1 + int(rng.choice(MAX_OBJECTS, p=_NUM_OBJECTS_PROBS))
    kinds: list[Kind] = []
    while len(kinds) < num_objects:
        if kinds and rng.random() < _TOGETHER:
            kind = partner(kinds[int(rng.integers(len(kinds)))])
        else:
            kind = KINDS[int(rng.integers(len(KINDS)))]
        if kind not in kinds:
            kinds.append(kind)
    cells = sorted(int(cell) for cell in rng.choice(len(CELLS), size=num_objects, replace=False))
    rng.shuffle(kinds)
    return Scene(
        tuple(
            Placed(
                kind=(str(kind[0]), str(kind[1])),
                cell=cell,
                shift=(int(rng.integers(-1, 2)), int(rng.integers(-1, 2))),
                radius=int(rng.integers(10, 13)),
            )
            for kind, cell in zip(kinds, cells, strict=True)
        )
    )


@functools.cache
def ground(side: int) -> np.ndarray:
    """The ground that objects are drawn on, uint8 [side, side, 3], read-only; `side` is a multiple of 3."""
    steps = np.repeat([-_TINT, 0, _TINT], side // NUM_COLUMNS)
    pixels = np.empty((side, side, 3), dtype=np.int64)
    pixels[:] = _GROUND
    pixels[:, :, 0] += steps[None, :]
    pixels[:, :, 2] += steps[:, None]
    found = pixels.astype(np.uint8)
    found.setflags(write=False)
    return found


def draw(scene: Scene) -> np.ndarray:
    """The image of the scene, uint8 [84, 84, 3]."""
    side = IMAGE_PIXELS * _ZOOM
    canvas = PillowImage.fromarray(ground(side))
    pen = ImageDraw.Draw(canvas)
    for placed in scene.objects:
        x = (placed.column * CELL_PIXELS + CELL_PIXELS // 2 + placed.shift[0]) * _ZOOM
        y = (placed.row * CELL_PIXELS + CELL_PIXELS // 2 + placed.shift[1]) * _ZOOM
        _draw_shape(pen, placed.kind, (x, y), placed.radius * _ZOOM)
    return np.asarray(canvas.resize((IMAGE_PIXELS, IMAGE_PIXELS), PillowImage.Resampling.BOX), dtype=np.uint8)


def _draw_shape(pen: ImageDraw.ImageDraw, kind: Kind, center: tuple[int, int], radius: int) -> None:
    (x, y), r, arm = center, radius, radius // 3
    style = {"fill": COLORS[kind[0]], "outline": _OUTLINE, "width": _OUTLINE_PIXELS * _ZOOM}
    if kind[1] == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), **style)
    elif kind[1] == "square":
        pen.rectangle((x - r, y - r, x + r, y + r), **style)
    elif kind[1] == "triangle":
        pen.polygon([(x, y - r), (x + r, y + r), (x - r, y + r)], **style)
    else:
        quarter = [(arm, -r), (arm, -arm), (r, -arm)]
        turned = [[(-v, u) for u, v in quarter], [(-u, -v) for u, v in quarter], [(v, -u) for u, v in quarter]]
        corners = sum(turned, quarter)
        pen.polygon([(x + u, y + v) for u, v in corners], **style)
