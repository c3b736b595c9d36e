"""Both ends of a transport against each other, and what they say when one end misbehaves."""

import threading
import time

import pytest
import torch
import xxhash

from rlsys import registry
from rlsys.errors import ConfigError, SyncError, SyncTimeout
from rlsys.transports import base, ipc
from rlsys.transports import digest as digests
from rlsys.transports.buckets import (
    describe,
    described_bytes,
    flat_bytes,
    make_manifest,
    pack,
    pack_into,
    payload_bytes,
    unpack,
)
from rlsys.transports.digest import TensorDigest, piece_sums
from rlsys.transports.gloo import Gloo

CPU = torch.device("cpu")
WEIGHTS = [11749869230777074271, 4976686463289251617, 755828109848996025]
"""The first three of a piece's words."""


def tensors():
    return [
        ("embed", torch.arange(6, dtype=torch.float32).reshape(2, 3)),
        ("norm", torch.tensor([1.5, -2.0, 3.25], dtype=torch.bfloat16)),
        ("scale", torch.tensor(7.0)),
        ("empty", torch.zeros(0, 4)),
        ("head", torch.arange(12, dtype=torch.float64).reshape(3, 4).t()),
    ]


def manifest_of(named, bucket_bytes):
    return make_manifest([(name, tensor.dtype, tensor.shape) for name, tensor in named], bucket_bytes)


def in_thread(function, *arguments):
    """Run in another thread; the returned callable joins and gives the result or raises."""
    outcome = {}

    def body():
        try:
            outcome["value"] = function(*arguments)
        except Exception as error:
            outcome["error"] = error

    thread = threading.Thread(target=body)
    thread.start()

    def result():
        thread.join(30)
        assert not thread.is_alive()
        if "error" in outcome:
            raise outcome["error"]
        return outcome["value"]

    return result


def connected(transport, num_receivers=1):
    sender = transport.sender(num_receivers)
    offers = [{**sender.offer(), "receiver": number} for number in range(num_receivers)]
    joins = [in_thread(base.open_receiver, offer, CPU) for offer in offers]
    sender.connect()
    return sender, [join() for join in joins]


def take(receiver, manifest):
    return [(name, tensor.clone()) for bucket in receiver.receive(manifest) for name, tensor in bucket]


# ---------------------------------------------------------------- digest


def test_digest_is_the_xxh3_of_name_dtype_shape_and_bytes():
    digest = TensorDigest()
    digest.update("w", torch.tensor([[1.0, 2.0]], dtype=torch.bfloat16))
    whole = b"w\0bfloat16\0(1, 2)\0" + bytes.fromhex("803f0040")
    assert digest.hexdigest() == xxhash.xxh3_128(whole).hexdigest() == "09541abc6a31cd302a062425118a114a"


@pytest.mark.parametrize(
    "other",
    [
        ("v", torch.tensor([1.0, 2.0])),
        ("w", torch.tensor([2.0, 1.0])),
        ("w", torch.tensor([[1.0, 2.0]])),
        ("w", torch.tensor([1.0, 2.0]).view(torch.int32)),
    ],
)
def test_digest_sees_name_values_shape_and_dtype(other):
    one, two = TensorDigest(), TensorDigest()
    one.update("w", torch.tensor([1.0, 2.0]))
    two.update(*other)
    assert one.hexdigest() != two.hexdigest()


def test_digest_reads_values_not_memory_layout():
    matrix = torch.arange(6.0).reshape(2, 3)
    one, two = TensorDigest(), TensorDigest()
    one.update("w", matrix.t())
    two.update("w", matrix.t().contiguous())
    assert one.hexdigest() == two.hexdigest()


def told(tensors):
    """What a device's metrics report for one bucket."""
    metrics = base.DeviceTransferMetrics()
    metrics.add(pack(tensors, "cpu"), describe(tensors))
    return metrics.report()


