"""Checks of `rlsys doctor` that run the real libraries, each with the smallest work that shows that it works."""

from __future__ import annotations

import os
import re
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rlsys.app.problem import Problem

DRIVER_VERSION = Path("/proc/driver/nvidia/version")
TOLERANCE = 1e-3
"""Largest allowed difference between an engine and the model whose weights it received, nats."""


def torchvision() -> str:
    """Check that torchvision can be imported and transforms an image, and that no broken torchaudio stops transformers from
    being imported.
    """
    import torch
    from torchvision import extension
    from torchvision.transforms.v2.functional import resize

    shape = tuple(resize(torch.zeros(3, 8, 8, dtype=torch.uint8), [4, 4]).shape)
    if shape != (3, 4, 4):
        raise Problem(f"a picture of 3x8x8 resized to 4x4 came out as {shape}")
    _torchaudio_loads()
    return "works" if extension._has_ops() else "works; its compiled operators do not fit this torch, which is harmless"


def _torchaudio_loads() -> None:
    # transformers imports torchaudio wherever it is installed, although nothing here needs it.
    if find_spec("torchaudio") is None:
        return
    try:
        import torchaudio  # noqa: F401
    except OSError as error:
        raise Problem(f"torchaudio does not fit this torch: {error}", "pip uninstall torchaudio torchcodec") from error


def gpus() -> str:
    """Check that torch sees the GPUs of the machine and that NCCL works on each."""
    import torch

    if not torch.cuda.is_available():
        if DRIVER_VERSION.exists():
            advice = "install the CUDA packages: pip install --no-deps -r requirements/gpu.txt; or update the driver"
            raise Problem("there is an NVIDIA driver, but torch cannot use it", advice)
        return "none; everything runs on the CPU"
    names = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        names.append(f"{properties.name} {properties.total_memory / 2**30:.0f} GiB")
    _reduce_alone()
    nccl = ".".join(map(str, torch.cuda.nccl.version()))
    return f"{', '.join(names)}; CUDA {torch.version.cuda}, driver {_driver()}, NCCL {nccl}"


def _driver() -> str:
    """Version of the NVIDIA kernel module, as far as this machine (or container) shows it."""
    text = DRIVER_VERSION.read_text() if DRIVER_VERSION.exists() else ""
    found = re.search(r"\b\d+\.\d+(\.\d+)?\b", text)
    return found.group() if found else "unknown"


