"""The engine plug-in for vLLM 0.26 to 0.32. Only this file and the files `vllm_*.py` in this folder and in `actors/` use vLLM.

The engine runs in the calling process. The result of a call depends only on its requests and the weights: the caches of
prefixes and images are emptied before every call, so that an engine that was replaced, or has processed other prompts before,
computes the same sums in the same order.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from actors.engines import checkpoints, engine
from actors.engines.vllm_prompts import PromptJoiner, Refused, VllmRequest
from actors.engines.vllm_records import Translator, probe_logprobs, probe_sampling
from actors.engines.vllm_steps import in_order
from actors.vllm_groups import one_gloo_device
from rlsys.common.imports import import_at_once
from rlsys.contracts import Request
from rlsys.errors import ConfigError, EngineError, RlsysError, SyncError
from rlsys.records import Generation, Probe

DTYPES = ("auto", "float32", "bfloat16", "float16")
CPU_BLOCK = 32
"""Tokens per block of the key-value cache on a CPU. vLLM's default is 128, and its kernel supports multiples of 32. Smaller
blocks are faster, because the candidates of a prompt share only complete blocks, and because the kernel always processes
whole blocks.
"""
_COMPILE_DISABLE = "TORCH_COMPILE_DISABLE"
_COMPILE_DISABLE_GIVEN = os.environ.get(_COMPILE_DISABLE)
"""The value that the user has set, or `None`."""


@engine("vllm")
@dataclass(kw_only=True)
class Vllm:
    """vLLM on a CPU, on one GPU, or on a tensor-parallel group of GPUs."""

    dtype: str = "float32"
    max_model_len: int = 2048
    """Largest number of tokens of a prompt with its response, image placeholders expanded."""
    max_num_seqs: int = 256
    """Largest number of candidates that are sampled at the same time."""
    max_num_batched_tokens: int = 8192
    """Largest number of tokens per forward pass; at least `max_model_len`, because a prompt is never split over two passes."""
    enforce_eager: bool = True
    """Whether to compile nothing. An engine that compiles on a CPU needs a C++ compiler, and takes longer to start."""
    tensor_parallel: int = 1
    """Number of GPUs in the tensor-parallel group."""
    gpu_memory_utilization: float = 0.9
    """Share of a GPU's memory for weights and key-value cache."""
    kv_cache_gib: float = 1.0
    """Size of the key-value cache on a CPU."""
    gpu_kv_cache_gib: float = 0.0
    """Size of the key-value cache on a GPU; 0 takes the memory that `gpu_memory_utilization` leaves. If several processes start
    on one GPU, the size must be given: vLLM would count memory that the others allocate in the meantime as its own, and find
    none left.
    """
    prefix_caching: bool = True
    images_per_prompt: int = 10
    """Largest number of images in a prompt; the default is the number of frames that are taken from a video
    (`rlsys.prompts.datasets`)."""
    seed: int = 0
    """Seed of vLLM's own random choices; every request has a seed of its own."""

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ConfigError(f"engine.dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        for name in ("max_model_len", "max_num_seqs", "tensor_parallel", "kv_cache_gib", "images_per_prompt"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"engine.{name} must be > 0, got {getattr(self, name)}")
        if self.gpu_kv_cache_gib < 0:
            raise ConfigError(f"engine.gpu_kv_cache_gib must be at least 0, got {self.gpu_kv_cache_gib}")
        if self.max_num_batched_tokens < self.max_model_len:
            raise ConfigError(
                f"engine.max_num_batched_tokens must be at least engine.max_model_len, "
                f"got {self.max_num_batched_tokens} < {self.max_model_len}"
            )
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ConfigError(f"engine.gpu_memory_utilization must be in (0, 1], got {self.gpu_memory_utilization}")

    @property
    def receivers(self) -> int:
        """Number of processes of one engine that take part in a weight update."""
        return self.tensor_parallel

    def open(self, model: str, *, version: int = 0, raw_logits: bool = False) -> VllmEngine:
        """Load a checkpoint.

        Args:
            model: Hugging Face folder or name.
            version: version of the checkpoint's weights.
            raw_logits: whether scores are raw logits, as judges need them. Logprobs are then not available.

        Raises:
            EngineError: vLLM does not start with this checkpoint.
        """
        return VllmEngine(self, model, version=version, raw_logits=raw_logits)


class VllmEngine:
    """The engine, an implementation of `rlsys.contracts.Engine`."""

    def __init__(self, options: Vllm, model: str, *, version: int, raw_logits: bool) -> None:
        folder = checkpoints.local_folder(model)
        self.version = version
        self._raw_logits = raw_logits
        self._expected = checkpoints.tensor_shapes(folder)
        _import_vllm(options)
        self._translator = Translator(folder, raw_logits=raw_logits)
        self._torn = False
        self._most = options.max_num_seqs
        self._has_answered = False
        self.notes: list[str] = []
        """One note for every prompt that the engine could not process, with the reason. The caller shows the notes and then
        clears the list."""
        with one_gloo_device():
            self._llm = _start(options, folder, raw_logits)
        self._joiner = PromptJoiner(self._llm, most_images=options.images_per_prompt)

    def generate(self, requests: Sequence[Request]) -> list[Generation]:
        """One generation per request, in order. The candidates of a greedy request are all equal."""
        return [one for ready in self.stream(requests) for one in ready]

    def stream(self, requests: Sequence[Request]) -> Iterator[list[Generation]]:
        """As `generate`, but every generation is yielded within a few engine steps after it and all before it are complete. The
        generation of a prompt that the model cannot process has no completions.

        Raises:
            EngineError: the engine can process none of the prompts, and has not processed any prompt before; or the last weight
                update failed.
        """
        if self._torn:
            raise EngineError("the last weight update failed half way: these weights are of no version")
        translator, left, why = self._translator, iter(requests), ""
        asked = ((translator.prompt(prompt), translator.sampling(wanted)) for prompt, wanted in requests)
        for outputs in self._run(asked):
            whose = list(islice(left, len(outputs)))
            for (prompt, _), output in zip(whose, outputs, strict=True):
                if isinstance(output, Refused):
                    why = f"prompt {prompt.id!r}: {output.reason}"
                    self.notes.append(why)
                else:
                    self._has_answered = True
            yield translator.generations(outputs, [wanted for _, wanted in whose])
        if why and not self._has_answered:
            raise EngineError(f"none of {len(requests)} prompts can be answered; {why}")

    def logprobs(self, probes: Sequence[Probe]) -> list[np.ndarray]:
        """float32 [T] for every probe: the logprobs of its T response tokens.

        Raises:
            EngineError: the engine was opened for raw logits, or its tokens of a prompt are not those of the probe.
        """
        if self._raw_logits:
            raise EngineError("an engine opened for raw logits has no log-probabilities")
        params = probe_sampling()
        asked = ((self._translator.prompt(probe.prompt, probe.response_token_ids), params) for probe in probes)
        outputs = [output for ready in self._run(asked) for output in ready]
        for probe, output in zip(probes, outputs, strict=True):
            if isinstance(output, Refused):
                raise EngineError(f"probe of prompt {probe.prompt.id!r}: {output.reason}")
        return [probe_logprobs(output, probe) for output, probe in zip(outputs, probes, strict=True)]

    def connect(self, offer: dict[str, Any]) -> None:
        """Join the weight sender that made `offer`.

        Raises:
            SyncError, SyncTimeout: the sender does not respond.
        """
        with _sync_errors("joining the sender of weights"):
            self._llm.init_weight_transfer_engine({"init_info": {"offer": offer}})

    def begin_update(self) -> None:
        """Prepare the model for new weights. Until `end_update` the engine cannot generate."""
        self._torn = True
        self._llm.start_weight_update()

    def receive(self, manifest: dict[str, Any]) -> None:
        """Receive all buckets of an update (`rlsys.transports.buckets`).

        Raises:
            SyncError, SyncTimeout: the sender is lost or late.
        """
        with _sync_errors("receiving weights"):
            self._llm.update_weights({"update_info": {"manifest": manifest}})

    def end_update(self, version: int) -> dict[str, Any]:
        """Put the weights in place, empty all caches, and return the report of the received weights.

        Raises:
            SyncError: a tensor of the model did not arrive, or tensor-parallel workers received different weights.
        """
        self._llm.finish_weight_update()
        self._forget()
        reports = self._llm.collective_rpc("rlsys_report")
        report = reports[0]
        if any(other["digest"] != report["digest"] for other in reports):
            raise SyncError(f"tensor-parallel workers received different weights: {[r['digest'] for r in reports]}")
        missing = sorted(self._expected.keys() - set(report["names"])) or report["not_loaded"]
        if missing:
            raise SyncError(
                f"version {version}: {len(missing)} tensors of the model did not arrive: {', '.join(missing[:5])}"
                + (" ..." if len(missing) > 5 else "")
            )
        self._torn = False
        self.version = version
        return {**{key: report[key] for key in ("names", "num_tensors", "num_bytes", "digest")}, "version": version}

    def close(self) -> None:
        """Stop the engine and its worker processes."""
        llm, self._llm = self._llm, None
        if llm is not None:
            llm.llm_engine.engine_core.shutdown()

    def _forget(self) -> None:
        """Empty the caches of prefixes, image embeddings and processed images.

        A call that was abandoned may have processed images that the engine never received. With these in the cache, the next
        call would send only their digests.
        """
        if not self._llm.reset_prefix_cache():
            raise EngineError("the prefix cache could not be emptied: requests are still running")
        self._llm.llm_engine.engine_core.reset_encoder_cache()
        self._llm.reset_mm_cache()

    def _run(self, requests: Iterator[VllmRequest]) -> Iterator[list[Any]]:
        self._forget()
        try:
            yield from in_order(self._llm, self._joiner.engine_inputs(requests), most=self._most)
        except RlsysError:  # a request could not be made
            raise
        except Exception as error:
            raise EngineError(f"vLLM: {type(error).__name__}: {error}") from error


@contextmanager
def _sync_errors(what: str) -> Iterator[None]:
    """Turn errors into `SyncError`. An error in a tensor-parallel worker arrives as an error of vLLM; an error in the worker
    of this process already is a `SyncError`."""
    try:
        yield
    except SyncError:
        raise
    except Exception as error:
        raise SyncError(f"{what}: {error}") from error


def _import_vllm(options: Vllm) -> None:
    """Import vLLM, and disable torch's compiler for an eager engine on a CPU, unless the user has set it.

    In an eager engine on a CPU, only the computation of a sampled token's rank would be compiled. This would delay the first
    responses by seconds, and would raise an error on a machine without a compiler.
    """
    # vLLM's engine runs in this process: the worker already has a process of its own, and a second one doubles the time to
    # start on a CPU.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    import_at_once("vllm.entrypoints.llm", "actors.vllm_plugin")
    from torch._dynamo import config

    if _COMPILE_DISABLE_GIVEN is None:
        # The environment variable has no effect in this process if torch has already read it. vLLM's own worker processes,
        # however, read it.
        config.disable = options.enforce_eager and not _on_gpu()
        if options.tensor_parallel > 1:
            os.environ[_COMPILE_DISABLE] = str(int(config.disable))


def _on_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _start(options: Vllm, folder: Path, raw_logits: bool) -> Any:
    from vllm import LLM

    from actors import vllm_plugin

    cache_gib = options.gpu_kv_cache_gib if _on_gpu() else options.kv_cache_gib
    try:
        return LLM(
            model=str(folder),
            dtype=options.dtype,
            max_model_len=options.max_model_len,
            max_num_seqs=options.max_num_seqs,
            max_num_batched_tokens=options.max_num_batched_tokens,
            enforce_eager=options.enforce_eager,
            tensor_parallel_size=options.tensor_parallel,
            distributed_executor_backend="mp" if options.tensor_parallel > 1 else "uni",
            gpu_memory_utilization=options.gpu_memory_utilization,
            kv_cache_memory_bytes=int(cache_gib * (1 << 30)) or None,
            **({} if _on_gpu() else {"block_size": CPU_BLOCK}),
            enable_prefix_caching=options.prefix_caching,
            # On a CPU, vLLM crashes if a prefill is split over two steps and the request has a seed of its own.
            enable_chunked_prefill=False,
            limit_mm_per_prompt={"image": options.images_per_prompt, "video": 0},
            logprobs_mode="raw_logits" if raw_logits else "raw_logprobs",
            seed=options.seed,
            generation_config="auto",
            weight_transfer_config={"backend": vllm_plugin.BACKEND},
            worker_extension_cls="actors.vllm_plugin.WorkerExtension",
            disable_log_stats=True,
        )
    except Exception as error:
        raise EngineError(f"vLLM does not start with {folder}: {type(error).__name__}: {error}") from error
