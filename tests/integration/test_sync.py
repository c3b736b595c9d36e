"""Weight updates of whole stages: worker processes, gloo, and the proof at the end."""

import os
import signal

import numpy as np
import pytest
import ray
import torch

from actors.engines import discover
from actors.engines import engine as engines
from actors.engines.scripted import expected_logprobs
from actors.stages import RolloutStage
from rlsys.errors import SyncError, SyncTimeout
from rlsys.placement import Placement
from rlsys.run.sync import WeightSync
from rlsys.transports.gloo import Gloo
from tests.fakes import make_plan
from tests.integration.small_model import Transformers, WeightSender, make_prompts, make_small, tie, weights_of


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
    yield
    ray.shutdown()


class ScriptedLearner(WeightSender):
    """Sends two tensors, and says of a probe what a scripted engine that received them says."""

    def __init__(self):
        super().__init__(Gloo(bucket_bytes=1 << 10, deadline_s=5), {"a": torch.arange(300.0), "b": torch.ones(7)})
        self.sends = 0

    def send(self, manifest):
        self.sends += 1
        return super().send(manifest)

    def logprobs(self, probes):
        total = sum(float(tensor.double().sum()) for tensor in self.weights.values())
        return [expected_logprobs(probe, total) for probe in probes]


def scripted_stage(count=2, version=0):
    discover()
    return RolloutStage(
        engine=engines.make("scripted"),
        current=lambda: ("nowhere", version),
        placements=[Placement(num_cpus=0.5) for _ in range(count)],
        seed=1,
        deadline_s=30,
        probe_prompts=make_prompts(2),
    )


@pytest.fixture
def scripted():
    stage, learner = scripted_stage(), ScriptedLearner()
    yield stage, learner, WeightSync(learner=learner, rollouts=stage, transport=learner.transport, deadline_s=30)
    learner.close()
    stage.close()


def test_two_workers_take_an_update_after_the_other(scripted):
    stage, learner, sync = scripted
    first = sync.publish(1)
    learner.weights = {**learner.weights, "b": torch.full((7,), 3.0)}
    second = sync.publish(2)
    assert first.digest != second.digest
    assert (second.num_tensors, second.num_bytes, second.max_logprob_gap) == (2, 1228, 0.0)
    assert stage.versions() == [2, 2]
    [group] = stage.stream(make_prompts(1), make_plan())
    assert group.policy_version == 2


def test_a_worker_killed_before_an_update_is_replaced_and_gets_it(scripted):
    stage, _, sync = scripted
    sync.publish(1)
    before = stage.members()
    os.kill(stage._pool.workers[0].pid, signal.SIGKILL)
    assert sync.publish(2).version == 2
    assert stage.versions() == [2, 2]
    assert stage.members() == ("rollout-0.1", "rollout-1") and before == ("rollout-0", "rollout-1")
    assert stage.count(0)["failed_workers"] == 1


def test_weights_that_change_on_the_way_are_noticed_by_the_probes(scripted):
    _, learner, sync = scripted
    sync.publish(1)
    learner.logprobs = lambda probes: [expected_logprobs(probe, 1.0) for probe in probes]
    with pytest.raises(SyncError, match=r"probe 0 \(prompt 'p0-0'\), token \d+: rollout-0 says .* the learner"):
        sync.publish(2)


def test_a_learner_that_stops_half_way_is_a_timeout_and_nothing_hangs(scripted):
    _, learner, sync = scripted
    sync.publish(1)
    whole = learner.send

    def half(manifest):
        first = manifest["buckets"][0]
        learner.sender.send_bucket([(name, learner.weights[name]) for name in first["names"]])
        return {}

    learner.send = half
    with pytest.raises(SyncTimeout, match="within 5 s"):
        sync.publish(2)
    learner.send = whole
    assert sync.publish(3).version == 3


# ---------------------------------------------------------------- real engines


class ModelLearner(WeightSender):
    """Sends the tensors of a checkpoint, and scores with transformers."""

    def __init__(self, folder, scratch):
        super().__init__(Gloo(bucket_bytes=64 << 10, deadline_s=30), weights_of(folder))
        self.truth = Transformers(folder)
        self.scratch = scratch

    def change(self, **parts):
        self.weights = {name: tensor + parts.get(name.split(".")[0], 0.0) for name, tensor in self.weights.items()}
        self.truth.load(self.weights, self.scratch)

    def logprobs(self, probes):
        found = [self.truth.logprobs(probe.prompt, np.array(probe.response_token_ids)) for probe in probes]
        return [np.asarray(one, np.float32) for one in found]


def test_real_engines_are_updated_proven_and_refuse_what_is_not_whole(tmp_path):
    discover()
    folder = make_small(tmp_path / "policy")
    learner = ModelLearner(folder, tmp_path / "changed")
    stage = RolloutStage(
        engine=engines.make("vllm", max_model_len=256, max_num_batched_tokens=2048, kv_cache_gib=0.25),
        current=lambda: (str(folder), 0),
        placements=[Placement(num_cpus=0.5) for _ in range(2)],
        seed=1,
        deadline_s=240,
        probe_prompts=make_prompts(3),
    )
    sync = WeightSync(learner=learner, rollouts=stage, transport=learner.transport, deadline_s=60)
    try:
        same = sync.publish(1)
        assert same.max_logprob_gap < 1e-4 and same.num_tensors == len(learner.weights)
        learner.change(visual=0.05, model=0.02)
        assert sync.publish(2).max_logprob_gap < 1e-4
        assert [group.policy_version for group in stage.stream(make_prompts(2), make_plan())] == [2, 2]
        whole = learner.weights
        learner.weights = {name: tensor for name, tensor in whole.items() if name != "model.norm.weight"}
        with pytest.raises(SyncError, match=r"version 3: 1 tensors of the model did not arrive: model\.norm\.weight"):
            sync.publish(3)
        learner.weights = whole
        assert sync.publish(4).max_logprob_gap < 1e-4
    finally:
        learner.close()
        stage.close()


def test_a_head_that_is_the_embedding_follows_its_updates(tmp_path):
    discover()
    folder = tie(make_small(tmp_path / "policy"))
    learner = ModelLearner(folder, tmp_path / "changed")
    stage = RolloutStage(
        engine=engines.make("vllm", max_model_len=256, max_num_batched_tokens=2048, kv_cache_gib=0.25),
        current=lambda: (str(folder), 0),
        placements=[Placement()],
        seed=1,
        deadline_s=240,
        probe_prompts=make_prompts(2),
    )
    sync = WeightSync(learner=learner, rollouts=stage, transport=learner.transport, deadline_s=60)
    try:
        for version in (1, 2, 3):
            name = "model.embed_tokens.weight"
            learner.weights = {**learner.weights, name: 1.3 * learner.weights[name]}
            learner.change()
            report = sync.publish(version)
            assert report.max_logprob_gap < 1e-4 and report.num_tensors == len(learner.weights)
            assert "lm_head.weight" not in learner.weights
    finally:
        learner.close()
        stage.close()
