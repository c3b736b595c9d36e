"""What only a GPU can show: weight updates on the device, bfloat16 engines against bfloat16 learners, a whole run."""

import json
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from actors.stages import RolloutStage
from benchmarks import device
from learners import flash
from learners.attention import TreeLayout, attend, attend_from_predictors
from learners.config import LearnerConfig
from learners.group import LearnerGroup
from rlsys.app.cluster import cluster
from rlsys.objectives.dpo import DPO
from rlsys.placement import Placement
from rlsys.records import Probe
from rlsys.run.sync import WeightSync
from rlsys.schedules.phases import Phase
from rlsys.transports.ipc import Ipc
from rlsys.transports.nccl import Nccl
from rlsys.worlds.scenes.source import make_prompt
from tests.integration.small_model import make_prompts, make_small

pytestmark = [pytest.mark.integration, pytest.mark.gpu, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
TOLERANCE = 0.1
"""Nats per token, that of cluster=one_gpu."""
DEADLINE_S = 900
ONE_HOST_EACH = {  # NCCL refuses two ranks on one GPU of one host
    "NCCL_P2P_DISABLE": "1",
    "NCCL_SHM_DISABLE": "1",
    "NCCL_NET": "Socket",
    "NCCL_SOCKET_IFNAME": "lo",
    "NCCL_IB_DISABLE": "1",
    "NCCL_MAX_CTAS": "4",
}


@pytest.fixture(scope="module")
def machine():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in device.ENVIRONMENT.items():
            patch.setenv(name, value)
        with cluster(None) as found:
            yield found


def placement(share, host):
    return Placement(num_cpus=1, num_gpus=share, num_threads=2, env={**ONE_HOST_EACH, "NCCL_HOSTID": host})


def publish_twice(tmp_path, transport):
    """An engine that holds other weights than the learner takes those of the learner; its answers to the probes before
    and after, and the two reports."""
    old, new = (make_small(tmp_path / f"seed{seed}", seed=seed) for seed in (1, 2))
    stage = RolloutStage(
        engine=device.engine(max_model_len=256, max_num_batched_tokens=2048, gpu_memory_utilization=0.1),
        current=lambda: (str(old), 0),
        placements=[placement(0.4, "engine")],
        seed=1,
        probe_prompts=make_prompts(3),
    )
    try:
        learner = LearnerGroup(LearnerConfig(precision="bf16"), DPO(), str(new), placements=[placement(0.6, "learner")])
        try:
            sync = WeightSync(learner=learner, rollouts=stage, transport=transport, tolerance=TOLERANCE, deadline_s=180)
            probes = stage.probes()
            [before] = stage.logprobs(probes)
            reports = [sync.publish(1), sync.publish(2)]
            [after] = stage.logprobs(probes)
            return np.concatenate(before), np.concatenate(after), reports
        finally:
            learner.close()
    finally:
        stage.close()


@pytest.mark.parametrize("transport", [Ipc(bucket_bytes=1 << 20), Nccl(bucket_bytes=1 << 20, deadline_s=120)])
def test_an_update_on_the_device_reaches_the_engine(machine, tmp_path, transport):
    before, after, (first, second) = publish_twice(tmp_path, transport)
    assert np.abs(after - before).max() > 2 * TOLERANCE
    assert first.num_probe_tokens == len(before) > 0
    assert first.max_logprob_gap <= TOLERANCE
    assert second.digest == first.digest and second.num_tensors == first.num_tensors


def test_flash_attention_of_a_row_is_that_of_padded_blocks():
    prompts, answers = [70, 5, 300], [[40, 3], [260], [1, 33, 500]]
    layout = TreeLayout.build(prompts, answers).to(torch.device("cuda"))
    torch.manual_seed(0)
    count, num_asked = sum(prompts) + sum(map(sum, answers)), sum(map(sum, answers))
    for attention, num_queries in ((attend, count), (attend_from_predictors, num_asked)):
        sizes = ((num_queries, 8), (count, 2), (count, 2))
        rows = [torch.randn(*size, 128, device="cuda", dtype=torch.bfloat16, requires_grad=True) for size in sizes]
        assert flash.fits(rows[0])
        exact = [row.detach().float().requires_grad_() for row in rows]
        outputs = attention(*rows, layout), attention(*exact, layout)
        weight = torch.randn_like(outputs[0])
        for found, expected in zip(
            (outputs[0], *torch.autograd.grad((outputs[0] * weight).sum(), rows)),
            (outputs[1], *torch.autograd.grad((outputs[1] * weight).sum(), exact)),
            strict=True,
        ):
            assert (found.float() - expected).norm() < 0.02 * expected.norm()


def test_bfloat16_sets_engine_and_learner_apart_by_no_more_than_a_run_allows(machine, tmp_path):
    folder = str(make_small(tmp_path / "small"))
    plan = Phase(num_prompts=16, num_candidates=4, max_tokens=64).plan(0, 0)
    stage = RolloutStage(
        engine=device.engine(max_model_len=512, gpu_memory_utilization=0.1),
        current=lambda: (folder, 0),
        placements=[placement(0.4, "engine")],
        seed=0,
    )
    with closing(stage):
        config = LearnerConfig(precision="bf16")
        with closing(LearnerGroup(config, DPO(), folder, placements=[placement(0.6, "learner")])) as learner:
            groups = list(stage.stream([make_prompt("online", index, "describe") for index in range(16)], plan))
            recorded = [(group, rollout) for group in groups for rollout in group.rollouts]
            probes = [
                Probe(
                    prompt=group.prompt,
                    prompt_token_ids=tuple(group.prompt_token_ids.tolist()),
                    response_token_ids=tuple(rollout.token_ids.tolist()),
                )
                for group, rollout in recorded
            ]
            found = learner.logprobs(probes)
    gaps = [ours - rollout.logprobs for ours, (_, rollout) in zip(found, recorded, strict=True)]
    assert len(gaps) > 16
    assert max(np.abs(gap).max() for gap in gaps) <= TOLERANCE
    assert max(np.abs(gap).mean() for gap in gaps) <= config.tolerance


def test_a_whole_run_on_one_gpu_ends_well(tmp_path):
    words = ["preset=scenes_ci", "cluster=one_gpu", f"output.runs_dir={tmp_path}", "name=gpu"]
    found = subprocess.run(
        [sys.executable, "-m", "rlsys.app.align", *words],
        cwd=ROOT,
        env={**os.environ, **device.ENVIRONMENT},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert found.returncode == 0, found.stdout
    rounds = json.loads((tmp_path / "gpu" / "summary.json").read_text())["rounds"]
    assert len(rounds) == 2
    for entry in rounds:
        assert entry["num_responses"] == 96 and entry["num_examples"] > 0
        assert entry["sync"]["max_logprob_gap"] <= TOLERANCE
