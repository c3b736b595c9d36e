import struct
import types
import typing
from dataclasses import dataclass, fields, is_dataclass, replace

import hypothesis.extra.numpy as arrays
import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from rlsys import records
from rlsys.errors import CorruptFrame, FrameTooLarge, SchemaMismatch, TruncatedFrame, WireError, WrongType
from rlsys.records import Critique, FitReport, Image, Probe, Prompt, Replayed, RolloutGroup, RoundPlan, Sampling, Turn
from rlsys.wire import SCHEMA, Limits, decode, decode_many, encode, encode_many
from tests.fakes import sampled_response

RECORDS = [kind for kind in vars(records).values() if is_dataclass(kind) and kind not in (RoundPlan, Replayed)]
"""A plan has options of plug-ins of any type, and stays in the process that made it or goes by Ray."""
TEXT = st.text(st.characters(), max_size=12)  # lone surrogates included
PLAIN = {
    str: TEXT,
    int: st.integers(-(2**63), 2**63 - 1),
    float: st.floats(),
    bool: st.booleans(),
    records.TokenIds: arrays.arrays(np.int32, st.integers(0, 5)),
    records.TokenFloats: arrays.arrays(np.float32, st.integers(0, 5), elements=st.floats(width=32)),
    records.TokenMask: arrays.arrays(np.uint8, st.integers(0, 5)),
    records.CandidateFloats: arrays.arrays(
        np.float32, st.tuples(st.integers(0, 3), st.integers(0, 3)), elements=st.floats(width=32)
    ),
    records.Pixels: arrays.arrays(np.uint8, st.tuples(st.integers(0, 3), st.integers(0, 3), st.just(3))),
}


def values_of(hint):
    if hint in PLAIN:
        return PLAIN[hint]
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        return st.lists(values_of(arguments[0]), max_size=3).map(tuple)
    if typing.get_origin(hint) is dict:
        return st.dictionaries(TEXT, values_of(arguments[1]), max_size=3)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return st.none() | values_of(arguments[0])
    hints = typing.get_type_hints(hint)
    return st.builds(hint, **{field.name: values_of(hints[field.name]) for field in fields(hint)})


def bits(value):
    """A value as plain data that is equal only if type and every bit are."""
    if isinstance(value, np.ndarray):
        return (str(value.dtype), value.shape, value.tobytes())
    if is_dataclass(value):
        return (type(value), [bits(getattr(value, field.name)) for field in fields(value)])
    if isinstance(value, tuple):
        return tuple(bits(item) for item in value)
    if isinstance(value, dict):
        return [(key, bits(item)) for key, item in value.items()]
    return (type(value), struct.pack("<d", value) if type(value) is float else value)


class RawByte(int):
    """A byte of msgpack as it is."""


def make_group(num_responses=2, image=None):
    images = (image,) if image is not None else ()
    rollout = sampled_response(
        text="a red circle",
        token_ids=np.array([5, 6, 7], np.int32),
        logprobs=np.array([-0.5, -0.25, -1.0], np.float32),
        count=1,
        finish_reason="stop",
        temperature=1.0,
        seed=11,
    )
    return RolloutGroup(
        prompt=Prompt(id="p", turns=(Turn(role="user", text="What is there?"),), images=images),
        round=1,
        index=2,
        policy_version=3,
        prompt_token_ids=np.array([1, 2], np.int32),
        responses=(rollout,) * num_responses,
    )


def make_image(seed=0, side=4):
    return Image(pixels=np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8))


def frame_of(body: bytes, section: bytes = b"", schema: int = SCHEMA) -> bytes:
    """A frame with right checksums around any body."""
    padding = bytes(-(40 + len(body)) % 8)
    payload = body + padding + section
    header = struct.pack("<4sHHQQQ", b"RLSW", schema, 1, len(body), len(section), xxh3_64_intdigest(payload))
    return header + struct.pack("<Q", xxh3_64_intdigest(header)) + payload


def body_of(layout: str, *objects) -> bytes:
    """Layout, no images, one record made of `objects`."""
    return b"".join(
        bytes([each]) if isinstance(each, RawByte) else msgpack.packb(each) for each in (layout, [], 1, *objects)
    )


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_every_record_comes_back_bit_for_bit(kind, data):
    record = data.draw(values_of(kind))
    assert bits(decode(encode(record), kind)) == bits(record)