def test_a_piece_s_sum_is_that_of_its_words_times_their_weights():
    flat = torch.tensor([1, -2, 3, 0], dtype=torch.int32).view(torch.uint8)
    assert [weight % 2**64 for weight in digests._weights(CPU)[:3].tolist()] == WEIGHTS
    expected = (WEIGHTS[0] - 2 * WEIGHTS[1] + 3 * WEIGHTS[2]) % 2**64
    assert [each % 2**64 for each in piece_sums(flat).tolist()] == [expected]


def test_a_device_s_tally_reports_names_counts_and_a_digest_of_its_own():
    report = told(tensors())
    assert report == told(tensors())
    assert {key: report[key] for key in ("num_tensors", "num_bytes")} == {"num_tensors": 5, "num_bytes": 130}
    assert report["names"] == [name for name, _ in tensors()]
    assert len(report["digest"]) == 32


@pytest.mark.parametrize(
    "other",
    [
        ("v", torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])),
        ("w", torch.tensor([1.0, 2.0, 3.0, 4.0, -5.0])),
        ("w", torch.tensor([-1.0, -2.0, 3.0, 4.0, 5.0])),
        ("w", torch.tensor([2.0, 1.0, 3.0, 4.0, 5.0])),
        ("w", torch.tensor([3.0, 4.0, 1.0, 2.0, 5.0])),
        ("w", torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]])),
        ("w", torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]).view(torch.int32)),
    ],
)
def test_a_device_s_digest_sees_names_values_places_pieces_shapes_and_dtypes(other, monkeypatch):
    monkeypatch.setattr(digests, "WORDS", 2)
    digests._weights.cache_clear()
    try:
        assert told([("w", torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]))])["digest"] != told([other])["digest"]
    finally:
        digests._weights.cache_clear()


# ---------------------------------------------------------------- buckets


def test_manifest_closes_a_bucket_before_it_overflows_and_gives_a_large_tensor_its_own():
    shapes = [("a", 4), ("b", 4), ("large", 100), ("c", 1), ("d", 1)]
    manifest = make_manifest([(name, torch.float32, [size]) for name, size in shapes], bucket_bytes=32)
    assert [bucket["names"] for bucket in manifest["buckets"]] == [["a", "b"], ["large"], ["c", "d"]]
    assert manifest["buckets"][0] == {"names": ["a", "b"], "dtypes": ["float32", "float32"], "shapes": [[4], [4]]}
    assert [flat_bytes(bucket) for bucket in manifest["buckets"]] == [32, 400, 32]
    assert [payload_bytes(bucket) for bucket in manifest["buckets"]] == [32, 400, 8]


def test_unpacked_tensors_are_those_that_were_packed():
    flat = pack(tensors(), "cpu")
    assert flat.numel() == 32 + 16 + 16 + 0 + 96
    for (name, sent), (again, got) in zip(tensors(), unpack(flat, describe(tensors())), strict=True):
        assert (name, sent.dtype, sent.shape) == (again, got.dtype, got.shape)
        assert torch.equal(sent, got)


def test_packed_tensors_have_the_digest_of_the_tensors_themselves():
    apart, packed = TensorDigest(), TensorDigest()
    for name, tensor in tensors():
        apart.update(name, tensor)
    for entry in described_bytes(pack(tensors(), "cpu"), describe(tensors())):
        packed.update_bytes(*entry)
    assert packed.hexdigest() == apart.hexdigest()


def test_a_buffer_of_the_wrong_size_is_refused():
    with pytest.raises(SyncError, match="160 bytes arrived as 150"):
        unpack(pack(tensors(), "cpu")[:150], describe(tensors()))
    with pytest.raises(SyncError, match="160 bytes does not fit a buffer of 100"):
        pack_into(torch.empty(100, dtype=torch.uint8), tensors())


def test_an_unknown_dtype_is_refused():
    with pytest.raises(SyncError, match="'float33'"):
        flat_bytes({"names": ["a"], "dtypes": ["float33"], "shapes": [[1]]})


# ---------------------------------------------------------------- gloo, both ends


