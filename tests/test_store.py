from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merge3.store import DamagedAnswers, Failure, Reply, Store, canonical, digest, size

KEY = {"merge": {"weights": [0.5]}, "runtime": "here"}


def test_a_file_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "questions.jsonl").write_text("")
    for place in ("questions.jsonl", "questions.jsonl/answers"):
        with pytest.raises(NotADirectoryError, match=r"kept in a folder, and .*questions\.jsonl is a file"):
            Store(tmp_path / place)


def test_what_is_put_is_got_bit_for_bit_by_another_store(tmp_path: Path) -> None:
    answers = {"a": (-0.1, -1e-300, -123.45678901234567), "b": (), "c": (-0.0,)}
    answers |= {"d": Reply("é\n17\u2028", "stop", 3), "e": Failure("too long")}
    store, other = Store(tmp_path), Store(tmp_path / "other")
    store.put(KEY, answers)
    assert Store(tmp_path).get(KEY) == answers
    for item in reversed(answers):
        other.put(KEY, {item: answers[item]})
    content = store.path(KEY).read_bytes()
    assert content == other.path(KEY).read_bytes()  # whatever came first
    assert size(answers) == len(content) - len(canonical(KEY)) - 1


def test_the_keys_are_told(tmp_path: Path) -> None:
    store, other = Store(tmp_path), {**KEY, "runtime": "there"}
    assert store.keys() == []
    for key in (KEY, other):
        store.put(key, {"a": (-1.0,)})
    store.path(KEY).with_name("foreign.jsonl").write_text("{}\n")
    store.path(KEY).with_name("ruined.jsonl").write_text("{")
    assert sorted(store.keys(), key=str) == sorted([KEY, other], key=str)


def test_other_keys_hold_nothing(tmp_path: Path) -> None:
    Store(tmp_path).put(KEY, {"a": (-1.0,)})
    assert Store(tmp_path).get({**KEY, "runtime": "there"}) == {}


def test_putting_adds(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put(KEY, {"a": (-1.0,)})
    store.put(KEY, {"b": (-2.0,)})
    assert store.get(KEY) == {"a": (-1.0,), "b": (-2.0,)}
    store.put(KEY, {"a": (-3.0,)})
    assert store.get(KEY) == {"a": (-3.0,), "b": (-2.0,)}


def test_numbers_that_are_not_finite_are_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put(KEY, {"a": (-1.0,)})
    with pytest.raises(ValueError, match="JSON compliant"):
        store.put(KEY, {"b": (float("nan"),)})
    assert store.get(KEY) == {"a": (-1.0,)}


@pytest.mark.parametrize("line", [0, 1, 2])
def test_a_file_with_a_damaged_line_is_reported_and_set_aside_whole(tmp_path: Path, line: int) -> None:
    store = Store(tmp_path)
    for key in (KEY, {}):
        store.put(key, {"a": (-1.5,), "b": (-2.5,)})
    path = store.path(KEY)
    lines = path.read_text().splitlines()
    damaged = lines[line].replace("5", "6").replace("here", "hero")
    assert damaged != lines[line]
    lines[line] = damaged
    path.write_text("\n".join(lines) + "\n")
    before = path.read_bytes()
    with pytest.warns(DamagedAnswers, match="damaged, and set aside in"):
        assert store.get(KEY) == {}
    assert path.with_suffix(".damaged").read_bytes() == before
    assert store.get(KEY) == {}  # no warning the second time
    assert store.get({}) == {"a": (-1.5,), "b": (-2.5,)}
    path.write_bytes(before)
    with pytest.warns(DamagedAnswers):
        assert store.get(KEY) == {}
    assert path.with_suffix(".damaged").read_bytes() == 2 * before  # beside what was set aside before


DEEP = b"[" * 100_000


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"{}\n[1,2", DEEP, canonical(KEY).encode() + b"\n" + DEEP])
def test_a_ruined_file_is_an_empty_one(tmp_path: Path, content: bytes) -> None:
    store = Store(tmp_path)
    store.put(KEY, {"a": (-1.0,)})
    store.path(KEY).write_bytes(content)
    assert len(store.keys()) == content.startswith(canonical(KEY).encode())
    with pytest.warns(DamagedAnswers):
        assert store.get(KEY) == {}
    store.put(KEY, {"a": (-1.0,)})
    assert store.get(KEY) == {"a": (-1.0,)}