@settings(max_examples=25, deadline=None)
@given(groups=st.lists(values_of(RolloutGroup), min_size=1, max_size=4))
def test_lists_come_back_bit_for_bit(groups):
    assert bits(tuple(decode_many(encode_many(groups), RolloutGroup))) == bits(tuple(groups))


def test_all_records_of_the_module_are_covered():
    names = {kind.__name__ for kind in RECORDS}
    assert {"Image", "ScoredGroup", "PreferencePair", "Generation", "Probe", "RoundReport", "CritiquePair"} <= names


def test_nan_keeps_its_payload():
    strange = struct.unpack("<d", b"\x01\x02\x03\x04\x05\x06\xf8\x7f")[0]
    back = decode(encode(Critique(text="", score=strange)), Critique)
    assert struct.pack("<d", back.score) == b"\x01\x02\x03\x04\x05\x06\xf8\x7f"


def test_images_of_equal_content_stand_once():
    image = make_image(side=32)  # 3072 bytes
    alone = len(encode_many([make_group(image=image)]))
    twin = Image(pixels=image.pixels.copy())
    frame = encode_many([make_group(image=image), make_group(image=twin)])
    assert len(frame) < alone + 1000
    first, second = decode_many(frame, RolloutGroup)
    assert first.prompt.images[0] is second.prompt.images[0]
    other = encode_many([make_group(image=image), make_group(image=make_image(seed=1, side=32))])
    assert len(other) > alone + 3072


def test_arrays_are_read_only_views_of_the_frame():
    frame = encode(make_group(image=make_image()))
    group = decode(frame, RolloutGroup)
    whole = np.frombuffer(frame, np.uint8)
    for array in (group.prompt_token_ids, group.responses[0].sampled.logprobs, group.prompt.images[0].pixels):
        assert np.shares_memory(array, whole)
        assert not array.flags.writeable and array.flags.aligned
    assert not decode(bytearray(frame), RolloutGroup).prompt_token_ids.flags.writeable


def test_strided_arrays_are_written_as_they_look():
    group = replace(make_group(), prompt_token_ids=np.arange(6, dtype=np.int32)[::2])
    assert decode(encode(group), RolloutGroup).prompt_token_ids.tolist() == [0, 2, 4]


def test_truncation_at_any_byte():
    frame = encode(make_group(image=make_image()))
    for end in range(len(frame)):
        with pytest.raises(TruncatedFrame, match=f"ends at byte {end}"):
            decode(frame[:end], RolloutGroup)


def test_any_flipped_byte_is_noticed():
    frame = bytearray(encode(make_group(image=make_image())))
    expected = {range(0, 4): CorruptFrame, range(4, 6): SchemaMismatch}
    for position in range(len(frame)):
        frame[position] ^= 0x41
        error = next((error for span, error in expected.items() if position in span), CorruptFrame)
        with pytest.raises(error):
            decode(frame, RolloutGroup)
        frame[position] ^= 0x41
    assert decode(frame, RolloutGroup) == make_group(image=make_image())


def test_bytes_after_the_frame():
    with pytest.raises(CorruptFrame, match="3 bytes after the frame's end"):
        decode(encode(make_group()) + b"abc", RolloutGroup)


def test_another_schema():
    with pytest.raises(SchemaMismatch, match="frame of schema 7, this program reads schema 3"):
        decode(frame_of(b"whatever", schema=7), Turn)


def test_wrong_record_and_wrong_form():
    with pytest.raises(WrongType, match="Turn: the frame holds 'Critique'"):
        decode(encode(Critique(text="", score=0.0)), Turn)
    turn = Turn(role="user", text="")
    with pytest.raises(WrongType, match="expected one record"):
        decode(encode_many([turn]), Turn)
    with pytest.raises(WrongType, match="expected a list of records"):
        decode_many(encode(turn), Turn)


