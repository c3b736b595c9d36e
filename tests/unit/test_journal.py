import os
import signal
import struct
import subprocess
import sys
import threading
import weakref
from dataclasses import fields, replace

import numpy as np
import pytest

from rlsys.errors import JournalError, WrongType
from rlsys.journal import Journal
from rlsys.journal.appendlog import scan
from rlsys.records import (
    Image,
    Interval,
    PreferencePair,
    Prompt,
    RolloutGroup,
    RoundReport,
    ScoredGroup,
    SyncReport,
    Turn,
    Verdict,
)
from rlsys.wire import encode
from tests.fakes import make_verdict, sampled_response


def make_image(seed=0, side=4):
    return Image(pixels=np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8))


def make_group(index=0, round=0, image=None, num_responses=3):
    rollouts = tuple(
        sampled_response(
            text=f"answer {number} to {index}",
            token_ids=np.arange(number + 2, dtype=np.int32),
            logprobs=np.full(number + 2, -0.5, np.float32),
            count=1,
            finish_reason="stop",
            temperature=1.0,
            seed=number,
        )
        for number in range(num_responses)
    )
    return RolloutGroup(
        prompt=Prompt(id=f"p{index}", turns=(Turn(role="user", text="What?"),), images=(image or make_image(),)),
        round=round,
        index=index,
        policy_version=round,
        prompt_token_ids=np.arange(5, dtype=np.int32) + index,
        responses=rollouts,
    )


def make_scored(group):
    verdicts = (make_verdict(0.75, "good"), Verdict(critiques=(), failed=1))
    return ScoredGroup(group=group, verdicts=(*verdicts, *(verdicts[:1] * (len(group.responses) - 2))))


def make_pair(group, chosen=0, rejected=1):
    return PreferencePair(
        prompt=group.prompt,
        prompt_token_ids=group.prompt_token_ids,
        chosen=group.responses[chosen],
        rejected=group.responses[rejected],
        chosen_score=2.0,
        rejected_score=0.5,
        margin=1.5,
        beta_scale=1.25,
        round=group.round,
    )


def make_report(round=0):
    numbers = {field.name: 0 for field in fields(RoundReport)}
    sync = SyncReport(
        version=1, num_tensors=2, num_bytes=3, digest="d", seconds=0.5, max_logprob_gap=1e-5, num_probe_tokens=9
    )
    named = {
        "failed": {"rollouts": 1},
        "metrics": {"x": 0.5},
        "sync": sync,
        "eval": {"chair_i": Interval(value=0.2, low=0.1, high=0.3)},
        "seconds": {"rollout": 1.0},
        "accepted": True,
    }
    return RoundReport(**{**numbers, **named, "round": round, "replayed": {}})


def copy_of(group):
    """The same group from other objects, as it comes back from another process."""
    pixels = group.prompt.images[0].pixels.copy()
    prompt = replace(group.prompt, images=(Image(pixels=pixels),))
    return replace(group, prompt=prompt, responses=tuple(replace(rollout) for rollout in group.responses))


def log_of(journal, round=0, attempt=1):
    return journal.root / f"round-{round:04d}.attempt-{attempt:04d}.log"


def flip(path, position):
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 0x55]))


def test_records_come_back_in_order(tmp_path):
    groups = [make_group(index, image=make_image(index)) for index in range(3)]
    with Journal(tmp_path / "journal") as journal:
        assert journal.begin(0) == 1
        for group in groups:
            journal.append(0, group)
            journal.append(0, make_scored(group))
            journal.append(0, make_pair(group))
            journal.append(0, make_pair(group, 2, 0))
        journal.append(0, make_report())
    reader = Journal(tmp_path / "journal", create=False)
    assert list(reader.read(0, RolloutGroup)) == groups
    assert list(reader.read(0, ScoredGroup)) == [make_scored(group) for group in groups]
    pairs = list(reader.read(0, PreferencePair))
    assert pairs == [pair for group in groups for pair in (make_pair(group), make_pair(group, 2, 0))]
    assert [pair.prompt_token_ids.tolist() for pair in pairs[::2]] == [
        [0, 1, 2, 3, 4],
        [1, 2, 3, 4, 5],
        [2, 3, 4, 5, 6],
    ]
    assert list(reader.read(0, RoundReport)) == [make_report()]


