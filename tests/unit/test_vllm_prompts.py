"""Prompts rendered as one, cut apart: by hand, without vLLM."""

from dataclasses import dataclass

from actors.engines.vllm_prompts import cut

MARK = 9


@dataclass(frozen=True)
class Place:
    offset: int
    length: int


def prompt(ids, *images):
    return {
        "prompt_token_ids": ids,
        "multi_modal_data": {"image": list(images)},
        "multi_modal_uuids": {"image": images},
    }


def rendered(ids, places, images):
    return {
        "prompt_token_ids": ids,
        "mm_kwargs": {"image": [f"pixels of {name}" for name in images]},
        "mm_hashes": {"image": list(images)},
        "mm_placeholders": {"image": [Place(*place) for place in places]},
        "arrival_time": 3.0,
    }


def test_every_prompt_gets_its_own_tokens_images_and_places():
    given = [prompt([1, MARK, 2], "a"), prompt([MARK, 3, MARK], "b", "c"), prompt([4, MARK, 5], "d")]
    ids = [1, 7, 7, 7, 2, 7, 7, 3, 7, 4, 7, 7, 5]
    whole = rendered(ids, [(1, 3), (5, 2), (8, 1), (10, 2)], "abcd")
    assert cut(whole, given) == [
        rendered([1, 7, 7, 7, 2], [(1, 3)], "a"),
        rendered([7, 7, 3, 7], [(0, 2), (3, 1)], "bc"),
        rendered([4, 7, 7, 5], [(1, 2)], "d"),
    ]


def test_marks_of_several_tokens():
    given = [prompt([1, MARK, MARK, 2], "a"), prompt([MARK, MARK, 3], "b")]
    whole = rendered([1, 7, 2, 7, 7, 7, 3], [(1, 1), (3, 3)], "ab")
    assert [one["prompt_token_ids"] for one in cut(whole, given)] == [[1, 7, 2], [7, 7, 7, 3]]


def test_images_that_stand_elsewhere_cannot_be_cut():
    given = [prompt([1, 2], "a"), prompt([3, 4], "b")]
    in_front = rendered([7, 7, 7, 7, 1, 2, 3, 4], [(0, 2), (2, 2)], "ab")
    assert cut(in_front, given) is None


def test_other_words_than_a_prompt_s_own_cannot_be_cut():
    given = [prompt([1, MARK, 2], "a"), prompt([3, MARK], "b")]
    places = [(1, 2), (5, 2)]
    assert cut(rendered([1, 7, 7, 2, 3, 7, 7], places, "ab"), given) is not None
    for ids in ([8, 7, 7, 2, 3, 7, 7], [1, 7, 7, 8, 3, 7, 7], [1, 7, 7, 2, 8, 7, 7]):
        assert cut(rendered(ids, places, "ab"), given) is None
    assert cut(rendered([1, 7, 7, 2, 3, 7, 7, 7], [(1, 2), (5, 3)], "ab"), given) is not None
    assert cut(rendered([1, 7, 7, 2, 3, 7, 7, 5], [(1, 2), (5, 2)], "ab"), given) is None  # a token from nowhere