def test_unknown_and_missing_fields():
    with pytest.raises(WrongType, match=r"fields of Turn: missing \['text'\], unknown \['mood'\]"):
        decode(frame_of(body_of("Turn(role,mood,token_ids)", "user", "glad", [])), Turn)
    with pytest.raises(WrongType, match="laid out as"):
        decode(frame_of(body_of("Turn(text,role,token_ids)", "user", "glad", [])), Turn)
    with pytest.raises(WrongType, match="the frame holds '!!'"):
        decode(frame_of(body_of("!!")), Turn)


@pytest.mark.parametrize(
    ("layout", "kind", "objects", "message"),
    [
        ("Turn(role,text,token_ids)", Turn, ("user", 3), "Turn.text: expected str, got int"),
        ("Turn(role,text,token_ids)", Turn, ("user", None), "Turn.text: expected str, got None"),
        ("Turn(role,text,token_ids)", Turn, ("user", b"x"), "Turn.text: expected str, got bytes"),
        ("Turn(role,text,token_ids)", Turn, ("user", ["x"]), "Turn.text: expected str, got sequence"),
        ("Turn(role,text,token_ids)", Turn, ("user", {"a": 1}), "Turn.text: expected str, got dict"),
        (
            "Turn(role,text,token_ids)",
            Turn,
            ("user", msgpack.Timestamp(1)),
            "Turn.text: expected str, got extension type",
        ),
        (
            "Turn(role,text,token_ids)",
            Turn,
            ("user", RawByte(0xC1)),
            "Turn.text: expected str, got a byte that msgpack never uses",
        ),
        ("Critique(text,score)", Critique, ("", True, 1), "Critique.score: expected float, got int"),
        ("Critique(text,score)", Critique, ("", True, True), "Critique.score: expected float, got bool"),
        ("Critique(text,score)", Critique, ("", 1.0), "Critique.score: expected float or None, got float"),
    ],
)
def test_values_of_another_type_are_refused(layout, kind, objects, message):
    with pytest.raises(WrongType) as caught:
        decode(frame_of(body_of(layout, *objects)), kind)
    assert str(caught.value) == message


def group_body(logprobs=("<f4", 0, 1), count: object = 1) -> bytes:
    """The body of a group of one rollout of one token, written by hand."""
    layout = (
        "RolloutGroup(prompt,round,index,policy_version,prompt_token_ids,responses,failed)"
        " Prompt(id,turns,script,images) Response(id,text,token_ids,loss_mask,finish_reason,count,sampled)"
        " Turn(role,text,token_ids) Sampled(policy_version,logprobs,temperature,seed,top_p)"
    )
    parts = [layout, [], 1, "p"]
    body = b"".join(msgpack.packb(each) for each in [*parts, [], [], [], 0, 0, 0, ["<i4", 0, 1]]) + b"\x91"
    sampled = [True, 0, logprobs, 1.0, 0, 1.0]
    rollout = ["0", "text", ["<i4", 0, 1], None, "stop", count, *sampled]
    return body + b"".join(msgpack.packb(each) for each in [*rollout, 0])


def test_a_frame_written_by_hand():
    group = decode(frame_of(group_body(), struct.pack("<f", 1.0)), RolloutGroup)
    assert group.prompt_token_ids.tolist() == [0x3F800000]
    assert group.responses[0].sampled.logprobs.tolist() == [1.0]


@pytest.mark.parametrize(
    ("logprobs", "error", "message"),
    [
        ("text", WrongType, "logprobs: expected float32 array, got str"),
        (["<i4", 0, 1], WrongType, "logprobs: expected float32 array, got int32 array"),
        (["<f4", 0, 1, 1], WrongType, "logprobs: expected float32 array of 1 dimensions, got 2"),
        (
            ["|O", 0, 1],
            WrongType,
            "logprobs: expected float32 array, got an array of dtype '|O', which no frame may hold",
        ),
        (["<f4"], WrongType, "logprobs: expected float32 array, got a sequence of 1"),
        (["<f4", 0, -1], CorruptFrame, "logprobs: array of offset and shape [0, -1]"),
        (["<f4", 0, 2], FrameTooLarge, "logprobs: array (2,) of float32 at byte 0 in a section of 4 bytes"),
        (["<f4", 1, 1], FrameTooLarge, "logprobs: array (1,) of float32 at byte 1 in a section of 4 bytes"),
        (["<f4", 0, 2**62], FrameTooLarge, f"logprobs: array ({2**62},) of float32 at byte 0 in a section of 4 bytes"),
    ],
)
def test_arrays_that_are_not_what_was_declared(logprobs, error, message):
    with pytest.raises(error) as caught:
        decode(frame_of(group_body(logprobs), bytes(4)), RolloutGroup)
    assert type(caught.value) is error
    assert str(caught.value) == f"RolloutGroup.responses[0].sampled.{message}"