def test_scores_and_pairs_do_not_need_their_group_first(tmp_path):
    group = make_group()
    with Journal(tmp_path) as journal:
        journal.begin(0)
        journal.append(0, make_pair(group))
        journal.append(0, make_scored(group))
        assert list(journal.read(0, RolloutGroup)) == []
        journal.append(0, group)
        assert list(journal.read(0, RolloutGroup)) == [group]
        assert list(journal.read(0, ScoredGroup)) == [make_scored(group)]
        assert list(journal.read(0, PreferencePair)) == [make_pair(group)]


def test_pictures_answers_and_groups_are_stored_once(tmp_path):
    image = make_image(side=64)  # 12288 bytes
    with Journal(tmp_path) as journal:
        journal.begin(0)
        journal.append(0, make_group(image=image))
        size = log_of(journal).stat().st_size
        assert 12_288 < size < 14_500
        journal.append(0, make_scored(copy_of(make_group(image=image))))
        journal.append(0, make_pair(copy_of(make_group(image=image))))
        journal.append(0, make_pair(make_group(image=image), 1, 2))
        assert log_of(journal).stat().st_size < size + 1500
        journal.append(0, make_group(index=1, image=Image(pixels=image.pixels.copy())))
        assert log_of(journal).stat().st_size < size + 4500
        first, second = journal.read(0, RolloutGroup)
        assert first.prompt.images[0] is second.prompt.images[0]


def test_what_is_known_by_identity_is_not_encoded_again_and_not_kept_alive(tmp_path, monkeypatch):
    encoded = []

    def counted(record):
        encoded.append(type(record).__name__.removeprefix("Stored"))
        return encode(record)

    monkeypatch.setattr("rlsys.journal.entries.encode", counted)
    with Journal(tmp_path) as journal:
        journal.begin(0)
        group = make_group(image=make_image())
        journal.append(0, group)
        assert encoded == ["Image", "Prompt", "PromptTokens", "Response", "Response", "Response", "RolloutGroup"]
        journal.append(0, make_scored(group))
        journal.append(0, make_pair(group), make_pair(group, 2, 0))
        assert encoded[7:] == ["ScoredGroup", "PreferencePair", "PreferencePair"]
        watched = [weakref.ref(part) for part in (group, group.prompt, group.prompt.images[0], group.responses[0])]
        del group
        assert [watch() for watch in watched] == [None] * 4
        assert journal._open[0]._parts._seen._found == {}
        for index in range(1, 30):  # new objects in the places of dead ones are not taken for them
            journal.append(0, make_group(index, image=make_image(index)))
        assert list(journal.read(0, RolloutGroup))[1:] == [make_group(i, image=make_image(i)) for i in range(1, 30)]


def test_records_appended_together_are_written_together_or_not_at_all(tmp_path, monkeypatch):
    group, writes, writev = make_group(), [], os.writev

    def counted(file, parts):
        writes.append(len(parts))
        return writev(file, parts)

    monkeypatch.setattr(os, "writev", counted)
    with Journal(tmp_path) as journal:
        journal.begin(0)
        journal.append(0, group)
        journal.append(0, make_pair(group), make_pair(group, 2, 0), make_pair(group, 1, 2))
        assert writes[1:] == [6]  # a header and a frame of each
        size = log_of(journal).stat().st_size
        with pytest.raises(WrongType, match="expected float, got str"):
            journal.append(0, make_pair(group), replace(make_pair(group), margin="large"))
        with pytest.raises(WrongType, match="expected Response, got Prompt"):
            journal.append(0, replace(make_pair(group), chosen=group.prompt))
        with pytest.raises(WrongType, match="expected ndarray, got Prompt"):
            journal.append(0, replace(make_pair(group), prompt_token_ids=group.prompt))
        assert log_of(journal).stat().st_size == size
        journal.append(0)
        assert log_of(journal).stat().st_size == size
        assert list(journal.read(0, PreferencePair)) == [
            make_pair(group),
            make_pair(group, 2, 0),
            make_pair(group, 1, 2),
        ]


