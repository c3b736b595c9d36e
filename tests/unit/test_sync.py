"""The proof of a weight update: what passes, and what each kind of lie looks like."""

import threading
import time

import numpy as np
import pytest

from rlsys.errors import ConfigError, SyncError, SyncTimeout, WorkerDied
from rlsys.records import Probe, Prompt, Turn
from rlsys.run.sync import WeightSync

PROMPT = Prompt(id="probe-prompt", turns=(Turn(role="user", text="?"),))
PROBES = [
    Probe(prompt=PROMPT, prompt_token_ids=(1, 2), response_token_ids=(3, 4)),
    Probe(prompt=PROMPT, prompt_token_ids=(1, 2), response_token_ids=(5, 6, 7)),
]
SENT = {"names": ["a", "b"], "num_tensors": 2, "num_bytes": 24, "digest": "d1", "seconds": 0.1}
SCORES = [np.array([-1.0, -2.0], np.float32), np.array([-0.5, -0.25, -3.0], np.float32)]


class Transport:
    bucket_bytes = 1000


class Learner:
    def __init__(self):
        self.opened = []
        self.sends = 0

    def open_transport(self, transport, num_receivers):
        self.opened.append(num_receivers)
        return {"transport": "fake", "port": 1}

    def manifest(self, bucket_bytes):
        return {"buckets": [{"names": ["a", "b"], "bytes": bucket_bytes}]}

    def send(self, manifest):
        self.sends += 1
        return dict(SENT)

    def logprobs(self, probes):
        return SCORES


class Stage:
    receivers_per_worker = 1

    def __init__(self, count=2):
        self.names = [f"rollout-{i}" for i in range(count)]
        self.offers = []
        self.lie = {}
        self.deaths = 0
        self.gap = 0.0

    def members(self):
        return tuple(self.names)

    def connect(self, offers):
        self.offers.append(offers)

    def update(self, manifest, version):
        if self.deaths:
            self.deaths -= 1
            self.names[1] += "+"
            raise WorkerDied("rollout-1 died")
        report = {key: SENT[key] for key in ("names", "num_tensors", "num_bytes", "digest")}
        return [{**report, "version": version}, {**report, "version": version, **self.lie}]

    def probes(self):
        return PROBES

    def logprobs(self, probes):
        off = [SCORES[0], SCORES[1] + np.array([0, self.gap, 0], np.float32)]
        return [SCORES, off]


def make(**options):
    learner, stage = Learner(), Stage()
    return WeightSync(learner=learner, rollouts=stage, transport=Transport(), **options), learner, stage


def test_a_publish_reports_what_was_sent_and_the_gap():
    sync, _, stage = make()
    stage.gap = 5e-4
    report = sync.publish(3)
    assert (report.version, report.num_tensors, report.num_bytes, report.digest) == (3, 2, 24, "d1")
    assert report.max_logprob_gap == pytest.approx(5e-4, rel=1e-3)
    assert report.num_probe_tokens == 5
    assert report.seconds >= 0


def test_engines_connect_once_and_again_only_when_a_worker_was_replaced():
    sync, learner, stage = make()
    sync.publish(1)
    sync.publish(2)
    assert [[offer["receiver"] for offer in offers] for offers in stage.offers] == [[0, 1]]
    stage.names[0] += "+"
    sync.publish(3)
    assert learner.opened == [2, 2] and len(stage.offers) == 2 and learner.sends == 3


def test_tensor_parallel_workers_get_receiver_numbers_apart():
    sync, learner, stage = make()
    stage.receivers_per_worker = 4
    sync.publish(1)
    assert learner.opened == [8]
    assert [offer["receiver"] for offer in stage.offers[0]] == [0, 4]


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        ({"digest": "d2"}, "rollout-1 loaded digest d2, sent was d1"),
        ({"num_tensors": 1}, "rollout-1 loaded num_tensors 1, sent was 2"),
        ({"num_bytes": 20}, "rollout-1 loaded num_bytes 20, sent was 24"),
        ({"names": ["a", "c"]}, r"rollout-1 loaded 'c' where 'b' was sent \(1 names differ\)"),
        ({"version": 4}, "rollout-1 holds version 4 after version 5 was published"),
    ],
)
def test_an_engine_that_loaded_something_else_stops_the_run(lie, message):
    sync, _, stage = make()
    stage.lie = lie
    with pytest.raises(SyncError, match=message):
        sync.publish(5)


