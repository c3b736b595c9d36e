import json
import os
import signal
import subprocess
import sys
import time

import pytest

from rlsys.checkpoints import checkpoint
from rlsys.checkpoints.checkpoint import latest, load_state, prune, save, verify
from rlsys.errors import CheckpointError

STATE = {"cursor": 96, "seeds": [1, 2], "gate": {"best": 0.25, "good": None}, "phase": "größer", "done": False}


def writer(word="weights"):
    def write(folder):
        (folder / "policy").mkdir()
        (folder / "policy" / "model.safetensors").write_bytes(word.encode() * 1000)
        (folder / "optimizer.pt").write_bytes(b"")

    return write


def content(path):
    return (path / "policy" / "model.safetensors").read_bytes()[:7]


def names(root):
    return sorted(path.name for path in root.iterdir())


@pytest.fixture(params=["exchange", "two renames"])
def replacing(request, monkeypatch):
    """Both ways to replace a folder; the second is for file systems without the first."""
    if request.param == "two renames":
        monkeypatch.setattr(checkpoint, "_exchange", lambda first, second: False)
    return request.param


def test_what_was_saved_comes_back(tmp_path):
    path = save(tmp_path / "checkpoints", 3, writer(), STATE)
    assert path == tmp_path / "checkpoints" / "round-0003"
    assert load_state(path) == STATE
    assert latest(tmp_path / "checkpoints") == path
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["round"] == 3
    assert manifest["files"] == {
        "optimizer.pt": {
            "bytes": 0,
            "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        },
        "policy/model.safetensors": {
            "bytes": 7000,
            "sha256": manifest["files"]["policy/model.safetensors"]["sha256"],
        },
    }


def test_the_highest_complete_round_is_the_latest(tmp_path):
    assert latest(tmp_path / "missing") is None
    assert latest(tmp_path) is None
    for round in (9, 10, 12345, 2):
        save(tmp_path, round, writer(), {})
    assert latest(tmp_path).name == "round-12345"
    (tmp_path / "round-12345" / "policy" / "model.safetensors").write_bytes(b"short")
    assert latest(tmp_path).name == "round-0010"
    (tmp_path / "round-0010" / "optimizer.pt").unlink()
    assert latest(tmp_path).name == "round-0009"
    (tmp_path / "round-0009" / "manifest.json").unlink()
    assert latest(tmp_path).name == "round-0002"


def test_alterations_are_named(tmp_path):
    path = save(tmp_path, 0, writer(), STATE)
    file = path / "policy" / "model.safetensors"
    good = file.read_bytes()
    file.write_bytes(b"W" + good[1:])
    with pytest.raises(CheckpointError, match=r"policy/model.safetensors has other content"):
        verify(path)
    assert load_state(path, check=False) == STATE
    file.write_bytes(good[1:])
    with pytest.raises(CheckpointError, match=r"model.safetensors has 6999 bytes instead of 7000"):
        load_state(path)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"model.safetensors is missing"):
        verify(path)
    file.write_bytes(good)
    verify(path)


def test_any_altered_character_of_the_manifest_is_noticed(tmp_path):
    path = save(tmp_path, 0, writer(), STATE)
    file = path / "manifest.json"
    text = file.read_bytes()
    for position, byte in enumerate(text):
        if chr(byte).isspace():
            continue
        file.write_bytes(text[:position] + bytes([byte ^ 1]) + text[position + 1 :])
        with pytest.raises(CheckpointError, match=r"manifest.json"):
            load_state(path, check=False)
    for junk in (b"", b"[]", b"\xff", b"{}"):
        file.write_bytes(junk)
        with pytest.raises(CheckpointError, match=r"manifest.json is no"):
            verify(path)


def test_a_round_saved_again_replaces_the_old_one(tmp_path, replacing):
    save(tmp_path, 1, writer("old-one"), {"try": 1})
    path = save(tmp_path, 1, writer("new-one"), {"try": 2})
    assert content(path) == b"new-one"
    assert load_state(path) == {"try": 2}
    assert names(tmp_path) == ["round-0001"]


