"""The learner's ranks as Ray actors: rounds, weights on their way out, and a rank that dies."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import ray
import torch

from learners.config import LearnerConfig
from learners.group import LearnerGroup
from learners.plan import FitPlan
from rlsys.errors import LearnerError
from rlsys.objectives.dpo import DPO
from rlsys.placement import Placement
from rlsys.records import RatedResponse, RoundPlan
from rlsys.transports.base import open_receiver
from rlsys.transports.gloo import Gloo
from tests.integration.learner_world import make_pairs, make_small, probes_of, with_logprobs

pytestmark = pytest.mark.integration
ROUND = RoundPlan(
    round=0,
    num_prompts=4,
    num_candidates=2,
    temperatures=(1.0,),
    top_p=1.0,
    max_tokens=12,
    epochs=2,
    lr=1e-3,
    reference="previous",
    lag=0,
)


@pytest.fixture(scope="module")
def cluster():
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_small(tmp_path_factory.mktemp("policy"))


def start(folder, num_ranks, **options):
    config = LearnerConfig(num_ranks=num_ranks, batch_size=4, deadline_s=90.0, **options)
    return LearnerGroup(config, DPO(), str(folder), placements=[Placement(num_cpus=0.5)] * num_ranks)


def recorded(group, folder, count=10, **options):
    pairs = make_pairs(folder, count, **options)
    return with_logprobs(pairs, group.logprobs(probes_of(pairs)))


def gone(pids, within_s=20.0):
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if not any(os.path.exists(f"/proc/{pid}/fd/0") for pid in pids):
            return True
        time.sleep(0.1)
    return False


def test_rounds_weights_and_going_back(cluster, folder, tmp_path):
    """Two rounds on two ranks against the same on one; what a receiver gets is what the learner then holds."""
    scores = {}
    for num_ranks, stage in ((1, 0), (2, 3)):
        group = start(folder, num_ranks, zero_stage=stage)
        try:
            pids = group.pids()
            pairs = recorded(group, folder)
            report = group.fit(iter(pairs), ROUND, version=0)
            assert (report.num_examples, report.num_steps) == (20, 6)
            assert report.metrics["reference_checked"] > 0
            assert report.metrics["kl"] > 0
            assert 0.5 < report.loss < 0.6931
            scores[num_ranks] = np.concatenate(group.logprobs(probes_of(pairs)))
            received = _receive(group)
            group.save(str(tmp_path / str(num_ranks)))
            from safetensors.torch import load_file

            saved = load_file(tmp_path / str(num_ranks) / "policy" / "model.safetensors")
            assert all(torch.equal(received[name], tensor) for name, tensor in saved.items())
            again = recorded(group, folder, seed=3, version=1)
            assert group.fit(again, ROUND, version=1).num_steps == 6
            group.load(str(tmp_path / str(num_ranks)))
            np.testing.assert_array_equal(np.concatenate(group.logprobs(probes_of(pairs))), scores[num_ranks])
        finally:
            group.close()
        assert gone(pids)
    np.testing.assert_allclose(scores[1], scores[2], atol=2e-3)


def test_a_plan_may_name_another_objective_on_other_examples(cluster, folder):
    """Pairs, then responses each by itself, then pairs again, on two ranks."""
    group = start(folder, 2, zero_stage=3)
    try:
        pairs = recorded(group, folder)
        assert group.fit(pairs, ROUND, version=0).num_steps == 6
        rated = [
            RatedResponse(
                prompt=pair.prompt, prompt_token_ids=pair.prompt_token_ids, response=response,
                is_desirable=response is pair.chosen, score=0.0, round=1,
            )
            for pair in recorded(group, folder, version=1)
            for response in (pair.chosen, pair.rejected)
        ]  # fmt: skip
        report = group.fit(rated, replace(ROUND, round=1, options={"objective": {"name": "kto"}}), version=1)
        assert (report.num_examples, report.num_steps) == (40, 10)
        assert report.metrics["desirable"] == 0.5 and report.metrics["baseline"] >= 0
        assert report.metrics["reference_checked"] > 0
        again = recorded(group, folder, seed=3, version=2)
        report = group.fit(again, replace(ROUND, round=2, options={"objective": {"name": "simpo"}}), version=2)
        assert report.num_steps == 6 and report.metrics["reference_checked"] == 0
    finally:
        group.close()


def _receive(group) -> dict[str, torch.Tensor]:
    transport = Gloo(bucket_bytes=100_000)
    offer = group.open_transport(transport, 1)
    found: dict = {}

    def take(manifest):
        receiver = open_receiver({**offer, "receiver": 0}, torch.device("cpu"))
        for bucket in receiver.receive(manifest):
            found.update(bucket)
        found["report"] = receiver.report()

    manifest = group.manifest(transport.bucket_bytes)
    assert len(manifest["buckets"]) > 3
    thread = threading.Thread(target=take, args=(manifest,))
    thread.start()
    sent = group.send(manifest)
    thread.join(60)
    report = found.pop("report")
    assert {key: report[key] for key in ("names", "num_bytes", "digest")} == {
        key: sent[key] for key in ("names", "num_bytes", "digest")
    }
    return found


def test_steps_start_before_the_last_pair_has_come_and_nothing_is_dropped(cluster, folder):
    group = start(folder, 1, reference_checks=0)
    try:
        pairs = make_pairs(folder, 14)
        steps_before = []

        def slowly():
            for number, pair in enumerate(pairs):
                if number == 13:
                    # Four steps of batches of 4 are to come; two may be ahead, so one is certainly done by now.
                    steps_before.append(group.logprobs(probes_of(pairs[:1]))[0])
                yield pair

        start_scores = group.logprobs(probes_of(pairs[:1]))[0]
        report = group.train(slowly(), FitPlan(lr=1e-3))
        assert (report.num_examples, report.num_steps) == (14, 4)
        assert np.abs(steps_before[0] - start_scores).max() > 1e-5
        assert group.train([], FitPlan(lr=1e-3)).num_steps == 0
    finally:
        group.close()


def test_a_rank_that_dies_ends_the_learner_and_is_named(cluster, folder):
    group = start(folder, 2, zero_stage=2)
    pids = group.pids()
    pairs = recorded(group, folder)

    def deadly():
        yield from pairs[:6]
        os.kill(pids[1], signal.SIGKILL)
        yield from pairs[6:]

    with pytest.raises(LearnerError, match="learner rank 1 died"):
        group.fit(deadly(), ROUND, version=0)
    assert gone(pids)


def test_answers_of_other_weights_end_the_round_with_both_values(cluster, folder):
    group = start(folder, 1)
    pids = group.pids()
    with pytest.raises(LearnerError, match=r"recorded log-probability is -\d.*forward pass gives -\d"):
        group.fit(make_pairs(folder, 4), ROUND, version=0)
    assert gone(pids)
