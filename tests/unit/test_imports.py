"""Large libraries are imported without collecting garbage, and what they made is spared afterwards."""

import gc
import sys

import pytest

from rlsys.common.imports import import_at_once

MAKES_MANY = """
import gc
was_on = gc.isenabled()
collections = gc.get_stats()[2]["collections"]
many = [[] for _ in range(1_000_000)]
collections = gc.get_stats()[2]["collections"] - collections
"""


def test_nothing_is_collected_while_modules_are_imported_and_their_objects_are_spared(tmp_path, monkeypatch):
    (tmp_path / "makes_many.py").write_text(MAKES_MANY)
    monkeypatch.syspath_prepend(tmp_path)
    before = gc.get_freeze_count()
    try:
        import_at_once("makes_many")
        found = sys.modules["makes_many"]
        assert (found.was_on, found.collections) == (False, 0)
        assert gc.isenabled() and gc.get_freeze_count() - before >= 1_000_000
    finally:
        gc.unfreeze()
        sys.modules.pop("makes_many", None)


def test_modules_that_are_there_cost_nothing(monkeypatch):
    monkeypatch.setattr(gc, "collect", lambda: 1 / 0)
    import_at_once("sys", "gc")


def test_a_collector_that_is_off_stays_off_and_one_that_is_on_comes_back_after_an_error(tmp_path, monkeypatch):
    (tmp_path / "fails.py").write_text("1 / 0")
    (tmp_path / "passes.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ZeroDivisionError):
        import_at_once("fails")
    assert gc.isenabled()
    gc.disable()
    try:
        import_at_once("passes")
        assert not gc.isenabled()
    finally:
        gc.enable()
        gc.unfreeze()
        sys.modules.pop("passes", None)
