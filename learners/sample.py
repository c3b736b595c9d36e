"""A bounded, evenly spread sample of the answers a stretch of training saw, and the KL estimate made on it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from learners.micro_batch import MicroBatch
from learners.trees import Tree


class ResponseSample:
    """Keeps trees with at most so many answers in all, evenly spread over everything that was added."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._stride = 1
        self._seen = 0
        self.trees: list[Tree] = []

    def add(self, trees: Sequence[Tree]) -> None:
        """Offer trees, in order."""
        for tree in trees:
            if self._limit and self._seen % self._stride == 0:
                self.trees.append(tree.copy())
            self._seen += 1
            while len(self.trees) > 1 and sum(len(kept.answers) for kept in self.trees) > self._limit:
                self.trees = self.trees[::2]
                self._stride *= 2


def num_candidates(batch: MicroBatch) -> int:
    """Answers of a micro-batch, with as many copies as were sampled."""
    return sum(answer.rollout.count for answer in batch.answers)


def k3_sum(batch: MicroBatch, logps_L: torch.Tensor) -> float:
    """KL(sampler || policy) summed over a micro-batch's answers and their copies, nats.

    k3 estimate (Schulman, "Approximating KL divergence", 2020) on the sampler's own answers: sum over tokens of
    exp(u) - 1 - u with u = log policy - log sampler, never negative. An answer that was sampled several times counts as
    often: else rare ones would weigh as much as frequent ones. Both log-probabilities are those at temperature 1.

    Args:
        logps_L: the policy's log-probabilities of the answers' tokens.
    """
    rollouts = [answer.rollout for answer in batch.answers]
    recorded_L = torch.cat([torch.from_numpy(rollout.sampled.logprobs.copy()) for rollout in rollouts])
    counts_A = torch.tensor([rollout.count for rollout in rollouts])
    counts_L = counts_A.repeat_interleave(torch.tensor([len(rollout.sampled.logprobs) for rollout in rollouts]))
    ratio_L = (logps_L - recorded_L).double()
    ratio_L = torch.where(batch.loss_mask > 0, ratio_L, 0.0)
    return float((counts_L * (ratio_L.expm1() - ratio_L)).sum())
