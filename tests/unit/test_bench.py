"""What `rlsys bench` says of a round's time."""

from rlsys.app.bench import advice, stages, table
from rlsys.records import RoundReport, SyncReport


def report(rollout, learn):
    sync = SyncReport(
        version=1, num_tensors=2, num_bytes=5_000_000, digest="", seconds=0.1, max_logprob_gap=0.0, num_probe_tokens=8
    )
    return RoundReport(
        round=1,
        policy_version=2,
        num_prompts=4,
        num_rollouts=16,
        num_pairs=30,
        failed={},
        staleness=0,
        loss=0.6,
        implicit_accuracy=0.5,
        kl=0.1,
        metrics={},
        sync=sync,
        eval={},
        seconds={"rollout": rollout, "feedback": 2.0, "learn": learn, "sync": 0.1, "checkpoint": 0.5, "round": 4.5},
    )


def test_the_slowest_stage_is_named_with_what_would_help():
    reports = [report(4.0, 1.0), report(3.0, 1.0), report(5.0, 1.0)]
    found = stages(reports, [{"tokens": 4000.0, "critiques": 16.0}] * 3)
    assert [(stage.name, stage.seconds, stage.work, stage.unit) for stage in found] == [
        ("rollout", 4.0, 4000.0, "tokens"),
        ("feedback", 2.0, 16.0, "critiques"),
        ("learn", 1.0, 30.0, "pairs"),
        ("sync", 0.1, 5.0, "MB"),
        ("checkpoint", 0.5, 1.0, "checkpoints"),
    ]
    assert found[0].rate == 1000.0
    text = advice(found, 4.5)
    assert text.startswith("rollout is the slowest stage: 89% of a round. More rollout actors")
    assert "checkpoint takes 11%; the next round is answered meanwhile, and trained after it." in text
    last = table(found, 4.5).splitlines()[-1]
    assert last.split() == ["round", "4.50", "=", "1.12", "x", "the", "slowest", "stage"]


def test_a_slow_learner_is_told_apart():
    found = stages([report(1.0, 4.0)], [{"tokens": 1.0, "critiques": 1.0}])
    assert advice(found, 4.5).startswith("learn is the slowest stage: 89% of a round. Give the learner more cores")
