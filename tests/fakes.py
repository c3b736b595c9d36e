"""Hand-written stand-ins and small records for tests."""

import numpy as np

from rlsys.records import (
    Ask,
    Completion,
    Critique,
    Generation,
    PreferencePair,
    Prompt,
    Response,
    RolloutGroup,
    RoundPlan,
    Sampled,
    Sampling,
    ScoredGroup,
    Turn,
    Verdict,
)


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
        "reference": "previous",
        "lag": 0,
    }
    return RoundPlan(**{**values, **changes})


def sampled_response(
    text: str, *, logprobs=None, temperature=1.0, seed=0, top_p=1.0, policy_version=0, **changes
) -> Response:
    """A response that an engine sampled; its tokens are the bytes of the text if none are given."""
    token_ids = changes.pop("token_ids", np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int32))
    if logprobs is None:
        logprobs = np.full(len(token_ids), -0.5, dtype=np.float32)
    sampled = Sampled(policy_version=policy_version, logprobs=logprobs, temperature=temperature, top_p=top_p, seed=seed)
    return Response(text=text, token_ids=token_ids, sampled=sampled, **changes)


def make_prompt(name: str = "p") -> Prompt:
    return Prompt(id=name, turns=(Turn(role="user", text="what is there ?"),))


def make_group(texts=("a", "b"), **changes) -> RolloutGroup:
    values = {
        "prompt": make_prompt(),
        "round": 0,
        "index": 0,
        "policy_version": 0,
        "prompt_token_ids": np.array([1, 2], dtype=np.int32),
        "responses": tuple(map(sampled_response, texts)),
    }
    return RolloutGroup(**{**values, **changes})


def make_scored_group(texts=("a", "b"), scores=(1.0, 0.0), **changes) -> ScoredGroup:
    verdicts = tuple(map(make_verdict, scores))
    return ScoredGroup(group=make_group(texts, **changes), verdicts=verdicts)


def make_verdict(score: float | None, text: str = "") -> Verdict:
    """The verdict of one critique; `None` is one whose critique could not be read."""
    if score is None:
        return Verdict(failed=1)
    return Verdict.of_critiques((Critique(text=text, score=score),))


def make_ask(question: str, role: str = "judge", **sampling) -> Ask:
    prompt = Prompt(id=question, turns=(Turn(role="user", text=question),))
    return Ask(role=role, prompt=prompt, sampling=Sampling(**sampling))


def make_generation(*texts: str, **changes) -> Generation:
    """An engine's answer to a question, one completion per text; the tokens are the bytes of the texts."""
    completions = tuple(make_completion(text, **changes) for text in texts)
    return Generation(prompt_token_ids=np.array([1, 2], np.int32), completions=completions)


def make_completion(text: str, *, finish_reason="stop", **changes) -> Completion:
    token_ids = np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int32)
    logprobs = np.full(len(token_ids), -0.5, np.float32)
    return Completion(text=text, token_ids=token_ids, logprobs=logprobs, finish_reason=finish_reason, **changes)


def make_pair(name: str = "p", **changes) -> PreferencePair:
    """A pair of sampled responses to one prompt."""
    values = {
        "prompt": make_prompt(name),
        "prompt_token_ids": np.array([1, 2], dtype=np.int32),
        "chosen": sampled_response("good"),
        "rejected": sampled_response("bad"),
        "chosen_score": 2.0,
        "rejected_score": 1.0,
        "margin": 1.0,
        "beta_scale": 1.0,
        "round": 0,
    }
    return PreferencePair(**{**values, **changes})
