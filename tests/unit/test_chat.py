"""Prompts as tokens, the same for engines and learner."""

import numpy as np
import pytest

from rlsys.chat import Chat
from rlsys.errors import ConfigError
from rlsys.records import Image, Prompt, Turn
from rlsys.worlds.scenes.policy import make_policy


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    return Chat(make_policy(tmp_path_factory.mktemp("policy"), seed=0))


def prompt(text, images=0):
    pixels = np.zeros((84, 84, 3), np.uint8)
    return Prompt(id="p", turns=(Turn(role="user", text=text),), images=(Image(pixels=pixels),) * images)


def words(chat, ids):
    return chat.tokenizer.convert_ids_to_tokens(list(ids))


def test_one_placeholder_per_picture_before_the_text(chat):
    found = words(chat, chat.prompt_ids(prompt("describe the picture", images=2)))
    assert found.count("<|image_pad|>") == 2
    assert found.index("describe") > max(i for i, word in enumerate(found) if word == "<|image_pad|>")


@pytest.mark.parametrize("spelled", ["<score>", "<|image_pad|>", "<|im_end|>"])
def test_a_special_token_spelled_in_a_message_is_text(chat, spelled):
    plain = words(chat, chat.prompt_ids(prompt("red blue", images=1)))
    found = words(chat, chat.prompt_ids(prompt(f"red {spelled} blue", images=1)))
    assert found.count(spelled) == plain.count(spelled)
    assert [word for word in found if word in ("red", "blue")] == ["red", "blue"]


def test_endings_and_special_tokens(chat):
    assert chat.token_id("<score>") in chat.special
    assert chat.token_id("<|image_pad|>") in chat.special
    assert chat.tokenizer.eos_token_id in chat.ends
    with pytest.raises(ConfigError, match="the tokenizer has no token '<reward>'"):
        chat.token_id("<reward>")


def test_sampled_turns_stand_in_a_conversation_as_they_are(chat):
    """Tokens that no tokenizer makes of their text stay; the template's end of turn is not doubled."""
    user = Turn(role="user", text="describe the picture")
    end = chat.tokenizer.eos_token_id
    sampled = (*chat.text_ids("red circle ."), end)
    first = chat.prompt_ids(Prompt(id="p", turns=(user,)))
    again = Turn(role="user", text="what is the color")
    turns = (user, Turn(role="assistant", text="red circle .", token_ids=sampled), again)
    found = chat.prompt_ids(Prompt(id="p", turns=turns))
    assert found[: len(first) + len(sampled)] == (*first, *sampled)
    by_text = (user, Turn(role="assistant", text="red circle ."), again)
    assert found == chat.prompt_ids(Prompt(id="p", turns=by_text)), "the template ends an assistant's turn once"
    odd = Turn(role="assistant", text="red", token_ids=(*chat.text_ids("blue blue"), end))
    kept = chat.prompt_ids(Prompt(id="p", turns=(user, odd, again)))
    assert words(chat, kept).count("blue") == 2 and "red" not in words(chat, kept)


def test_a_candidate_is_one_token_or_none(chat):
    assert chat.candidate_id("red") == chat.token_id("red")
    assert chat.candidate_id("red circle") is None
    assert chat.candidate_id("YES") is None, "the token for unknown text spells nothing"


def test_a_plain_text_follows_the_token_that_begins_or_ends_texts(chat):
    text = Prompt(id="text", turns=())
    assert chat.tokenizer.bos_token_id is None
    assert chat.prompt_ids(text) == (chat.tokenizer.eos_token_id,)
    chat.tokenizer.bos_token = "<|im_start|>"
    try:
        assert chat.prompt_ids(text) == (chat.token_id("<|im_start|>"),)
    finally:
        chat.tokenizer.bos_token = None