def test_two_groups_that_differ_in_one_number_stay_two(tmp_path):
    group = make_group()
    first, *others = group.responses
    first = replace(first, sampled=replace(first.sampled, temperature=0.5))
    other = replace(group, failed=1, responses=(first, *others))
    with Journal(tmp_path) as journal:
        journal.begin(0)
        journal.append(0, make_scored(group))
        journal.append(0, make_scored(other))
        assert list(journal.read(0, ScoredGroup)) == [make_scored(group), make_scored(other)]


def test_a_round_begun_again_gets_a_new_attempt(tmp_path):
    journal = Journal(tmp_path)
    journal.begin(2)
    journal.append(2, make_group(0))
    assert journal.begin(2) == 2
    journal.append(2, make_group(1))
    journal.close()
    assert [group.index for group in journal.read(2, RolloutGroup)] == [1]
    assert [group.index for group in journal.read(2, RolloutGroup, attempt=1)] == [0]
    assert journal.attempts(2) == [1, 2]
    with Journal(tmp_path) as again:
        assert again.begin(2) == 3
        assert list(again.read(2, RolloutGroup)) == []
        assert [group.index for group in again.read(2, RolloutGroup, attempt=1)] == [0]


def test_several_rounds_are_open_at_once(tmp_path):
    with Journal(tmp_path) as journal:
        for round in (3, 4):
            journal.begin(round)
        for index in range(3):
            journal.append(4, make_group(index, round=4))
            journal.append(3, make_group(index, round=3))
        journal.finish(3)
        journal.append(4, make_report(4))
        assert journal.rounds() == [3, 4]
        assert [(group.round, group.index) for group in journal.read(3, RolloutGroup)] == [(3, 0), (3, 1), (3, 2)]
        with pytest.raises(JournalError, match="round 3 is not open"):
            journal.append(3, make_group())


def test_seals(tmp_path):
    with Journal(tmp_path) as journal:
        assert not journal.is_sealed(0, "groups")
        journal.begin(0)
        journal.append(0, make_group())
        assert not journal.is_sealed(0, "groups")
        journal.seal(0, "groups")
        journal.append(0, make_report())
        assert journal.is_sealed(0, "groups")
        assert not journal.is_sealed(0, "pairs")
        journal.begin(0)
        assert not journal.is_sealed(0, "groups")
        assert journal.is_sealed(0, "groups", attempt=1)


def test_what_does_not_belong_is_refused(tmp_path):
    with Journal(tmp_path, durable=True) as journal:
        with pytest.raises(JournalError, match="round 0 is not open"):
            journal.append(0, make_group())
        with pytest.raises(JournalError, match="no attempt at round 0"):
            journal.read(0, RolloutGroup)
        with pytest.raises(ValueError, match="round must be at least 0, got -1"):
            journal.begin(-1)
        journal.begin(0)
        with pytest.raises(JournalError, match="no attempt 2 at round 0"):
            journal.read(0, RolloutGroup, attempt=2)
        with pytest.raises(WrongType, match="no Prompt"):
            journal.append(0, make_group().prompt)
        with pytest.raises(WrongType, match="no Prompt"):
            journal.read(0, Prompt)
        broken = replace(make_group(), prompt_token_ids=np.zeros(1))
        with pytest.raises(WrongType, match="expected int32 array, got float64 array"):
            journal.append(0, broken)
        assert log_of(journal).stat().st_size == 0
        journal.append(0, make_group())
        assert list(journal.read(0, RolloutGroup)) == [make_group()]
    with pytest.raises(JournalError, match="is no journal"):
        Journal(tmp_path / "missing", create=False)