def test_a_boolean_is_no_count():
    with pytest.raises(WrongType, match=r"RolloutGroup.responses\[0\].count: expected int, got bool"):
        decode(frame_of(group_body(count=True), bytes(4)), RolloutGroup)


def test_a_body_that_contradicts_itself():
    with pytest.raises(CorruptFrame, match=r"Turn.text: msgpack ends inside a value"):
        decode(frame_of(body_of("Turn(role,text,token_ids)", "user") + b"\xdb\x7f\xff\xff\xff"), Turn)
    with pytest.raises(CorruptFrame, match=r"Turn.text: text is not UTF-8"):
        decode(frame_of(body_of("Turn(role,text,token_ids)", "user") + b"\xa1\xff"), Turn)
    with pytest.raises(CorruptFrame, match=r"Turn: 1 bytes of msgpack after the last record"):
        decode(frame_of(body_of("Turn(role,text,token_ids)", "user", "hi", []) + b"\x00"), Turn)
    prompt = body_of("Prompt(id,turns,script,images) Turn(role,text,token_ids)", "p", [], [])
    with pytest.raises(CorruptFrame, match=r"Prompt.images\[0\]: image 0 of a frame with 0"):
        decode(frame_of(prompt + b"\x91\x00"), Prompt)
    fit = body_of("FitReport(num_examples,num_steps,loss,metrics,seconds)", 1, 1, 0.5)
    twice = b"\x82" + msgpack.packb("a") + msgpack.packb(1.0) + msgpack.packb("a") + msgpack.packb(2.0)
    with pytest.raises(CorruptFrame, match=r"FitReport.metrics: key 'a' twice"):
        decode(frame_of(fit + twice + msgpack.packb(1.0)), FitReport)


def test_an_image_table_of_another_shape():
    body = msgpack.packb("Prompt(id,turns,script,images) Turn(role,text,token_ids)") + msgpack.packb(
        [["|u1", 0, 1, 1, 4]]
    )
    with pytest.raises(WrongType, match=r"Prompt.<images>\[0\]: Image.pixels must be uint8 \[H, W, 3\]"):
        decode(frame_of(body, bytes(4)), Prompt)


def test_claims_of_size_allocate_nothing():
    import tracemalloc

    hostile = [
        body_of("Prompt(id,turns,script,images) Turn(role,text,token_ids)", "p") + b"\xdd\x00\x0f\xff\xff" * 50,
        body_of("Turn(role,text,token_ids)", "user") + b"\xdd\xff\xff\xff\xff" * 1000,
        body_of("Turn(role,text,token_ids)", "user") + b"\xdb\xff\xff\xff\xff",
        msgpack.packb("Turn(role,text,token_ids)") + b"\x90" + msgpack.packb(2**20),
        b"\xdd\xff\xff\xff\xff" * 1000,
    ]
    for body in hostile:
        frame = frame_of(body)
        tracemalloc.start()
        with pytest.raises(WireError):
            decode(frame, Prompt if b"Prompt" in body else Turn)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 100_000


@settings(max_examples=200, deadline=None)
@given(body=st.binary(max_size=60), kind=st.sampled_from(RECORDS))
def test_any_bytes_raise_a_wire_error(body, kind):
    layout = encode_layout(kind)
    for frame in (body, frame_of(body), frame_of(layout + body, b"12345678")):
        try:
            decode(frame, kind)
        except WireError:
            continue


def encode_layout(kind) -> bytes:
    from rlsys.wire.frames import _layout

    return msgpack.packb(_layout(kind)) + b"\x90\x01"


@dataclass(frozen=True)
class Tree:
    children: "tuple[Tree, ...]" = ()