def _reduce_alone() -> None:
    """Run an all-reduce with one rank, which loads NCCL and launches its kernel."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    tensor = torch.ones(4, device="cuda")
    dist.all_reduce(tensor)
    total = tensor.sum().item()
    dist.destroy_process_group()
    if total != 4.0:
        raise Problem(f"an NCCL all-reduce of one rank made 4 ones into {total:g}")


def ray() -> str:
    """Check that a private Ray cluster starts, runs a task in another process, and ends."""
    import ray as library

    from rlsys.app.cluster import cluster

    with cluster("local") as machine:
        other = library.get(library.remote(num_cpus=1)(_process_id).remote(), timeout=60)
    if other == os.getpid():
        raise Problem("a task ran in the calling process")
    return f"a cluster of {machine.num_cpus:g} CPUs started, ran a task and stopped"


def _process_id() -> int:
    return os.getpid()


def deepspeed() -> str:
    """Check that one DeepSpeed step changes a weight as plain gradient descent would."""
    import torch

    from learners.deepspeed_backend import Rendezvous, join
    from rlsys.transports.rendezvous import serve_store

    # The store holds a free port for the rendezvous until the process group takes it over.
    port = serve_store(10.0).port
    device = join(Rendezvous(rank=0, world_size=1, address="127.0.0.1", port=port), deadline_s=60.0)
    import deepspeed as library

    model = torch.nn.Linear(1, 1, bias=False, device=device)
    torch.nn.init.ones_(model.weight)
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": 2},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "gradient_clipping": 0.0,
    }
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine, *_ = library.initialize(model=model, optimizer=optimizer, config=config)
    engine.backward(engine(torch.full((1, 1), 2.0, device=device)).sum())
    engine.step()
    weight = model.weight.item()
    if abs(weight - 0.8) > 1e-6:
        raise Problem(f"a step of 0.1 on a gradient of 2 took a weight from 1 to {weight:g}, not to 0.8")
    return f"a ZeRO-2 step on {device}"


def engine() -> str:
    """Check that vLLM loads a small vision-language model and describes an image with it."""
    import numpy as np

    from rlsys.records import Sampling
    from rlsys.worlds.scenes.source import make_prompt

    with tempfile.TemporaryDirectory(prefix="rlsys-doctor-") as scratch:
        running = _open_engine(_make_model(scratch, seed=0))
        wanted = Sampling(num_samples=2, max_tokens=8, seed=1)
        (generation,) = running.generate([(make_prompt("heldout", 0, "describe"), wanted)])
        running.close()
    lengths = [len(one.token_ids) for one in generation.completions]
    if len(lengths) != 2 or not all(np.isfinite(one.logprobs).all() for one in generation.completions):
        raise Problem(f"2 answers of at most 8 tokens were asked for, {lengths} tokens came, or no log-probabilities")
    return f"vLLM loaded a small model and sampled {sum(lengths)} tokens about a picture"


def weight_sync() -> str:
    """Check that a running engine computes with weights that were sent to it over gloo."""
    from rlsys.records import Probe, Prompt, Turn

    prompt = Prompt(id="doctor", turns=(Turn(role="user", text="is there a red circle"),))
    with tempfile.TemporaryDirectory(prefix="rlsys-doctor-") as scratch:
        old, new = (_make_model(scratch, seed=seed) for seed in (0, 1))
        running = _open_engine(old)
        probe = Probe(prompt=prompt, prompt_token_ids=_prompt_ids(running, prompt), response_token_ids=(20, 30, 40))
        before = running.logprobs([probe])[0]
        num_bytes = _update(running, new)
        after = running.logprobs([probe])[0]
        running.close()
        expected = _logprobs(new, probe)
    gap = float(abs(after - expected).max())
    if not gap <= TOLERANCE:
        raise Problem(
            f"after the update the engine is {gap:.2g} nats from the model it was sent, {TOLERANCE:g} allowed"
        )
    if not abs(after - before).max() > TOLERANCE:
        raise Problem("the update changed nothing in the engine")
    return f"{num_bytes / 2**20:.1f} MiB over gloo; the engine then agrees to {gap:.0e} nats"


def _make_model(scratch: str, *, seed: int) -> Path:
    from rlsys.worlds.scenes.policy import make_policy

    return make_policy(Path(scratch, f"seed{seed}"), seed=seed)


def _open_engine(model: Path) -> Any:
    from actors.engines.vllm import Vllm

    small = Vllm(
        max_model_len=256,
        max_num_seqs=4,
        max_num_batched_tokens=512,
        kv_cache_gib=0.25,
        gpu_memory_utilization=0.2,
        images_per_prompt=1,
    )
    return small.open(str(model))


def _prompt_ids(running: Any, prompt: Any) -> tuple[int, ...]:
    from rlsys.records import Sampling

    (generation,) = running.generate([(prompt, Sampling(max_tokens=1))])
    return tuple(map(int, generation.prompt_token_ids))


def _update(running: Any, model: Path) -> int:
    """Send a checkpoint's tensors from another thread while the engine receives them. Returns the number of bytes received.

    Raises:
        Problem: the engine received something else than was sent.
    """
    from concurrent.futures import ThreadPoolExecutor

    from safetensors.torch import load_file

    from rlsys.transports.buckets import make_manifest
    from rlsys.transports.gloo import Gloo

    transport = Gloo(bucket_bytes=4 << 20, deadline_s=60.0)
    tensors = load_file(model / "model.safetensors")
    described = ((name, tensor.dtype, tensor.shape) for name, tensor in tensors.items())
    manifest = make_manifest(described, transport.bucket_bytes)
    sender = transport.sender(num_receivers=1)

    def send() -> dict[str, Any]:
        sender.connect()
        for bucket in manifest["buckets"]:
            sender.send_bucket([(name, tensors[name]) for name in bucket["names"]])
        return sender.finish()

    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(send)
        running.connect({**sender.offer(), "receiver": 0})
        running.begin_update()
        running.receive(manifest)
        arrived = running.end_update(1)
        sent = sending.result()
    sender.close()
    if arrived["digest"] != sent["digest"]:
        raise Problem(f"sent {sent['num_bytes']} bytes, {arrived['num_bytes']} arrived, with another digest")
    return arrived["num_bytes"]


def _logprobs(model: Path, probe: Any) -> Any:
    """The float32 [T] logprobs of a probe's response, computed by transformers."""
    import torch
    from transformers import AutoModelForImageTextToText

    network = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32).eval()
    ids = torch.tensor([[*probe.prompt_token_ids, *probe.response_token_ids]])
    start = len(probe.prompt_token_ids)
    with torch.no_grad():
        logprobs_TV = network(input_ids=ids).logits[0, start - 1 : -1].log_softmax(-1)
    return logprobs_TV.gather(1, ids[0, start:, None])[:, 0].numpy()
