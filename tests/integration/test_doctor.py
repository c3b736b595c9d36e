"""The doctor finds the stack that these tests run on in order."""

from __future__ import annotations

import pytest

from rlsys.app import doctor


@pytest.mark.slow
def test_the_whole_stack_is_found_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    status = doctor.main([])
    lines = capsys.readouterr().out.splitlines()
    assert status == 0, "\n".join(lines)
    assert [line.split("  ")[0] for line in lines[:-1]] == ["ok"] * 12
    assert lines[-1] == "all is well"
