"""Hand-written stand-ins and small records for tests."""

import numpy as np

from rlsys.records import Critique, Prompt, Rollout, RolloutGroup, RoundPlan, ScoredGroup, Turn, Verdict


def make_plan(**changes) -> RoundPlan:
    values = {
        "round": 0,
        "num_prompts": 2,
        "num_candidates": 2,
        "temperatures": (1.0,),
        "top_p": 1.0,
        "max_tokens": 8,
        "epochs": 1,
        "lr": 1e-5,
        "beta": 0.1,
        "scale_w": 0.5,
        "scale_k": 0.5,
        "pairs": "all_pairs",
        "min_margin": 0.0,
        "max_pairs_per_prompt": 0,
        "reference": "previous",
        "data": "current",
        "lag": 0,
    }
    return RoundPlan(**{**values, **changes})


def make_rollout(text: str, **changes) -> Rollout:
    token_ids = np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int32)
    values = {
        "text": text,
        "token_ids": token_ids,
        "logprobs": np.full(len(token_ids), -0.5, dtype=np.float32),
        "count": 1,
        "finish_reason": "stop",
        "temperature": 1.0,
        "seed": 0,
    }
    return Rollout(**{**values, **changes})


def make_prompt(name: str = "p") -> Prompt:
    return Prompt(id=name, turns=(Turn(role="user", text="what is there ?"),))


def make_group(texts=("a", "b"), **changes) -> RolloutGroup:
    values = {
        "prompt": make_prompt(),
        "round": 0,
        "index": 0,
        "policy_version": 0,
        "prompt_token_ids": np.array([1, 2], dtype=np.int32),
        "rollouts": tuple(make_rollout(text) for text in texts),
    }
    return RolloutGroup(**{**values, **changes})


def make_scored_group(texts=("a", "b"), scores=(1.0, 0.0), **changes) -> ScoredGroup:
    verdicts = tuple(Verdict(critiques=(Critique(text="", score=score),)) for score in scores)
    return ScoredGroup(group=make_group(texts, **changes), verdicts=verdicts)
