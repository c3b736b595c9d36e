"""Prompts that are joined, processed and cut apart: by hand, without vLLM."""

from dataclasses import dataclass

import pytest

from actors.engines.vllm_prompts import cut, groups
from rlsys.errors import EngineError

PLACEHOLDER, IMAGE = 9, 7


@dataclass(frozen=True)
class Place:
    offset: int
    length: int


def prompt(ids, *images):
    return {"prompt_token_ids": ids, "multi_modal_uuids": {"image": list(images)}}


def engine_input(ids, places, images):
    return {
        "prompt_token_ids": ids,
        "mm_kwargs": {"image": [f"pixels of {name}" for name in images]},
        "mm_hashes": {"image": list(images)},
        "mm_placeholders": {"image": [Place(*place) for place in places]},
        "arrival_time": 3.0,
    }


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (["a", "b", "c", "d"], ["new a b c", "new d"]),
        (["ab", "cd", "e"], ["new ab", "new cd e"]),
        (["abcd", "e"], ["new abcd", "new e"]),
        (["a", "a", "a", "b"], ["new a", "known a a", "new b"]),
        (["a", "b", "ab", "b", "c"], ["new a b", "known ab b", "new c"]),
        (["a", "ab", "b"], ["new a", "alone ab", "known b"]),
        (["aa", "b"], ["alone aa", "new b"]),
        (["", "", "a", "", "b"], ["alone ", "alone ", "new a", "alone ", "new b"]),
        ([], []),
    ],
)
def test_neighbours_with_images_that_are_all_new_or_all_known_are_joined(shown, expected):
    requests = [(prompt([], *images) if images else {"prompt_token_ids": []}, images) for images in shown]
    found = list(groups(requests, most_images=3))
    assert [f"{kind} {' '.join(images for _, images in group)}" for kind, group in found] == expected


def test_no_more_requests_are_taken_than_a_group_needs():
    taken = []
    requests = ((prompt([], name), taken.append(name)) for name in "abcdefg")
    found = groups(requests, most_images=3)
    assert len(next(found)[1]) == 3
    assert taken == ["a", "b", "c", "d"]


def test_every_prompt_gets_its_own_tokens_images_and_places():
    given = [
        prompt([1, PLACEHOLDER, 2], "a"),
        prompt([PLACEHOLDER, 3, PLACEHOLDER], "b", "c"),
        prompt([4, PLACEHOLDER, 5], "d"),
    ]
    ids = [1, IMAGE, IMAGE, IMAGE, 2, IMAGE, IMAGE, 3, IMAGE, 4, IMAGE, IMAGE, 5]
    joined = engine_input(ids, [(1, 3), (5, 2), (8, 1), (10, 2)], "abcd")
    assert cut(joined, given) == [
        engine_input([1, IMAGE, IMAGE, IMAGE, 2], [(1, 3)], "a"),
        engine_input([IMAGE, IMAGE, 3, IMAGE], [(0, 2), (3, 1)], "bc"),
        engine_input([4, IMAGE, IMAGE, 5], [(1, 2)], "d"),
    ]


def test_placeholders_of_several_tokens():
    given = [prompt([1, PLACEHOLDER, PLACEHOLDER, 2], "a"), prompt([PLACEHOLDER, PLACEHOLDER, 3], "b")]
    joined = engine_input([1, IMAGE, 2, IMAGE, IMAGE, IMAGE, 3], [(1, 1), (3, 3)], "ab")
    assert [one["prompt_token_ids"] for one in cut(joined, given)] == [[1, 7, 2], [7, 7, 7, 3]]


GIVEN = [prompt([1, PLACEHOLDER, 2], "a"), prompt([3, PLACEHOLDER], "b")]
IDS, PLACES = [1, IMAGE, IMAGE, 2, 3, IMAGE, IMAGE], [(1, 2), (5, 2)]


def test_these_can_be_cut_apart():
    assert [one["prompt_token_ids"] for one in cut(engine_input(IDS, PLACES, "ab"), GIVEN)] == [[1, 7, 7, 2], [3, 7, 7]]


@pytest.mark.parametrize(
    "joined",
    [
        engine_input([8, *IDS[1:]], PLACES, "ab"),
        engine_input([*IDS[:3], 8, *IDS[4:]], PLACES, "ab"),
        engine_input([*IDS[:4], 8, *IDS[5:]], PLACES, "ab"),
        engine_input([*IDS, 5], PLACES, "ab"),
        engine_input([IMAGE, IMAGE, IMAGE, IMAGE, 1, 2, 3], [(0, 2), (2, 2)], "ab"),
        engine_input(IDS, PLACES, "ba"),
    ],
    ids=["before", "after", "the next one's", "one more", "images in front", "other images"],
)
def test_a_prompt_that_would_have_other_tokens_or_images_is_an_error(joined):
    with pytest.raises(EngineError):
        cut(joined, GIVEN)


def test_an_image_behind_the_end_of_its_prompt_is_an_error():
    given = [prompt([1], "a"), prompt([PLACEHOLDER, PLACEHOLDER], "b")]
    with pytest.raises(EngineError, match="prompt 0 of 2"):
        cut(engine_input([1, IMAGE, IMAGE], [(1, 1), (2, 1)], "ab"), given)
