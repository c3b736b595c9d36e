"""One rank of the learner, as a plain class: it takes frames of examples, and gives optimizer steps, logprobs and weights."""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from learners import model, state
from learners.allocator import keep_freed_memory
from learners.collate import Collator
from learners.config import LearnerConfig
from learners.deepspeed_backend import Engine, join
from learners.folder import copy_surroundings, write_weights
from learners.loss import Loss
from learners.micro_batch import MicroBatch
from learners.padding import multiple_for
from learners.plan import FitPlan
from learners.reference import Reference
from learners.reference_check import ReferenceCheck
from learners.rendezvous import Rendezvous
from learners.sample import ResponseSample, k3_sum, num_candidates
from learners.shards import SHARD_LIMITS
from learners.tokens import Processor
from learners.trees import Branch, parts
from learners.weight_sender import WeightSender
from learners.weights_source import WeightsSource
from rlsys import registry, wire
from rlsys.errors import LearnerError
from rlsys.records import Probe
from rlsys.seeding import child_seed


@dataclass(frozen=True, kw_only=True)
class StepOutput:
    """The result of one step on one rank."""

    sums: dict[str, float]
    """`loss`, `examples`, `tokens` and the objective's metrics, summed over this rank's examples."""
    grad_norm: float
    """Norm of the whole gradient before clipping; the same on all ranks."""
    denominator: float
    """The number that the summed loss was divided by; the same on all ranks."""
    seconds: float