def test_an_append_that_fails_halfway_leaves_no_trace(tmp_path, monkeypatch):
    with Journal(tmp_path) as journal:
        journal.begin(0)
        journal.append(0, make_group(0))
        size, second = log_of(journal).stat().st_size, make_group(1)
        writev = os.writev

        def full_disk(file, parts):
            if os.fstat(file).st_size > size:
                raise OSError(28, "No space left on device")
            return writev(file, [bytes(parts[0])[:10]])

        monkeypatch.setattr(os, "writev", full_disk)
        with pytest.raises(JournalError, match=f"cannot append at byte {size}: .*No space left"):
            journal.append(0, second)
        monkeypatch.undo()
        assert log_of(journal).stat().st_size == size
        journal.append(0, make_scored(second))  # nothing of what was not written is taken for known
        journal.append(0, second)
        assert list(journal.read(0, RolloutGroup)) == [make_group(0), make_group(1)]
        assert list(journal.read(0, ScoredGroup)) == [make_scored(second)]


def test_short_writes_are_completed(tmp_path, monkeypatch):
    writev = os.writev
    monkeypatch.setattr(os, "writev", lambda file, parts: writev(file, [bytes(parts[0])[:7]]))
    with Journal(tmp_path) as journal:
        journal.begin(0)
        journal.append(0, make_group())
        assert list(journal.read(0, RolloutGroup)) == [make_group()]


def test_torn_at_any_byte_all_acknowledged_records_are_there(tmp_path):
    group = make_group(num_responses=2)
    records = [make_pair(group), make_pair(group, 1, 0)]
    ends = []
    with Journal(tmp_path) as journal:
        journal.begin(0)
        for record in records:
            journal.append(0, record)
            ends.append(log_of(journal).stat().st_size)
    for length in reversed(range(ends[-1])):
        os.truncate(log_of(journal), length)
        found = list(journal.read(0, PreferencePair))
        assert len(found) == sum(end <= length for end in ends)
        assert found == records[: len(found)]


def test_any_flipped_byte_raises_also_in_the_last_entry(tmp_path):
    with Journal(tmp_path) as journal:
        journal.begin(0)
        journal.append(0, make_group(0, num_responses=1))
        size = log_of(journal).stat().st_size
        journal.append(0, make_report())
    for position in range(log_of(journal).stat().st_size):
        flip(log_of(journal), position)
        with pytest.raises(JournalError, match=r"round-0000.attempt-0001.log: damaged entry at byte \d+"):
            list(journal.read(0, RoundReport))
        flip(log_of(journal), position)
    assert list(journal.read(0, RoundReport)) == [make_report()]
    flip(log_of(journal), size + 40)
    with pytest.raises(JournalError, match=f"damaged entry at byte {size}; no sound entry follows"):
        list(journal.read(0, RolloutGroup))


def test_zeros_that_a_power_cut_left_are_a_torn_end(tmp_path):
    with Journal(tmp_path) as journal:
        journal.begin(0)
        journal.append(0, make_report())
    with log_of(journal).open("ab") as log:
        log.write(bytes(5000))
    assert list(journal.read(0, RoundReport)) == [make_report()]


def test_damage_names_the_offset_of_the_entry(tmp_path):
    with Journal(tmp_path) as journal:
        journal.begin(0)
        journal.append(0, make_report(1))
        size = log_of(journal).stat().st_size
        journal.append(0, make_report(2))
        journal.append(0, make_report(3))
    flip(log_of(journal), size + 30)
    reports = journal.read(0, RoundReport)
    assert next(reports).round == 1
    with pytest.raises(JournalError, match=f"damaged entry at byte {size}; sound entries follow from byte {2 * size}"):
        next(reports)