def test_two_receivers_get_the_same_tensors_and_report_the_same_digest_twice_over_one_connection():
    sender, receivers = connected(Gloo(bucket_bytes=64, deadline_s=10), num_receivers=2)
    for factor in (1.0, 2.0):
        named = [(name, tensor * factor) for name, tensor in tensors()]
        manifest = manifest_of(named, 64)
        takes = [in_thread(take, receiver, manifest) for receiver in receivers]
        by_name = dict(named)
        for bucket in manifest["buckets"]:
            sender.send_bucket([(name, by_name[name]) for name in bucket["names"]])
        sent = sender.finish()
        for receiver, result in zip(receivers, takes, strict=True):
            assert all(torch.equal(got, by_name[name]) for name, got in result())
            assert receiver.report() == {key: sent[key] for key in ("names", "num_tensors", "num_bytes", "digest")}
        assert (sent["num_tensors"], sent["num_bytes"]) == (5, 24 + 6 + 4 + 0 + 96)
        assert sent["seconds"] > 0
    sender.close()


def test_tensors_may_change_once_send_bucket_has_returned():
    sender, [receiver] = connected(Gloo(deadline_s=10))
    tensor = torch.ones(1000)
    result = in_thread(take, receiver, manifest_of([("w", tensor)], 1 << 20))
    sender.send_bucket([("w", tensor)])
    tensor.zero_()
    sender.finish()
    assert result()[0][1].sum() == 1000


def test_a_receiver_that_never_comes_is_a_timeout_that_counts_who_came():
    sender = Gloo(deadline_s=0.3).sender(2)
    started = time.monotonic()
    with pytest.raises(SyncTimeout, match="1 of 3 ends"):
        sender.connect()
    assert time.monotonic() - started < 5


def test_a_sender_that_never_comes_is_a_timeout():
    offer = Gloo(deadline_s=0.5).sender(1).offer()
    with pytest.raises(SyncTimeout, match="no sender of weights"):
        base.open_receiver({**offer, "port": 1, "receiver": 0}, CPU)


def test_a_bucket_that_never_comes_is_a_timeout():
    _sender, [receiver] = connected(Gloo(deadline_s=0.5))
    with pytest.raises(SyncTimeout, match=r"within 0\.5 s"):
        take(receiver, manifest_of(tensors(), 64))


@pytest.mark.parametrize(("sent", "expected"), [(1000, 2000), (2000, 1000)])
def test_a_bucket_of_another_size_than_the_manifest_says_is_refused_before_it_is_received(sent, expected):
    sender, [receiver] = connected(Gloo(deadline_s=2))
    result = in_thread(take, receiver, manifest_of([("w", torch.ones(expected))], 1 << 20))
    sender.send_bucket([("w", torch.ones(sent))])
    with pytest.raises(SyncError, match=f"{sent * 4} bytes is sent where the manifest has one of {expected * 4}: w"):
        result()
    sender.close()


def test_a_lost_sender_is_an_error_at_once():
    sender, [receiver] = connected(Gloo(deadline_s=20))
    result = in_thread(take, receiver, manifest_of(tensors(), 64))
    time.sleep(0.1)
    started = time.monotonic()
    sender.close()
    with pytest.raises(SyncError):
        result()
    assert time.monotonic() - started < 5


def test_a_lost_receiver_is_an_error_at_once():
    sender, [receiver] = connected(Gloo(deadline_s=3))
    receiver.close()
    started = time.monotonic()
    for _ in range(50):
        sender.send_bucket([("w", torch.ones(1 << 20))])
    with pytest.raises(SyncError):
        sender.finish()
    assert time.monotonic() - started < 2
    sender.close()


def test_a_sender_leaves_at_once_although_nobody_takes_its_last_bucket():
    sender, [_receiver] = connected(Gloo(deadline_s=3))
    sender.send_bucket([("w", torch.ones(1 << 20))])
    started = time.monotonic()
    sender.close()
    assert time.monotonic() - started < 2


def test_an_offer_of_an_unknown_transport_names_those_there_are():
    with pytest.raises(ConfigError, match="no transport named 'pigeon'; there are: gloo, ipc, nccl"):
        base.open_receiver({"transport": "pigeon"}, CPU)


