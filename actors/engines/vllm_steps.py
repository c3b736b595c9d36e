"""Runs vLLM step by step: requests enter the engine when others leave it, and outputs come in the order of the requests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from actors.engines.vllm_prompts import Refused

STEPS = 4
"""Number of engine steps after which the ready outputs are yielded; they are also yielded at the end. Every transfer costs the
involved processes two milliseconds, and the delay of a few tokens is small compared with the time of a response.
"""


def in_order(llm: Any, requests: Iterator[tuple[Any, Any]], *, most: int) -> Iterator[list[Any]]:
    """Run requests. An output is ready when it and all outputs before it are complete; the outputs that become ready within
    `STEPS` steps are one list.

    The steps of the engine, and not a clock, decide when a request enters. Therefore the same requests always pass through the
    model in the same batches. Only one request is taken ahead of those that have entered the engine.

    Args:
        llm: a `vllm.LLM` that is idle.
        requests: engine inputs with their `vllm.SamplingParams`. A request enters when there is room for all its candidates.
            `Refused` inputs do not enter.
        most: largest number of candidates that are sampled at once; a request with more candidates enters alone.

    Yields:
        Lists of `vllm.RequestOutput`, and `Refused` inputs as they are. If the generator is closed early, the engine is idle
        again.
    """
    engine = llm.llm_engine
    coming = next(requests, None)
    inside: dict[str, str] = {}
    """The requests whose outputs were not yielded yet, in order: vLLM's own id of the request, by the id of its output."""
    outputs: dict[str, Any] = {}
    steps = 0
    try:
        while coming or inside:
            while coming and _has_room(engine, coming[1].n, most):
                name = str(next(llm.request_counter))
                if isinstance(coming[0], Refused):
                    inside[name], outputs[name] = name, coming[0]
                else:
                    inside[name] = _enter(engine, name, *coming)
                coming = next(requests, None)
            outputs.update((output.request_id, output) for output in engine.step() if output.finished)
            steps += 1
            if steps % STEPS and engine.has_unfinished_requests():
                continue
            ready = []
            while inside and (first := next(iter(inside))) in outputs:
                ready.append(outputs.pop(first))
                del inside[first]
            if ready:
                yield ready
    finally:
        if inside:
            engine.abort_request([own for name, own in inside.items() if name not in outputs], internal=True)


def _enter(engine: Any, name: str, made: Any, params: Any) -> str:
    from actors.vllm_logprobs import bare_logprobs

    try:
        with bare_logprobs():
            return engine.add_request(name, made, params)
    except Exception:
        engine.abort_request([name])  # the request may have been added partly
        raise


def _has_room(engine: Any, candidates: int, most: int) -> bool:
    running = engine.get_num_unfinished_requests()
    return running == 0 or running + candidates <= most
