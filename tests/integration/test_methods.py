"""Every published method in one run: real vLLM, real Ray, real DeepSpeed, a small policy of random weights and a made-up score.

Each phase names a builder and an objective, so that the kind of example changes from phase to phase.
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlsys.journal import Journal
from rlsys.records import EXAMPLES, Demonstration, PreferencePair, RatedResponse, ScoredGroup, ScoredResponse
from tests.integration.small_model import make_small

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]
DEADLINE_S = 900
PHASES = (
    ("best_worst", "ipo", PreferencePair, "margin"),
    ("best_worst", "simpo", PreferencePair, "reward_margin"),
    ("desirable", "kto", RatedResponse, "baseline"),
    ("rejection_sampling", "sft", Demonstration, "nll"),
    ("group_normalized", "grpo", ScoredResponse, "kl_reference"),
    ("rloo", "grpo", ScoredResponse, "clipped"),
)
"""Builder, objective, record class of the examples, and a metric that only this objective reports, or one like it."""
ROUNDS = 2

FEEDBACK = '''
from dataclasses import dataclass
from typing import ClassVar

from rlsys import registry
from rlsys.records import Verdict


@registry.feedback("spread")
@dataclass(kw_only=True)
class Spread:
    """Scores by the letters of a response: nothing that is worth learning, but different for different responses."""

    needs_engine: ClassVar[bool] = False
    roles: ClassVar[tuple[str, ...]] = ()

    def requests(self, group):
        return []

    def verdicts(self, group, generations):
        return tuple(Verdict(scores={Verdict.MAIN: sum(map(ord, r.text)) % 101 / 10}) for r in group.responses)

    def judge(self, group):
        return self.verdicts(group, [])
        yield
'''


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a finished run of all phases."""
    folder = tmp_path_factory.mktemp("methods")
    (folder / "spread_feedback.py").write_text(FEEDBACK)
    policy = make_small(folder / "policy")
    phases = ", ".join(
        f"{{rounds: {ROUNDS}, examples: {builder}, objective: {objective}}}" for builder, objective, _, _ in PHASES
    )
    words = [
        "preset=scenes_ci", "name=all", f"output.runs_dir={folder}", f"policy.model={policy}", "feedback=spread",
        "schedule.num_prompts=6", "schedule.num_candidates=4", "schedule.max_tokens=12", "schedule.lr=1e-4",
        "learner.batch_size=8", "eval.every=0", "evaluations=none", "output.tensorboard=false",
        f"schedule.phases=[{phases}]",
    ]  # fmt: skip
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "rlsys.app.align", *words],
        cwd=ROOT,
        env={**os.environ, "RLSYS_PLUGINS": "spread_feedback", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "all"


@pytest.fixture(scope="module")
def rounds(run):
    """Reports of all rounds, as the run wrote them."""
    return json.loads((run / "summary.json").read_text())["rounds"]


def test_every_round_of_every_phase_is_there_and_its_weights_are_proven(rounds):
    assert [entry["round"] for entry in rounds] == list(range(ROUNDS * len(PHASES)))
    digests = [entry["sync"]["digest"] for entry in rounds]
    assert len(set(digests)) == len(digests), "every round moved the weights"
    assert all(entry["sync"]["max_logprob_gap"] <= 1e-3 for entry in rounds)
    assert [entry["policy_version"] for entry in rounds] == list(range(1, len(rounds) + 1))


@pytest.mark.parametrize(("phase", "kind", "metric"), [(n, p[2], p[3]) for n, p in enumerate(PHASES)])
def test_a_phase_trains_on_its_kind_of_example(run, rounds, phase, kind, metric):
    journal = Journal(run / "journal", create=False)
    for number in range(ROUNDS * phase, ROUNDS * (phase + 1)):
        entry = rounds[number]
        found = {record.__name__: len(list(journal.read(number, record))) for record in EXAMPLES.values()}
        assert found == {**dict.fromkeys(found, 0), kind.__name__: entry["num_examples"]}
        assert entry["num_examples"] >= 4
        assert math.isfinite(entry["loss"]) and math.isfinite(entry["metrics"][metric])
        assert math.isfinite(entry["kl"]) and entry["metrics"]["grad_norm"] > 0


def test_only_what_was_recorded_and_is_used_is_checked(rounds):
    checked = {PHASES[n // ROUNDS][1]: entry["metrics"]["reference_checked"] > 0 for n, entry in enumerate(rounds)}
    assert checked == {"ipo": True, "simpo": False, "kto": True, "sft": False, "grpo": True}


def test_the_best_response_of_each_prompt_was_imitated(run):
    journal = Journal(run / "journal", create=False)
    number = ROUNDS * 3
    best = {s.group.prompt.id: max(score for _, score in s.scored) for s in journal.read(number, ScoredGroup)}
    assert {demo.prompt.id: demo.score for demo in journal.read(number, Demonstration)} == best
