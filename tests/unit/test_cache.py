"""Models made on the spot: once, whole or not at all."""

import pytest

from rlsys.app import cache


@pytest.fixture(autouse=True)
def directory(tmp_path, monkeypatch):
    monkeypatch.setenv("RLSYS_CACHE", str(tmp_path / "models"))
    return tmp_path / "models"


def making(calls, text="weights"):
    def make(folder):
        calls.append(folder.name)
        (folder / "file").write_text(text)

    return make


def test_what_is_made_of_the_same_is_made_once():
    calls = []
    first, again = (cache.cached("policy", {"seed": 1, "steps": 2}, making(calls)) for _ in range(2))
    other = cache.cached("policy", {"seed": 2, "steps": 2}, making(calls, "others"))
    assert first == again != other
    assert len(calls) == 2
    assert [(path / "file").read_text() for path in (first, other)] == ["weights", "others"]


def test_the_order_in_which_the_values_are_named_does_not_matter():
    calls = []
    assert cache.cached("critic", {"a": 1, "b": 2}, making(calls)) == cache.cached(
        "critic", {"b": 2, "a": 1}, making(calls)
    )
    assert len(calls) == 1


@pytest.mark.parametrize("reason", [RuntimeError("no memory"), KeyboardInterrupt()])
def test_what_was_interrupted_leaves_nothing_behind_and_is_made_again(directory, reason):
    def fail(folder):
        (folder / "half").write_text("of it")
        raise reason

    with pytest.raises(type(reason)):
        cache.cached("policy", {}, fail)
    assert [path.name for path in directory.iterdir() if path.is_dir()] == []
    made = cache.cached("policy", {}, making([]))
    assert sorted(path.name for path in made.iterdir()) == ["file", "made_of.json"]