WRITER = """
import sys
sys.path.insert(0, sys.argv[2])
from tests.unit.test_journal import make_group, make_image, make_pair
from rlsys.journal import Journal
from tests.fakes import make_verdict, sampled_response
journal = Journal(sys.argv[1])
journal.begin(0)
for index in range(int(sys.argv[3])):
    group = make_group(index, image=make_image(index % 7, side=48))
    journal.append(0, group)
    journal.append(0, make_pair(group))
    sys.stdout.write(f"{index}\\n")
    sys.stdout.flush()
"""


def start_writer(folder, num_groups=100_000):
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    command = [sys.executable, "-c", WRITER, str(folder), root, str(num_groups)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_killed_writer_loses_nothing_acknowledged(tmp_path):
    for trial, num_lines in enumerate((3, 40, 111)):
        folder = tmp_path / str(trial)
        writer = start_writer(folder)
        lines = [writer.stdout.readline() for _ in range(num_lines)]
        writer.send_signal(signal.SIGKILL)
        lines += writer.stdout.readlines()
        assert writer.wait() == -signal.SIGKILL
        acknowledged = int([line for line in lines if line.endswith("\n")][-1])
        journal = Journal(folder, create=False)
        groups = list(journal.read(0, RolloutGroup))
        assert len(groups) in (acknowledged + 1, acknowledged + 2)
        assert len(list(journal.read(0, PreferencePair))) >= acknowledged + 1
        assert groups[acknowledged] == make_group(acknowledged, image=make_image(acknowledged % 7, side=48))


def test_a_reader_in_another_process_follows_the_writer(tmp_path):
    writer = start_writer(tmp_path, num_groups=150)
    journal = Journal(tmp_path)
    for line in writer.stdout:
        groups = [group.index for group in journal.read(0, RolloutGroup)]
        assert groups == list(range(len(groups)))
        assert len(groups) > int(line)
        if len(groups) == 150:
            break
    assert writer.communicate()[0].endswith("149\n")
    assert writer.returncode == 0


def test_threads_append_to_one_round(tmp_path):
    with Journal(tmp_path) as journal:
        journal.begin(0)

        def work(first):
            for index in range(first, first + 20):
                group = make_group(index, image=make_image(index % 3))
                journal.append(0, group)
                journal.append(0, make_pair(group))

        threads = [threading.Thread(target=work, args=(first,)) for first in (0, 100, 200)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        groups = {group.index: group for group in journal.read(0, RolloutGroup)}
        assert len(groups) == 60
        assert groups == {index: make_group(index, image=make_image(index % 3)) for index in groups}
        assert [group for group in groups if group < 100] == list(range(20))
        assert len(list(journal.read(0, PreferencePair))) == 60


def test_a_writer_that_has_forgotten_a_part_writes_it_again_and_everything_reads_as_before(tmp_path, monkeypatch):
    monkeypatch.setattr("rlsys.journal.entries._NUM_KNOWN", 3)
    groups = [make_group(index, image=make_image(seed=index % 2)) for index in range(6)]
    with Journal(tmp_path) as journal:
        journal.begin(0)
        for group in groups:
            journal.append(0, group)
            journal.append(0, make_scored(copy_of(group)))
        assert len(journal._open[0]._parts._offsets) == 3
        assert list(journal.read(0, RolloutGroup)) == groups
        assert list(journal.read(0, ScoredGroup)) == [make_scored(group) for group in groups]


def test_a_journal_of_an_earlier_version_is_named_as_such(tmp_path):
    file = tmp_path / "earlier.log"
    file.write_bytes(b"RLSJ" + struct.pack("<IQII", 16, 40, 1, 2) + bytes(40))
    with pytest.raises(JournalError, match="written by an earlier version, which this one does not read"):
        list(scan(file))
