"""DeepSpeed behind a narrow interface: build an engine, step it with exact denominators, reach its weights and moments.

Supported are ZeRO stages 0 to 3, gloo on CPU and NCCL on GPU, fp32 and bf16. The gradient of a step is the sum over all
micro-batches of all ranks, divided once by the whole batch's denominator. Neither accumulation nor the number of ranks
changes it, except by rounding: in bf16 DeepSpeed adds micro-batches up in bf16.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import nn

from learners.config import LearnerConfig
from learners.memory import GATHERED_NUMEL, PREFETCHED_NUMEL, SUB_GROUP_NUMEL, bucket_numel
from learners.rendezvous import Rendezvous


def join(rendezvous: Rendezvous, *, deadline_s: float) -> torch.device:
    """Join the ranks' process group, with the backend that fits this machine's device.

    Returns:
        The device this rank works on.
    """
    on_gpu = torch.cuda.is_available()
    # DeepSpeed reads the rank from these variables, and would otherwise look for a launcher.
    os.environ.update(
        RANK=str(rendezvous.rank),
        WORLD_SIZE=str(rendezvous.world_size),
        LOCAL_RANK="0",
        MASTER_ADDR=rendezvous.address,
        MASTER_PORT=str(rendezvous.port),
    )
    if not on_gpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    # At every gather DeepSpeed calls functions that torch 2.13 has renamed, which warns each time.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    if not on_gpu:
        # At start DeepSpeed would compile a shared-memory operation that only its inference engine uses.
        from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

        deepspeed.ops.__compatible_ops__[ShareMemCommBuilder.NAME] = False
    deepspeed.logger.setLevel("WARNING")
    deepspeed.init_distributed(
        dist_backend="nccl" if on_gpu else "gloo",
        auto_mpi_discovery=False,
        timeout=timedelta(seconds=deadline_s),
        verbose=False,
    )
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")


def _engine_config(config: LearnerConfig) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.grad_clip if config.stage else 0.0,  # at stage 0 `Engine.step` clips
        "steps_per_print": 2**31 - 1,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": config.precision == "bf16"},
        "zero_optimization": {
            "stage": config.stage,
            "overlap_comm": torch.cuda.is_available(),
            "contiguous_gradients": True,
            # The memory plan (memory.py) computes with these sizes.
            "reduce_bucket_size": bucket_numel(torch.cuda.is_available()),
            "allgather_bucket_size": bucket_numel(torch.cuda.is_available()),
            "sub_group_size": SUB_GROUP_NUMEL,
            "stage3_max_live_parameters": GATHERED_NUMEL,
            "stage3_prefetch_bucket_size": PREFETCHED_NUMEL,
        },
    }


def parameter_groups(trained: Sequence[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """AdamW's parameter groups: matrices are decayed; norms and biases (fewer than two dimensions) are not.

    Without decay all parameters form one group.
    """
    if not weight_decay:
        return [{"params": list(trained), "weight_decay": 0.0}]
    matrices = [parameter for parameter in trained if parameter.ndim >= 2]
    vectors = [parameter for parameter in trained if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]  # DeepSpeed fails on an empty group


class Engine:
    """A module under DeepSpeed with its AdamW.

    The parameters that require a gradient when the engine is made are trained, and no others. Their `requires_grad` is not
    looked at later, because PEFT switches it.
    """

    def __init__(self, module: nn.Module, config: LearnerConfig, rendezvous: Rendezvous) -> None:
        import deepspeed

        self._stage = config.stage
        self._grad_clip = config.grad_clip
        self._world_size = rendezvous.world_size
        self.trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
        """The trained parameters by their names in the module, in the module's order."""
        trained = list(self.trained.values())
        groups = parameter_groups(trained, config.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=0.0, betas=tuple(config.betas), fused=True)
        buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
        self._engine, *_ = deepspeed.initialize(
            model=module, model_parameters=trained, optimizer=optimizer, config=_engine_config(config)
        )
        if self._stage == 0 and self._world_size == 1:
            # There is no other rank to reduce gradients with; DeepSpeed would only copy them into one buffer and back.
            self._engine.enable_backward_allreduce = False
        self.module = module
        self._restore_buffers(buffers)

    def _restore_buffers(self, buffers: dict[str, torch.Tensor]) -> None:
        """Put the buffers back as they were before DeepSpeed cast them to bf16 together with the weights.

        Rotary frequencies are such buffers, and inference engines keep them in float32.
        """
        for name, buffer in buffers.items():
            owner, _, own_name = name.rpartition(".")
            setattr(self.module.get_submodule(owner), own_name, buffer.to(self.device))

    @property
    def device(self) -> torch.device:
        return torch.device(self._engine.device)

    def __call__(self, *inputs: Any) -> Any:
        """Run a forward pass with gradient."""
        return self._engine(*inputs)

    def backward(self, loss_sum: torch.Tensor, *, denominator: float, last: bool) -> None:
        """Add one micro-batch's gradient.

        Args:
            loss_sum: sum of the loss over the micro-batch's examples.
            denominator: denominator of the whole batch, all ranks together.
            last: whether this is the step's last micro-batch.
        """
        self._engine.set_gradient_accumulation_boundary(last)
        # DeepSpeed averages gradients over ranks. The factor turns this average into a sum that is divided once.
        self._engine.backward(loss_sum * (self._world_size / denominator))

    def step(self, lr: float) -> float:
        """Clip the gradients, take the optimizer step, and drop the gradients.

        Returns:
            Norm of the whole gradient before clipping.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        if self._stage == 0:
            # At stage 0 DeepSpeed keeps no norm, and the gradients are already the same on all ranks.
            with_gradient = [p for p in self.trained.values() if p.grad is not None]
            norm = torch.nn.utils.get_total_norm([p.grad for p in with_gradient])
            if 0 < self._grad_clip < norm:
                torch.nn.utils.clip_grads_with_norm_(with_gradient, self._grad_clip, norm)
            self._engine.step()
        else:
            self._engine.step()
            norm = self._engine.get_global_grad_norm()
        return float(norm)

    @property
    def _optimizer(self) -> torch.optim.Optimizer:
        wrapped = self._engine.optimizer
        return getattr(wrapped, "optimizer", wrapped)

    def masters(self) -> list[torch.Tensor]:
        """This rank's float32 weights that AdamW steps, in a fixed order.

        At stage 0 they are the parameters themselves, in the module's order. At stages 1 and 2 there is one flat
        tensor per parameter group, at stage 3 one per sub-group of a parameter group.
        """
        if self._stage == 0:
            return list(self.trained.values())
        if self._stage == 3:
            return list(self._engine.optimizer.fp32_partitioned_groups_flat)
        return [parameter for group in self._optimizer.param_groups for parameter in group["params"]]

    def moments(self) -> list[dict[str, torch.Tensor]]:
        """AdamW's state of each master, in the order of `masters`; empty before the first step."""
        return [self._optimizer.state.get(master, {}) for master in self.masters()]

    def set_moments(self, states: Sequence[dict[str, torch.Tensor]]) -> None:
        """Put AdamW's state of each master back; an empty mapping clears it."""
        for master, state in zip(self.masters(), states, strict=True):
            self._optimizer.state.pop(master, None)
            if state:
                moved = {name: value.to(master.device, copy=True) for name, value in state.items()}
                self._optimizer.state[master] = moved

    def release_gathered(self) -> None:
        """Under ZeRO-3, free every gathered weight, so that the shards may be changed."""
        self._engine.empty_partition_cache()

    def local_weights(self) -> dict[str, torch.Tensor]:
        """The part of every trained parameter that this rank holds (its shard under ZeRO-3), to be read or changed in place."""
        return {name: getattr(parameter, "ds_tensor", parameter).data for name, parameter in self.trained.items()}

    def exchange(self, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Make the module compute with other tensors in place of `local_weights()`, without copying.

        Returns:
            The tensors that were in place, to be exchanged back before the next step.
        """
        self.release_gathered()
        before = {}
        for name, parameter in self.trained.items():
            held = getattr(parameter, "ds_tensor", parameter)
            before[name] = held.data
            held.data = weights[name].to(device=held.device, dtype=held.dtype)
        return before

    @contextmanager
    def without_adapter(self) -> Iterator[None]:
        """Context in which the module computes without its LoRA adapter.

        When the adapter is switched on again, PEFT sets `requires_grad` of every adapter weight, including frozen ones. The
        context sets it back, so that frozen weights get no gradient.
        """
        try:
            with self.module.model.disable_adapter():
                yield
        finally:
            for name, parameter in self.module.named_parameters():
                parameter.requires_grad_(name in self.trained)

    def refresh_masters(self) -> None:
        """Copy the weights to the float32 masters, after the weights were changed from outside."""
        wrapped = self._engine.optimizer
        if self._stage == 3:
            for master, weights in zip(self.masters(), wrapped.fp16_partitioned_groups_flat, strict=True):
                master.data.copy_(weights.data)
        elif self._stage > 0:
            wrapped.refresh_fp32_params()

    def gathered(self, parameters: Sequence[nn.Parameter], *, writer: int | None = None) -> Any:
        """Context in which whole parameters can be read, or changed by rank `writer`; all ranks must enter it together."""
        import deepspeed

        enabled = self._stage == 3
        return deepspeed.zero.GatheredParameters(list(parameters), modifier_rank=writer, enabled=enabled)

    def reduce(self, values: Sequence[float], operation: str) -> list[float]:
        """The sum (`operation` is `sum`) or the largest (`max`) of each value over the ranks."""
        if self._world_size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        kind = {"sum": torch.distributed.ReduceOp.SUM, "max": torch.distributed.ReduceOp.MAX}[operation]
        torch.distributed.all_reduce(tensor, op=kind)
        return tensor.tolist()

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in the order of ranks. The values should be small, because they are pickled."""
        if self._world_size == 1:
            return [value]
        found: list[Any] = [None] * self._world_size
        torch.distributed.all_gather_object(found, value)
        return found

    def close(self) -> None:
        """Leave the process group."""
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
