"""Frames of a round's records, with pictures: speed of encoding and decoding against memcpy and against pickle.

    python -m benchmarks.wire

The other forms hold the same content: `memcpy` copies the frame's bytes; `pickle` (protocol 5) takes the records as
they are, arrays and all; `objects` is the form of frameworks that pass batches as arrays of Python objects (a PIL
picture, a list of ints and a list of floats for each answer), pickled too.
"""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from benchmarks.arguments import parse
from benchmarks.harness import Row, Spread, Target, in_turn, seconds, write
from rlsys import wire
from rlsys.common.checksum import checksum
from rlsys.records import Image, PreferencePair, Prompt, Response, RolloutGroup, Sampled, Turn

TITLE = "Frames between processes: a round's records with pictures, one core"
LOOP_S = 0.1
"""A measurement repeats its work for about this long."""
ANSWER_TOKENS = 24
PICTURES = {"84 x 84": 84, "448 x 448": 448}
"""The scenes world's, and a photograph's as vision-language models take them."""


def groups(side: int, count: int = 32) -> list[RolloutGroup]:
    """Response groups of 8 answers as a critic gets them, pictures of random pixels."""
    rng = np.random.default_rng(0)
    return [_group(rng, number, side) for number in range(count)]


def pairs(of: Sequence[RolloutGroup]) -> list[PreferencePair]:
    """Six pairs of each group, as a learner gets them."""
    return [_pair(group, *places) for group in of for places in ((0, 1), (0, 2), (1, 2), (3, 4), (5, 6), (7, 3))]


def _group(rng: np.random.Generator, number: int, side: int) -> RolloutGroup:
    prompt = Prompt(
        id=f"scenes/online/{number}/describe",
        turns=(Turn(role="user", text="describe the picture"),),
        images=(Image(pixels=rng.integers(0, 256, (side, side, 3), dtype=np.uint8)),),
    )
    answers = tuple(_answer(rng, seed) for seed in range(8))
    tokens = rng.integers(0, 200, 24).astype(np.int32)
    return RolloutGroup(
        prompt=prompt, round=0, index=number, policy_version=3, prompt_token_ids=tokens, responses=answers
    )


def _answer(rng: np.random.Generator, seed: int) -> Response:
    token_ids = rng.integers(0, 200, ANSWER_TOKENS).astype(np.int32)
    return Response(
        text=" ".join(f"word{token}" for token in token_ids),
        token_ids=token_ids,
        sampled=Sampled(
            policy_version=3,
            logprobs=-rng.random(ANSWER_TOKENS).astype(np.float32),
            temperature=1.0,
            seed=seed,
        ),
    )


def _pair(group: RolloutGroup, chosen: int, rejected: int) -> PreferencePair:
    return PreferencePair(
        prompt=group.prompt,
        prompt_token_ids=group.prompt_token_ids,
        chosen=group.responses[chosen],
        rejected=group.responses[rejected],
        chosen_score=1.5,
        rejected_score=0.25,
        margin=1.25,
        beta_scale=1.2,
        round=0,
    )


def as_objects(records: Sequence[Any]) -> dict[str, np.ndarray]:
    """The records as columns of Python objects; a picture that several rows show is one object."""
    pictures: dict[str, Any] = {}
    rows = [_plain(record, pictures) for record in records]
    columns = {}
    for name in rows[0]:
        column = np.empty(len(rows), dtype=object)
        column[:] = [row[name] for row in rows]
        columns[name] = column
    return columns