@pytest.mark.parametrize("name", ["gloo", "nccl", "ipc"])
def test_options_are_checked_and_no_transport_needs_a_gpu_to_be_configured(name):
    registry.discover()
    assert registry.transport.make(name).bucket_bytes >= 8 << 20
    with pytest.raises(ConfigError, match=r"transport\.bucket_bytes must be > 0, got 0"):
        registry.transport.make(name, bucket_bytes=0)
    with pytest.raises(ConfigError, match=r"transport\.deadline_s must be > 0, got -1"):
        registry.transport.make(name, deadline_s=-1)


@pytest.fixture
def on_one_gpu(monkeypatch):
    """CUDA's part of `ipc` in the memory of this process; the stream counts how often somebody waited for it."""
    exported, waits = {}, []

    class Stream:
        def synchronize(self):
            waits.append(threading.current_thread().name)

    def export(buffer):
        exported[buffer.data_ptr()] = buffer
        return [buffer.data_ptr()]

    buffers = tuple(torch.zeros(256, dtype=torch.uint8) for _ in range(ipc.NUM_BUFFERS))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    monkeypatch.setattr(ipc, "_buffers", lambda num_bytes, device: buffers)
    monkeypatch.setattr(ipc, "_gpu", lambda device: "the only one")
    monkeypatch.setattr(ipc, "_export", export)
    monkeypatch.setattr(ipc, "_import", lambda values, device: exported[values[0]])
    return buffers, waits


@pytest.mark.parametrize("keep", [True, False])
def test_on_a_gpu_an_engine_reads_a_bucket_where_the_learner_put_it_until_it_asks_for_the_next(on_one_gpu, keep):
    buffers, _ = on_one_gpu
    named = [(f"w{number}", torch.full((30,), float(number))) for number in range(7)]
    manifest = manifest_of(named, 128)
    assert len(manifest["buckets"]) == 7
    sender, [receiver] = connected(ipc.Ipc(bucket_bytes=256, deadline_s=5))
    try:
        for _ in range(2):
            sending = in_thread(lambda: ([sender.send_bucket([one]) for one in named], sender.finish())[1])
            kept = []
            for number, bucket in enumerate(receiver.receive(manifest, keep=keep)):
                time.sleep(0.02)  # the learner must not put the next but one there meanwhile
                [(name, tensor)] = bucket
                assert name == f"w{number}" and torch.equal(tensor, named[number][1])
                inside = any(tensor.untyped_storage().data_ptr() == buffer.data_ptr() for buffer in buffers)
                assert inside != keep
                kept += [tensor] if keep else []
            assert all(torch.equal(tensor, weight) for tensor, (_, weight) in zip(kept, named, strict=False))
            assert sending()["digest"] == receiver.report()["digest"]
    finally:
        receiver.close()
        sender.close()


def test_on_a_gpu_a_learner_waits_until_the_engine_has_used_the_last_bucket(on_one_gpu):
    _, waits = on_one_gpu
    named = [("w", torch.ones(30))]
    sender, [receiver] = connected(ipc.Ipc(bucket_bytes=256, deadline_s=0.5))
    try:
        sender.send_bucket(named)
        buckets = receiver.receive(manifest_of(named, 256), keep=False)
        next(buckets)
        with pytest.raises(SyncTimeout, match="0 of 1 engines used bucket 0"):
            sender.finish()
        before = len(waits)
        assert next(buckets, None) is None and len(waits) == before + 1
        assert sender.finish()["num_tensors"] == 1
    finally:
        receiver.close()
        sender.close()


def test_buffers_that_engines_map_are_made_once():
    """What an engine that was killed has mapped is never freed."""
    first, second = ipc._buffers(16, torch.device("cpu"))
    assert first.nbytes == second.nbytes == 16 and first.data_ptr() != second.data_ptr()
    assert all(one is other for one, other in zip(ipc._buffers(16, torch.device("cpu")), (first, second), strict=True))