def test_a_write_that_fails_leaves_the_old_one(tmp_path, replacing):
    save(tmp_path, 1, writer("old-one"), {"try": 1})

    def fail(folder):
        (folder / "half").write_text("half")
        raise RuntimeError("disk on fire")

    for round in (1, 2):
        with pytest.raises(RuntimeError, match="disk on fire"):
            save(tmp_path, round, fail, {})
    assert names(tmp_path) == ["round-0001"]
    assert load_state(tmp_path / "round-0001") == {"try": 1}


def test_a_kill_between_two_renames_is_undone(tmp_path, monkeypatch):
    save(tmp_path, 1, writer("old-one"), {})
    (tmp_path / "round-0001").rename(tmp_path / ".replaced-round-0001")
    assert content(latest(tmp_path)) == b"old-one"
    save(tmp_path, 1, writer("new-one"), {})
    (tmp_path / ".replaced-round-0001").mkdir()
    assert content(latest(tmp_path)) == b"new-one"
    save(tmp_path, 2, writer("new-two"), {})
    assert names(tmp_path) == ["round-0001", "round-0002"]


def test_leftovers_of_killed_writers_go_at_the_next_save(tmp_path):
    (tmp_path / ".writing-round-0007-abcd").mkdir()
    (tmp_path / ".writing-round-0007-abcd" / "file").write_text("half")
    (tmp_path / "notes.txt").write_text("not ours")
    assert latest(tmp_path) is None
    save(tmp_path, 7, writer(), {})
    assert names(tmp_path) == ["notes.txt", "round-0007"]


def test_prune_keeps_the_newest_complete_ones(tmp_path):
    for round in range(6):
        save(tmp_path, round, writer(), {})
    (tmp_path / "round-0004" / "manifest.json").unlink()
    removed = prune(tmp_path, keep=2)
    assert [path.name for path in removed] == ["round-0000", "round-0001", "round-0002"]
    assert names(tmp_path) == ["round-0003", "round-0004", "round-0005"]
    assert prune(tmp_path, keep=2) == []
    with pytest.raises(ValueError, match="keep must be at least 1, got 0"):
        prune(tmp_path, keep=0)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"plan": (1, 2)}, r"state\['plan'\] = \(1, 2\) would come back as \[1, 2\]"),
        ({1: "x"}, r"state\[1\] = 'x' would come back as 'x'"),
        ({"best": float("inf")}, "state is no JSON: Out of range float"),
        ({"when": time}, "state is no JSON"),
    ],
)
def test_a_state_that_would_change_is_refused(tmp_path, state, message):
    with pytest.raises(CheckpointError, match=message):
        save(tmp_path, 0, writer(), state)
    assert names(tmp_path) == []


def test_what_is_no_plain_file_is_refused(tmp_path):
    def link(folder):
        (folder / "model").symlink_to("/etc/hostname")

    with pytest.raises(CheckpointError, match="model is no plain file"):
        save(tmp_path, 0, link, {})
    with pytest.raises(CheckpointError, match=r"manifest.json is the checkpoint's own file"):
        save(tmp_path, 0, lambda folder: (folder / "manifest.json").write_text("{}"), {})
    with pytest.raises(ValueError, match="round must be at least 0, got -1"):
        save(tmp_path, -1, writer(), {})
    assert names(tmp_path) == []


SAVER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from rlsys.checkpoints import checkpoint
if sys.argv[3] == "two renames":
    checkpoint._exchange = lambda first, second: False
def write(number):
    def write(folder):
        for name in ("a", "b", "c"):
            (folder / name).write_bytes(bytes([number]) * 20_000)
    return write
number = 0
while True:
    number = (number + 1) % 256
    checkpoint.save(Path(sys.argv[1]), 1, write(number), {"number": number})
    print(number, flush=True)
"""


def test_a_kill_at_any_time_leaves_a_whole_checkpoint(tmp_path, replacing):
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    for trial in range(8):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVER, str(tmp_path), root, replacing], stdout=subprocess.PIPE, text=True
        )
        process.stdout.readline()
        time.sleep(0.003 * trial)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        path = latest(tmp_path)
        number = load_state(path)["number"]
        assert (path / "a").read_bytes() == (path / "c").read_bytes() == bytes([number]) * 20_000
    save(tmp_path, 1, writer(), {})
    assert names(tmp_path) == ["round-0001"]
