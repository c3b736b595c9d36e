"""Translates our records into vLLM's requests, and vLLM's outputs into our records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from actors.engines.vllm_prompts import Refused
from rlsys.chat import Chat
from rlsys.errors import EngineError
from rlsys.records import Completion, Generation, Probe, Prompt, Sampling

FORBIDDEN_BIAS = -1e9
"""Bias that is added to the logits of special tokens, so that their probability is exactly 0 in float32."""


class Translator:
    """The translator for one checkpoint, whose chat template and tokens it uses."""

    def __init__(self, folder: Path, *, raw_logits: bool) -> None:
        """
        Args:
            raw_logits: whether the engine returns raw logits instead of logprobs.
        """
        self._raw_logits = raw_logits
        self.chat = Chat(folder)
        self.bias = dict.fromkeys(sorted(self.chat.special - self.chat.ends), FORBIDDEN_BIAS)
        """Bias of every special token. A request's own stop token gets no bias."""

    def prompt(self, prompt: Prompt, response: Sequence[int] = ()) -> dict[str, Any]:
        """The prompt for `vllm.LLM`: its token ids, followed by those of a response, and its images under their digests.

        Raises:
            ConfigError: the prompt has images and the checkpoint takes none.
        """
        from PIL import Image

        token_ids = {"prompt_token_ids": [*self.chat.prompt_ids(prompt), *response]}
        if not prompt.images:
            return token_ids
        return {
            **token_ids,
            "multi_modal_data": {"image": [Image.fromarray(image.pixels) for image in prompt.images]},
            "multi_modal_uuids": {"image": [image.digest for image in prompt.images]},
        }

    def sampling(self, wanted: Sampling) -> Any:
        """The `vllm.SamplingParams` of a request. For a greedy request only one candidate is sampled.

        Raises:
            EngineError: the request has a score token, and the engine does not return raw logits.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        stop = [] if wanted.stop_token is None else [self.chat.token_id(wanted.stop_token)]
        scores = wanted.score_token is not None
        if scores and not self._raw_logits:
            raise EngineError("score_token needs an engine opened with raw_logits=True")
        return SamplingParams(
            n=wanted.num_samples if wanted.temperature > 0 else 1,
            temperature=wanted.temperature,
            top_p=wanted.top_p,
            max_tokens=wanted.max_tokens,
            seed=wanted.seed,
            stop_token_ids=stop,
            logit_bias={token: bias for token, bias in self.bias.items() if token not in stop},
            **self._values_of(wanted),
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            skip_clone=True,  # no other code holds the parameters, and a clone would copy the bias of every token
        )

    def _values_of(self, wanted: Sampling) -> dict[str, Any]:
        """The parameters by which vLLM returns the values of the needed tokens at every position.

        Raises:
            EngineError: no candidate is a single token of this model.
        """
        if not wanted.candidate_tokens:
            # Only the value of the sampled token is needed, which may be the score token. vLLM would read the values of other
            # tokens one request after the other.
            return {"logprobs": 0 if wanted.score_token is not None or not self._raw_logits else None}
        ids = [number for number in map(self.chat.candidate_id, wanted.candidate_tokens) if number is not None]
        if not ids:
            raise EngineError(f"none of {', '.join(map(repr, wanted.candidate_tokens))} is one token of this model")
        return {"logprob_token_ids": list(dict.fromkeys(ids))}

    def generations(self, outputs: Sequence[Any], wanted: Sequence[Sampling]) -> list[Generation]:
        """The generations of `vllm.RequestOutput`s. The one sample of a greedy request is copied to all of its candidates. The
        generation of a `Refused` prompt has no completions.
        """
        answered = [output for output in outputs if not isinstance(output, Refused)]
        texts = iter(self.chat.texts([list(one.token_ids) for output in answered for one in output.outputs]))
        found = []
        for output, each in zip(outputs, wanted, strict=True):
            if isinstance(output, Refused):
                found.append(Generation(prompt_token_ids=np.zeros(0, np.int32), completions=()))
                continue
            completions = [self._completion(one, each, next(texts)) for one in output.outputs]
            if each.temperature == 0:
                completions = completions * each.num_samples
            ids = np.asarray(output.prompt_token_ids, dtype=np.int32)
            found.append(Generation(prompt_token_ids=ids, completions=tuple(completions)))
        return found

    def _completion(self, one: Any, wanted: Sampling, text: str) -> Completion:
        token_ids = np.asarray(one.token_ids, dtype=np.int32)
        reason = one.finish_reason
        if wanted.stop_token is not None and one.stop_reason == self.chat.token_id(wanted.stop_token):
            reason = "stop_token"
        of_sampled = None if one.logprobs is None else np.asarray(one.logprobs.logprobs, dtype=np.float32)
        candidates = None
        if wanted.candidate_tokens:
            rows = of_sampled.reshape(len(token_ids), -1)
            of_sampled = rows[:, 0]
            candidates = self._candidate_values(rows, np.reshape(one.logprobs.token_ids, rows.shape), wanted)
        scores = None
        if wanted.score_token is not None:
            scores = np.where(token_ids == self.chat.token_id(wanted.score_token), of_sampled, np.float32(np.nan))
        return Completion(
            text=text,
            token_ids=token_ids,
            logprobs=np.zeros(0, np.float32) if self._raw_logits else of_sampled,
            finish_reason=reason,
            score_logits=scores,
            candidate_values=candidates,
        )

    def _candidate_values(self, values: np.ndarray, token_ids: np.ndarray, wanted: Sampling) -> np.ndarray:
        """float32 [T, C]: the values of the C candidate tokens at each of T positions, -inf for a candidate that is not a
        single token of this model.

        Args:
            values: float32 [T, N], the values that vLLM returned at each position.
            token_ids: int [T, N], the ids of the tokens to which the values belong.
        """
        found = np.full((len(values), len(wanted.candidate_tokens)), -np.inf, np.float32)
        numbers = list(map(self.chat.candidate_id, wanted.candidate_tokens))
        for column, number in enumerate(numbers):
            if number is not None and number not in numbers[:column]:
                rows, places = np.nonzero(token_ids == number)
                found[rows, column] = values[rows, places]
        return found


def probe_sampling() -> Any:
    """The `vllm.SamplingParams` that give the logprobs of the tokens in a prompt."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        max_tokens=1,
        temperature=0.0,
        prompt_logprobs=0,
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def probe_logprobs(output: Any, probe: Probe) -> np.ndarray:
    """float32 [T]: the logprobs of the probe's T response tokens.

    Raises:
        EngineError: the engine's tokens of the prompt are not those of the probe.
    """
    expected = [*probe.prompt_token_ids, *probe.response_token_ids]
    if list(output.prompt_token_ids) != expected:
        raise EngineError(
            f"probe of prompt {probe.prompt.id!r}: this engine makes {len(output.prompt_token_ids)} tokens of it, "
            f"the probe has {len(expected)}, and they differ"
        )
    flat = output.prompt_logprobs
    count = len(probe.response_token_ids)
    values = np.asarray(flat.logprobs, dtype=np.float32)
    return values[np.asarray(flat.start_indices[-count:])]
