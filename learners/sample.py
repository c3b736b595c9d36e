"""A bounded, evenly spread sample of the responses of a stretch of training, and the estimate of KL on it.

The estimate is about the policy's own distribution, at temperature 1 and over all tokens. Responses that were sampled with
other settings come from another distribution and are left out. If no response remains, there is no estimate.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch

from learners.micro_batch import MicroBatch
from learners.trees import Branch, Tree
from rlsys.common.checksum import content_key


class ResponseSample:
    """Keeps trees with at most `limit` responses in total, evenly spread over all trees that were offered.

    Only responses that an engine sampled at temperature 1 are kept. Each of them is kept once, even if it comes in several
    batches: the pairs of a prompt may be spread over several batches.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._stride = 1
        self._num_offered = 0
        self.seen: set[bytes] = set()
        """Keys of all responses that were offered and could be kept."""
        self.trees: list[Tree] = []

    def add(self, trees: Iterable[Tree]) -> None:
        """Offer trees, in order."""
        for tree in trees:
            branches = [branch for branch in tree.answers if self._is_new(tree, branch)] if self._limit else []
            if not branches:
                continue
            if self._num_offered % self._stride == 0:
                self.trees.append(replace(tree, answers=branches).copy())
            self._num_offered += 1
            while len(self.trees) > 1 and sum(len(kept.answers) for kept in self.trees) > self._limit:
                self.trees = self.trees[::2]
                self._stride *= 2

    def without(self, others: set[bytes]) -> list[Tree]:
        """The kept trees without the responses that another rank counts.

        Args:
            others: keys of the responses that the other ranks were offered.
        """
        left = [
            replace(tree, answers=[branch for branch in tree.answers if _key(tree, branch) not in others])
            for tree in self.trees
        ]
        return [tree for tree in left if tree.answers]

    def _is_new(self, tree: Tree, branch: Branch) -> bool:
        """Whether a response can be kept and was not offered before."""
        if branch.rollout is None or branch.rollout.sampled.temperature != 1.0:
            return False
        key = _key(tree, branch)
        is_new = key not in self.seen
        self.seen.add(key)
        return is_new


def _key(tree: Tree, branch: Branch) -> bytes:
    """Key that identifies a response to a prompt in all batches and on all ranks."""
    images = "".join(image.digest for image in tree.images).encode()
    sizes = repr((branch.round, len(tree.prompt_ids), len(images))).encode()
    return content_key(sizes, tree.prompt_ids.tobytes(), images, branch.token_ids.tobytes())


def num_candidates(batch: MicroBatch) -> int:
    """Number of candidates of a micro-batch: its responses, each counted as often as it was sampled."""
    return sum(branch.rollout.count for branch in batch.answers)


def k3_sum(batch: MicroBatch, logps_L: torch.Tensor) -> float:
    """KL(sampler || policy) summed over a micro-batch's responses and their copies, nats.

    This is the k3 estimate (Schulman, "Approximating KL divergence", 2020) on the sampler's own responses: the sum over tokens
    of exp(u) - 1 - u with u = log policy - log sampler, which is never negative. A response that was sampled several times
    counts as often, because otherwise rare responses would weigh as much as frequent ones. Both logprobs are those at
    temperature 1. The responses must have been sampled at temperature 1 from all tokens (top_p 1).

    Args:
        logps_L: the policy's logprobs of the responses' tokens.
    """
    rollouts = [branch.rollout for branch in batch.answers]
    recorded_L = torch.cat([torch.from_numpy(rollout.sampled.logprobs.copy()) for rollout in rollouts])
    counts_A = torch.tensor([rollout.count for rollout in rollouts])
    counts_L = counts_A.repeat_interleave(torch.tensor([len(rollout.sampled.logprobs) for rollout in rollouts]))
    ratio_L = (logps_L - recorded_L).double()
    ratio_L = torch.where(batch.loss_mask > 0, ratio_L, 0.0)
    return float((counts_L * (ratio_L.expm1() - ratio_L)).sum())