def _plain(value: Any, pictures: dict[str, Any]) -> Any:
    if isinstance(value, Image):
        import PIL.Image

        return pictures.setdefault(value.digest, PIL.Image.fromarray(value.pixels))
    if dataclasses.is_dataclass(value):
        return {each.name: _plain(getattr(value, each.name), pictures) for each in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [_plain(item, pictures) for item in value]
    return value.tolist() if isinstance(value, np.ndarray) else value


def arrays_of(value: Any) -> Iterator[np.ndarray]:
    """All arrays in a record."""
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from arrays_of(item)
    elif dataclasses.is_dataclass(value):
        for each in dataclasses.fields(value):
            yield from arrays_of(getattr(value, each.name))


def check(records: list[Any]) -> str:
    """What comes back is what was sent, and no array of it is a copy.

    Raises:
        AssertionError: it is not, or one is.
    """
    frame = wire.encode_many(records)
    whole = np.frombuffer(frame, np.uint8)
    back = wire.decode_many(frame, type(records[0]))
    assert back == records
    arrays = [array for record in back for array in arrays_of(record)]
    assert all(np.shares_memory(array, whole) for array in arrays if array.nbytes)
    assert pickle.loads(pickle.dumps(records, 5)) == records
    assert len(pickle.loads(pickle.dumps(as_objects(records), 5))["prompt"]) == len(records)
    return f"records come back equal; all {len(arrays)} arrays are views on the frame, none is a copy"


def speed(work: Callable[[], Any], gigabytes: float) -> Callable[[], float]:
    """A measurement of `work` in GB/s."""
    work()
    loops = max(1, round(LOOP_S / max(1e-6, seconds(work))))

    def measure() -> float:
        return gigabytes * loops / seconds(lambda: [work() for _ in range(loops)])

    return measure


def first_encode(make: Callable[[], list[Any]], gigabytes: float) -> float:
    """GB/s of records that nobody has encoded before: pictures are hashed then, once for all frames to come."""
    records = make()
    return gigabytes / seconds(lambda: wire.encode_many(records))


def measure(name: str, make: Callable[[], list[Any]], repeats: int) -> list[Row]:
    """The rows of one kind of frame.

    Args:
        make: makes its records; new ones of the same content in every call.
    """
    records = make()
    checked = check(records)
    kind, frame = type(records[0]), wire.encode_many(records)
    size, copy = len(frame) / 1e9, bytearray(len(frame))
    pickled, objects = pickle.dumps(records, 5), as_objects(records)
    pickled_objects = pickle.dumps(objects, 5)

    def memcpy() -> None:
        memoryview(copy)[:] = frame  # into the array itself the bytes would go by way of another one

    ours = {
        "encode": lambda: wire.encode_many(records),
        "decode": lambda: wire.decode_many(frame, kind),
        "there and back": lambda: wire.decode_many(wire.encode_many(records), kind),
    }
    others: dict[str, tuple[str, str, Callable[[], Any]]] = {
        "encode": ("encode", "memcpy", memcpy),
        "decode": ("decode", "memcpy", memcpy),
        "there and back, pickled records": (
            "there and back",
            "pickle",
            lambda: pickle.loads(pickle.dumps(records, 5)),
        ),
        "there and back, pickled objects": (
            "there and back",
            "objects",
            lambda: pickle.loads(pickle.dumps(objects, 5)),
        ),
        "decode, pickled records": ("decode", "pickle", lambda: pickle.loads(pickled)),
        "decode, pickled objects": ("decode", "objects", lambda: pickle.loads(pickled_objects)),
    }
    rows, floor = [], _floor(frame)
    for case, (side, other_name, other) in others.items():
        a, b, ratio = in_turn(speed(ours[side], size), speed(other, size), repeats=repeats)
        micros = [1e6 * size / one.median / len(records) for one in (a, b)]
        rows.append(
            Row(
                case=f"{name}: {case}",
                ours=a,
                other=b,
                other_name=other_name,
                ratio=ratio,
                unit="GB/s",
                target=Target(at_least=10.0) if case.startswith("decode, ") else None,
                note=_why(other_name, micros, floor) if ratio.median < 10 and case.startswith("decode, ") else "",
                extra={"us_per_record": micros[0], "other_us_per_record": micros[1]},
            )
        )
    first = {
        "frame_mb": size * 1e3,
        "pickled_mb": len(pickled) / 1e6,
        "checksum_gb_per_s": floor,
        "first_encode_gb_per_s": Spread.of([first_encode(make, size) for _ in range(repeats)]).median,
    }
    rows[0] = dataclasses.replace(rows[0], checked=checked, extra={**first, **rows[0].extra})
    return rows


def _why(other_name: str, micros: Sequence[float], floor: float) -> str:
    ours, theirs = micros
    checks = f"its bytes are checksummed ({floor:.2g} GB/s) and every field is held to its type in Python"
    theirs_is = {
        "pickle": "pickle of dataclasses with arrays is a memcpy already",
        "objects": "pickle makes lists in C",
    }
    return f"{theirs_is[other_name]}, {theirs:.0f} µs a record; a frame copies nothing, but {checks}, {ours:.0f} µs a record"


def _floor(frame: bytes) -> float:
    """Speed of the checksum alone in GB/s, which bounds both directions."""
    return Spread.of([speed(lambda: checksum(frame), len(frame) / 1e9)() for _ in range(3)]).median


def main() -> None:
    makers: dict[str, Callable[[], list[Any]]] = {}
    for picture, side in PICTURES.items():
        makers[f"32 groups, {picture}"] = partial(groups, side)
        makers[f"192 pairs, {picture}"] = lambda side=side: pairs(groups(side))
    options = parse(__doc__.splitlines()[0], cases=makers)
    rows: list[Row] = []
    for name in options.cases:
        rows += measure(name, makers[name], options.repeats)
    write("wire", TITLE, rows, repeats=options.written)


if __name__ == "__main__":
    main()
