"""vLLM one step at a time: requests enter as others leave, and outputs come in the order of the requests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from actors.engines.vllm_prompts import Refused

STEPS = 4
"""After so many steps of the engine, and at the end, what is ready is handed over. Each time takes the processes that are
involved two milliseconds; a few tokens' time is little beside an answer's.
"""


def in_order(llm: Any, requests: Iterator[tuple[Any, Any]], *, most: int) -> Iterator[list[Any]]:
    """Run requests; those whose outputs are ready within `STEPS`, all before them included, are one list.

    When a request enters is decided by the steps of the engine and not by a clock: the same requests always pass through
    the model beside the same others. Only one request is asked for ahead of those that have entered.

    Args:
        llm: a `vllm.LLM` that is idle.
        requests: engine inputs with their `vllm.SamplingParams`; taken when there is room for all their candidates. What is
            `Refused` does not enter.
        most: candidates that are sampled at once; a request for more enters alone.

    Yields:
        `vllm.RequestOutput`s, and what was `Refused`. Closed early, the engine is idle again.
    """
    engine = llm.llm_engine
    coming = next(requests, None)
    inside: dict[str, str] = {}
    """By their outputs' ids, vLLM's own ids of the requests that were not handed over, in order."""
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
        engine.abort_request([name])  # what went wrong may have done so half way
        raise


def _has_room(engine: Any, candidates: int, most: int) -> bool:
    running = engine.get_num_unfinished_requests()
    return running == 0 or running + candidates <= most