def test_another_models_file_is_not_taken_for_this_ones(tmp_path: Path) -> None:
    store, other = Store(tmp_path), {**KEY, "runtime": "there"}
    store.put(KEY, {"a": (-1.0,)})
    store.path(other).parent.mkdir(parents=True, exist_ok=True)
    store.path(other).write_bytes(store.path(KEY).read_bytes())
    with pytest.warns(DamagedAnswers):
        assert store.get(other) == {}
    assert store.get(KEY) == {"a": (-1.0,)}


def test_a_kill_between_write_and_rename_leaves_the_old_answers(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put(KEY, {"a": (-1.0,)})
    store.path(KEY).with_suffix(".123.tmp").write_text("half of a li")
    assert store.get(KEY) == {"a": (-1.0,)}


def test_a_full_disk_is_said_and_the_old_answers_stay(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put(KEY, {"a": (-1.0,)})
    (limit, most) = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (store.path(KEY).stat().st_size, most))  # no file may be longer
    try:
        with pytest.raises(OSError, match="File too large"):
            store.put(KEY, {"b": (-2.0,)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
        signal.signal(signal.SIGXFSZ, handler)
    assert store.get(KEY) == {"a": (-1.0,)}
    assert not list(tmp_path.glob("*/*.tmp"))


def without_privileges(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code for which permissions count, whoever runs the tests."""
    drop = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    command = [*drop, sys.executable, "-W", "error", "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": "."})


def test_a_store_that_cannot_be_written_can_be_read(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put(KEY, {"a": (-1.5,), "b": (-2.5,)})
    path = store.path(KEY)
    (path.parent / ".lock").unlink()
    code = "import sys; from pathlib import Path; from merge3.store import Store\n"
    code += f"print(Store(Path(sys.argv[1])).get({KEY}))"
    path.parent.chmod(0o555)
    whole = without_privileges(code, str(tmp_path))
    path.chmod(0o644)
    path.write_text(path.read_text().replace("1.5", "1.6"))
    damaged = without_privileges(code, str(tmp_path))
    path.chmod(0o000)
    unreadable = without_privileges(code, str(tmp_path))
    path.parent.chmod(0o755)
    assert whole.stdout.strip() == str({"a": (-1.5,), "b": (-2.5,)})
    assert "damaged, and passed over; it stays as it is" in damaged.stderr
    assert "cannot be read: give it its permissions back" in unreadable.stderr


def test_a_store_takes_what_another_keeps(tmp_path: Path) -> None:
    ours, theirs, other = Store(tmp_path / "ours"), Store(tmp_path / "theirs"), {**KEY, "runtime": "there"}
    ours.put(KEY, {"a": (-1.0,), "b": (-2.0,)})
    theirs.put(KEY, {"b": (-9.0,), "c": (-3.0,)})
    theirs.put(other, {"a": (-4.0,)})
    assert ours.take(theirs) == (2, 1)
    assert ours.get(KEY) == {"a": (-1.0,), "b": (-2.0,), "c": (-3.0,)}
    assert ours.get(other) == {"a": (-4.0,)}
    assert ours.take(theirs) == (0, 1)
    assert theirs.take(ours) == (1, 1)


def _write_many(root: Path, writer: int) -> None:
    for item in range(25):
        Store(root).put(KEY, {f"{writer}-{item}": (float(-item),)})


def test_four_processes_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write_many, args=(tmp_path, writer)) for writer in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert len(Store(tmp_path).get(KEY)) == 100


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False)))
def test_digest_does_not_depend_on_order(value: dict[str, object]) -> None:
    backwards = dict(reversed(value.items()))
    assert canonical(value) == canonical(backwards)
    assert digest(value) == digest(backwards)