def test_nesting_is_limited_at_both_ends():
    tree = Tree()
    for _ in range(39):
        tree = Tree((tree,))
    with pytest.raises(FrameTooLarge, match=r"children\[0\]: records nested deeper than max_depth 32"):
        encode(tree)
    frame = encode(tree, limits=Limits(max_depth=40))
    assert decode(frame, Tree, limits=Limits(max_depth=40)) == tree
    with pytest.raises(FrameTooLarge, match="max_depth 32"):
        decode(frame, Tree)


def test_other_limits():
    group = make_group(num_responses=5, image=make_image(side=32))
    frame = encode(group)
    cases = [
        (Limits(max_bytes=1000), "max_bytes 1000"),
        (Limits(max_items=4), "5 items are above max_items 4"),
        (Limits(max_text_bytes=8), "max_text_bytes 8"),
    ]
    for limits, message in cases:
        with pytest.raises(FrameTooLarge, match=message):
            encode(group, limits=limits)
        with pytest.raises(FrameTooLarge, match=message):
            decode(frame, RolloutGroup, limits=limits)
    with pytest.raises(ValueError, match=r"Limits.max_depth must be at least 1, got 0"):
        Limits(max_depth=0)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (Turn(role="user", text=3), "Turn.text: expected str, got int"),
        (Sampling(num_samples=True), "Sampling.num_samples: expected int, got bool"),
        (Sampling(num_samples=2.0), "Sampling.num_samples: expected int, got float"),
        (Sampling(seed=2**70), f"Sampling.seed: expected int of 64 bits, got {2**70}"),
        (Sampling(temperature="1"), "Sampling.temperature: expected float, got str"),
        (Sampling(stop_token=1), "Sampling.stop_token: expected str, got int"),
        (Prompt(id="p", turns=[]), "Prompt.turns: expected tuple, got list"),
        (Prompt(id="p", turns=("hi",)), "Prompt.turns[0]: expected Turn, got str"),
        (Prompt(id="p", turns=(), images=(None,)), "Prompt.images[0]: expected Image, got None"),
        (replace(make_group(), round=None), "RolloutGroup.round: expected int, got None"),
        (
            replace(make_group(), prompt_token_ids=np.zeros(2, np.int64)),
            "RolloutGroup.prompt_token_ids: expected int32 array, got int64 array",
        ),
        (
            replace(make_group(), prompt_token_ids=np.array([{}], object)),
            "RolloutGroup.prompt_token_ids: expected int32 array, got an array of dtype '|O', which no frame may hold",
        ),
    ],
)
def test_wrong_values_do_not_leave(record, message):
    with pytest.raises(WrongType) as caught:
        encode(record)
    assert str(caught.value) == message


def test_a_list_names_the_record_at_fault():
    with pytest.raises(WrongType, match=r"Turn\[1\].text: expected str, got int"):
        encode_many([Turn(role="user", text="a"), Turn(role="user", text=1)])
    with pytest.raises(WrongType, match=r"Turn\[1\]: expected Turn, got Critique"):
        encode_many([Turn(role="user", text="a"), Critique(text="", score=0.0)])
    with pytest.raises(ValueError, match="at least one record"):
        encode_many([])


def test_numbers_of_numpy_become_plain():
    sampling = Sampling(num_samples=np.int64(3), temperature=1, top_p=np.float32(0.5), seed=np.uint8(7))
    back = decode(encode(sampling), Sampling)
    assert bits(back) == bits(Sampling(num_samples=3, temperature=1.0, top_p=0.5, seed=7))


def test_plans_and_probes_hold_tuples_of_numbers():
    probe = Probe(prompt=Prompt(id="p", turns=()), prompt_token_ids=(1, 2), response_token_ids=(3,))
    assert decode(encode(probe), Probe) == probe
    with pytest.raises(WrongType, match=r"Probe.response_token_ids\[1\]: expected int, got str"):
        encode(replace(probe, response_token_ids=(1, "hot")))


@dataclass
class Unsupported:
    value: set


@dataclass
class Around:
    inner: Unsupported


def test_types_that_no_frame_can_hold():
    for _ in range(2):
        with pytest.raises(WrongType, match="Around: Unsupported: no frame can hold a field of type <class 'set'>"):
            encode(Around(Unsupported(set())))
    with pytest.raises(WrongType, match="is no record"):
        encode("text")
