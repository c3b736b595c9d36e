"""What goes into one engine call."""

import numpy as np
import pytest

from actors import chunks
from rlsys.records import Image, Prompt

SMALL = Image(pixels=np.zeros((1, 1, 3), np.uint8))
LARGE = Image(pixels=np.zeros((2, 4, 3), np.uint8))
"""3 and 24 bytes."""


def found(*images, size=3):
    prompts = [Prompt(id=str(i), turns=(), images=shown) for i, shown in enumerate(images)]
    return [[one.id for one in chunk] for chunk in chunks.chunks(prompts, size, prompt=lambda one: one)]


def test_as_many_as_asked_for():
    assert found(*[()] * 7) == [["0", "1", "2"], ["3", "4", "5"], ["6"]]
    assert found() == []


def test_fewer_where_their_images_are_large(monkeypatch):
    monkeypatch.setattr(chunks, "MOST_PIXEL_BYTES", 30)
    assert found((LARGE,), (SMALL, SMALL), (SMALL,), (), (LARGE, LARGE), (SMALL,)) == [
        ["0", "1"], ["2", "3"], ["4"], ["5"]
    ]  # fmt: skip


def test_a_full_one_does_not_wait_for_the_next_prompt():
    def prompts():
        yield from [Prompt(id="0", turns=()), Prompt(id="1", turns=())]
        pytest.fail("asked for another")

    assert len(next(chunks.chunks(prompts(), 2, prompt=lambda one: one))) == 2