class LearnerRank:
    """Trains on one shard of every batch. All ranks must get the same calls in the same order."""

    def __init__(self, config: LearnerConfig, objective: Any, model_path: str, rendezvous: Rendezvous) -> None:
        """
        Args:
            objective: a plug-in of group `objective`.
            model_path: Hugging Face folder of the weights to start from.
        """
        keep_freed_memory()
        self._device = join(rendezvous, deadline_s=config.deadline_s)
        self._config, self._rendezvous = config, rendezvous
        self._own_objective = self._objective = objective
        self._folder = Path(model_path)
        self._processor = Processor(self._folder, cache_mib=config.image_cache_mib)
        self._collator = self._make_collator()
        module = model.load(self._folder, config)
        self._engine = Engine(module, config, rendezvous)
        self._dummy_image = self._make_dummy_image()
        self._loss = Loss(objective, self._engine, self._output)
        self._reference = Reference(self._engine, config, self._logprobs)
        self._check = ReferenceCheck(self._reference, self._engine, config, self._logprobs)
        self._weights = WeightsSource(self._engine)
        self.weight_sender = WeightSender(self._weights, rank=rendezvous.rank)
        """This rank's part in weight updates."""
        self._sample = self._fresh_sample()
        self._references_of: dict[int, Sequence[torch.Tensor | None]] = {}
        self._plan: FitPlan | None = None
        gc.collect()
        gc.freeze()  # else a full collection walks all modules and the model, which takes 0.2 s in the middle of a step

    def begin(self, plan: FitPlan) -> None:
        """Start a stretch of training.

        Raises:
            ConfigError: the plan's reference rule needs weights that are not kept.
        """
        torch.manual_seed(child_seed(plan.seed, "dropout", plan.policy_version, self._rendezvous.rank))
        self._references_of = {}
        self._sample = self._fresh_sample()
        self._plan = plan
        if not plan.accumulated:
            # Other prompts come now. Old images would stay until the cache is full, and only make the process grow.
            self._processor.forget_images()
        self._objective = registry.objective.configured(self._own_objective, plan.options)
        self._collator = self._make_collator()
        self._loss = Loss(self._objective, self._engine, self._output)
        self._reference.begin(plan, self._loss.needs)
        self._check.begin()
        has_values = "values" in self._loss.needs
        self._engine.module.read_values(self._processor.token_id(self._objective.value_token) if has_values else None)

    def step(self, frame: bytes | None, *, lr: float, batch: int) -> StepOutput:
        """Take one optimizer step on this rank's shard of a batch.

        Args:
            frame: records of the objective's class; `None` if a small batch has no shard for this rank.
            batch: number of the batch in this stretch; the same batch comes again in later epochs.

        Raises:
            LearnerError: the loss is not finite, or recorded logprobs are not those of the weights.
            RefusedRecord: a record cannot be trained on.
        """
        started = time.monotonic()
        kind = self._objective.consumes
        batches = self._collator(wire.decode_many(frame, kind, limits=SHARD_LIMITS) if frame is not None else [])
        counts = [sum(len(b.examples) for b in batches), sum(b.num_loss_tokens for b in batches)]
        (num_passes,) = self._engine.reduce([len(batches)], "max")
        examples, tokens = self._engine.reduce(counts, "sum")
        batches += [self._collator.empty() for _ in range(int(num_passes) - len(batches))]
        for micro in batches:
            if micro.examples:
                self._sample.add(parts(micro.trees, self._counts))
        references = self._references(batches, batch)
        denominator = {"examples": examples, "tokens": tokens}[self._objective.denominator]
        statistics = self._loss.statistics(batches, references)
        sums = {"examples": float(counts[0]), "tokens": float(sum(b.num_target_tokens for b in batches if b.examples))}
        self._engine.module.train()
        for number, (micro, reference) in enumerate(zip(batches, references, strict=True)):
            loss, found = self._pass(micro, reference, statistics)
            self._engine.backward(loss, denominator=denominator, last=number == len(batches) - 1)
            for name, value in found.items():
                sums[name] = sums.get(name, 0.0) + value
        self._check.settle()
        grad_norm = self._engine.step(lr)
        if not np.isfinite(grad_norm):
            raise LearnerError(f"the gradient of batch {batch} has norm {grad_norm}: {sums}")
        self._reference.after_step()
        return StepOutput(sums=sums, grad_norm=grad_norm, denominator=denominator, seconds=time.monotonic() - started)

    def end(self) -> dict[str, float]:
        """Finish a stretch of training.

        Returns:
            Numbers of this rank. `kl_sum` is the sum of KL estimates, and `kl_responses` the number of responses, copies
            included, of a sample of the round's responses that this rank was trained on and an engine sampled. They are 0 if
            no response was sampled at temperature 1 and top_p 1. `kl_initial_sum` is the same sum for the divergence from the
            responses' sampler to version 0; it is given only if version 0 is available. `reference_checked` is the number of
            checked responses. `seconds` is the time of this call.
        """
        started = time.monotonic()
        seen = self._engine.gather(self._sample.seen)[: self._rendezvous.rank]
        batches = self._collator.of_trees(self._sample.without(set().union(*seen)))
        found = {"kl_sum": self._kl_sum(batches)}
        if self._reference.knows_initial:
            with self._reference.initial_weights():
                found["kl_initial_sum"] = self._kl_sum(batches)
        return {
            **found,
            "kl_responses": float(sum(map(num_candidates, batches))),
            "reference_checked": float(self._check.num_checked),
            "seconds": time.monotonic() - started,
        }

    def logprobs(self, frame: bytes) -> list[np.ndarray]:
        """float32 [T] logprobs of every probe's response tokens, in order."""
        probes = wire.decode_many(frame, Probe)
        batches = self._collator(probes)
        found: dict[int, np.ndarray] = {}
        for batch in batches:
            values = self._logprobs(batch).numpy()
            pieces = np.split(values, batch.last_token.numpy()[:-1] + 1)
            found.update({id(record): pieces[answers[0]] for record, answers in batch.examples})
        return [found[id(probe)] for probe in probes]

    def save(self, directory: str) -> None:
        """Write `policy/`, a Hugging Face folder with LoRA merged, and this rank's state in `optimizer/`.

        With LoRA the adapter is also written by itself, to `adapter/`.
        """
        root = Path(directory)
        is_first = self._rendezvous.rank == 0
        policy = root / "policy"
        if is_first:
            policy.mkdir(parents=True, exist_ok=True)
            copy_surroundings(self._folder, policy, model.DTYPES[self._config.precision])
        stream = self._weights.stream(keep=is_first)
        if is_first:
            write_weights(stream, policy)
        else:
            for _ in stream:
                pass
        if self._config.has_adapter:
            self._save_adapter(root / "adapter")
        if self._state_rank == self._rendezvous.rank:
            state.write(root, self._engine, **self._whose_state(), kept=self._reference.kept())

    def load(self, directory: str) -> None:
        """Restore the state that `save` wrote.

        Raises:
            CheckpointError: the state is missing, or was written with another number of ranks, ZeRO stage or model, or with
                other parameter groups.
        """
        kept = state.read(Path(directory), self._engine, **self._whose_state())
        self._reference.restore(kept)

    def reset(self) -> None:
        """Restore the weights that the learner started from, with a fresh optimizer."""
        fresh = dict(model.load(self._folder, self._config).named_parameters())
        self._engine.release_gathered()
        for name, parameter in self._engine.trained.items():
            with torch.no_grad(), self._engine.gathered([parameter], writer=0):
                if self._rendezvous.rank == 0 or self._config.stage < 3:
                    parameter.data.copy_(fresh[name])
        self._engine.refresh_masters()
        self._engine.set_moments([{} for _ in self._engine.masters()])
        self._reference.restore({})

    def close(self) -> None:
        """Leave the process group of the ranks."""
        self.weight_sender.close()
        self._engine.close()

    def _references(self, batches: list[MicroBatch], batch: int) -> Sequence[torch.Tensor | None]:
        """Reference logprobs [L] of every micro-batch; later epochs get the same values."""
        if self._loss.uses_recorded:
            self._check.look(batches, self._collator.join)
        if batch not in self._references_of:
            self._references_of[batch] = self._new_references(batches)
        return self._references_of[batch]

    def _new_references(self, batches: list[MicroBatch]) -> Sequence[torch.Tensor | None]:
        if "reference" not in self._loss.needs:
            return [None] * len(batches)
        (forward,) = self._engine.reduce([self._reference.needs_forward(batches)], "max")
        return self._reference.logps(batches, forward=bool(forward), join=self._collator.join)

    def _counts(self, answer: Branch) -> bool:
        """Whether KL may be estimated on a response. Responses of earlier rounds had another sampler. With top_p below 1 no
        response comes from the policy's whole distribution."""
        plan = self._plan
        return plan.top_p == 1 and (plan.round is None or answer.round == plan.round)

    def _pass(
        self, batch: MicroBatch, reference: torch.Tensor | None, statistics: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """A micro-batch's loss with gradient, and the sums of its loss and metrics."""
        output_RL = self._engine(batch, self._dummy_image)
        if not batch.examples:
            return 0.0 * output_RL.sum(), {}
        self._check.passed(batch, output_RL[0])
        return self._loss(batch, output_RL, reference, statistics)

    @torch.no_grad()
    def _output(self, batch: MicroBatch) -> torch.Tensor:
        self._engine.module.eval()
        return self._engine.module(batch, self._dummy_image).float()

    def _logprobs(self, batch: MicroBatch) -> torch.Tensor:
        return self._output(batch)[0].cpu()

    def _make_collator(self) -> Collator:
        return Collator(
            self._processor,
            micro_batch_tokens=self._config.micro_batch_tokens,
            score_token=getattr(self._objective, "score_token", None),
            multiple=multiple_for(self._device, model.DTYPES[self._config.precision]),
        )

    def _fresh_sample(self) -> ResponseSample:
        return ResponseSample(-(-self._config.kl_responses // self._rendezvous.world_size))

    def _kl_sum(self, batches: list[MicroBatch]) -> float:
        logps = self._logprobs_in_step(batches)
        return sum(k3_sum(batch, values) for batch, values in zip(batches, logps, strict=True))

    def _logprobs_in_step(self, batches: list[MicroBatch]) -> list[torch.Tensor]:
        """Logprobs of this rank's micro-batches, with as many passes as the rank with most micro-batches makes."""
        (passes,) = self._engine.reduce([len(batches)], "max")
        padded = batches + [self._collator.empty() for _ in range(int(passes) - len(batches))]
        return [self._logprobs(batch) for batch in padded][: len(batches)]

    def _make_dummy_image(self) -> MicroBatch | None:
        """The dummy image for micro-batches without images, or `None` if none is needed.

        It is needed where ranks would otherwise run different modules or reduce different gradients.
        """
        module = self._engine.module
        in_step = self._rendezvous.world_size > 1 or self._config.stage > 0
        if not self._processor.has_images or not (in_step and (module.trains_vision or self._config.stage == 3)):
            return None
        return self._collator.join([self._collator.blank()])

    @property
    def _state_rank(self) -> int:
        """The rank that writes this rank's state. It is rank 0 without ZeRO, because all ranks then hold the same."""
        return self._rendezvous.rank if self._config.stage else 0

    def _whose_state(self) -> dict[str, Any]:
        """Arguments of `state.read` and `state.write`. Only ZeRO-3 partitions the weights over the ranks."""
        layout = {name: str(getattr(self._config, name)) for name in ("num_ranks", "zero_stage", "precision")}
        weights_rank = self._rendezvous.rank if self._config.stage == 3 else 0
        return {"layout": layout, "rank": self._state_rank, "weights_rank": weights_rank}

    def _save_adapter(self, directory: Path) -> None:
        peft_model = self._engine.module.model
        parameters = [p for name, p in peft_model.named_parameters() if "lora_" in name]
        with self._engine.gathered(parameters):
            if self._rendezvous.rank == 0:
                peft_model.save_pretrained(directory)
