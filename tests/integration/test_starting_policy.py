"""The policy that `preset=scenes` starts from sees what is there, and imagines partners of it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]
DEADLINE_S = 900
"""The first evaluation makes the policy, if it is not cached."""


def evaluate(*words):
    """Metrics of the policy, as the command prints them."""
    command = [sys.executable, "-m", "rlsys.app.evaluate", "preset=scenes", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_it_is_right_about_colour_and_shape_of_single_objects():
    found = evaluate("evaluations=scenes_polar", "evaluations.scenes_polar.temperature=0")
    assert found["accuracy_single"]["value"] >= 0.95
    assert found["unparsable"]["value"] <= 0.02


def test_it_hallucinates_through_co_occurrence():
    found = evaluate()
    assert 0.15 <= found["chair_i"]["value"] <= 0.35
    assert found["partner_share"]["value"] >= 0.8
    assert found["recall"]["value"] >= 0.95