def test_a_gap_above_tolerance_stops_the_run_with_both_values():
    sync, _, stage = make()
    stage.gap = 0.5
    with pytest.raises(SyncError) as raised:
        sync.publish(1)
    text = str(raised.value)
    assert "probe 1 (prompt 'probe-prompt'), token 1: rollout-1 says 0.25 nats, the learner -0.25" in text
    assert "0.5 apart, tolerance 0.001" in text


def test_the_tolerance_is_an_option():
    sync, _, stage = make(tolerance=0.6)
    stage.gap = 0.5
    assert sync.publish(1).max_logprob_gap == 0.5


def test_not_a_number_never_passes():
    sync, _, stage = make(tolerance=1e9)
    stage.gap = float("nan")
    with pytest.raises(SyncError, match="token 1"):
        sync.publish(1)


def test_without_probes_nothing_is_proven():
    sync, _, stage = make()
    stage.probes = lambda: []
    with pytest.raises(SyncError, match="no probe"):
        sync.publish(1)


def test_versions_go_up():
    sync, *_ = make()
    sync.publish(4)
    with pytest.raises(SyncError, match="version 4 cannot be published after version 4"):
        sync.publish(4)
    sync.publish(6)


def test_a_worker_that_dies_in_an_update_is_reconnected_and_all_are_updated_again():
    sync, learner, stage = make()
    stage.deaths = 1
    assert sync.publish(1).version == 1
    assert learner.sends == 2 and len(stage.offers) == 2


def test_a_worker_that_dies_while_it_is_asked_for_proof_gets_the_weights_again():
    sync, learner, stage = make()
    scores = stage.logprobs

    def dies_once(probes):
        stage.logprobs = scores
        stage.names[0] += "+"
        raise WorkerDied("rollout-0 died")

    stage.logprobs = dies_once
    assert sync.publish(1).version == 1
    assert learner.sends == 2 and len(stage.offers) == 2


def test_workers_that_die_twice_stop_the_run():
    sync, _, stage = make()
    stage.deaths = 2
    with pytest.raises(SyncError, match="died in both attempts"):
        sync.publish(1)


def test_an_end_that_never_answers_is_a_timeout_that_names_it():
    sync, learner, _ = make(deadline_s=0.2)
    release = threading.Event()
    learner.send = lambda manifest: release.wait(10)
    started = time.monotonic()
    with pytest.raises(SyncTimeout, match=r"version 1: learner not done within 0\.2 s"):
        sync.publish(1)
    assert time.monotonic() - started < 5
    release.set()


@pytest.mark.parametrize("cause_at", ["engines", "learner"])
def test_of_both_ends_errors_the_cause_is_raised_and_not_that_the_other_waited_in_vain(cause_at):
    sync, learner, stage = make()

    def fails(error):
        def work(*_):
            raise error

        return work

    cause, late = SyncError("a tensor does not fit"), SyncTimeout("a bucket did not end within 120 s")
    stage.update, learner.send = map(fails, (cause, late) if cause_at == "engines" else (late, cause))
    with pytest.raises(SyncError) as caught:
        sync.publish(1)
    assert caught.value is cause


def test_after_a_failed_update_the_next_one_connects_anew():
    sync, learner, stage = make()
    stage.lie = {"digest": "d2"}
    with pytest.raises(SyncError):
        sync.publish(1)
    stage.lie = {}
    sync.publish(1)
    assert learner.opened == [2, 2]


@pytest.mark.parametrize("option", ["tolerance", "deadline_s"])
def test_options_are_checked(option):
    with pytest.raises(ConfigError, match=f"sync.{option} must be > 0, got 0"):
        make(**{option: 0})
