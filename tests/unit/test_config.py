"""Command lines: what they compose to, and the one line that a mistake in them gets."""

import pytest

from rlsys.app import config as configuration
from rlsys.app.align import main
from rlsys.errors import ConfigError

MISTAKES = [
    ("schedule.round=3", "schedule.round", "did you mean schedule.rounds?"),
    ("schedule.rounds=three", "schedule.rounds", "three"),
    ("preset=scene", "scene", "there are: qwen2_5_vl_3b, qwen2_5_vl_7b, scenes, scenes_ci"),
    ("rollout.num_actors=-1", "rollout.num_actors must be at least 1, got -1", ""),
    ("rollout.batch=0", "rollout.batch must be at least 1, got 0", ""),
    ("critic.batch=0", "critic.batch must be at least 1, got 0", ""),
    ("critic.deadline_s=0", "critic.deadline_s must be > 0, got 0.0", ""),
    ("eval.every=-1", "eval.every must be at least 0, got -1", ""),
    ("output.keep_checkpoints=-1", "output.keep_checkpoints must be at least 0, got -1", ""),
    ("sync.num_probes=0", "sync.num_probes must be at least 1, got 0", ""),
    ("gate.max_refusals=-4", "gate.max_refusals must be >= 0, got -4", ""),
    ("sft.lr=-1", "sft.lr must be > 0, got -1.0", ""),
    ("sft.partner_rate=-3", "sft.partner_rate must be in [0, 1], got -3.0", ""),
    ("+sft.tasks.sing=1", "sft.tasks has unknown task 'sing'", ""),
    ("critic_training.lr=0", "critic_training.lr must be > 0, got 0.0", ""),
    ("critic_training.disturbed_rate=7", "critic_training.disturbed_rate must be in [0, 1], got 7.0", ""),
    ("gate.kl_budget=1", "gate.kl_budget needs learner.initial_copy=true, or LoRA", ""),
]


@pytest.mark.parametrize(("word", "said", "advice"), MISTAKES)
def test_a_mistake_gets_one_line_with_name_and_value(word, said, advice):
    with pytest.raises(ConfigError) as caught:
        configuration.load(["preset=scenes", word])
    message = str(caught.value)
    assert said in message and advice in message and "\n" not in message


@pytest.mark.parametrize("off", ["eval.every=0", "evaluation=none"])
def test_a_gate_without_evaluations_is_refused(off):
    with pytest.raises(ConfigError, match=r"gate\.refuse and gate\.patience need rounds that are evaluated"):
        configuration.load(["preset=scenes", "gate.refuse=true", off])


def test_resume_shows_the_runs_own_configuration(tmp_path, capsys):
    words = ["preset=scenes_ci", "seed=7", "name=mine"]
    run = tmp_path / "mine"
    run.mkdir()
    configuration.save(configuration.load(words)[1], words, run)
    for given in ([f"resume={run}"], ["resume=mine", f"output.runs_dir={tmp_path}"]):
        assert main([*given, "--cfg", "job"]) == 0
        assert "seed: 7" in capsys.readouterr().out.splitlines()
    assert main(["resume=other", f"output.runs_dir={tmp_path}"]) == 2
    assert f"no run in {tmp_path / 'other'}" in capsys.readouterr().err
