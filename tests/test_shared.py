"""Answers that several machines share, over fsspec: a folder, memory, and S3 as moto speaks it."""

from __future__ import annotations

import pickle
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest
from fsspec.core import url_to_fs

from merge3 import shared
from merge3.shared import NotShared, Shared
from merge3.store import Failure, Reply, Store

KEY, OTHER = {"merge": {"weights": [0.5]}, "runtime": "here"}, {"runtime": "there"}
MOTO = shutil.which("moto_server")


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket's URL."""
    if find_spec("s3fs") is None or MOTO is None:
        pytest.skip("s3fs or moto_server is not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for name, value in (
        ("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}"),
        ("AWS_ACCESS_KEY_ID", "tester"),
        ("AWS_SECRET_ACCESS_KEY", "tester"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    server = subprocess.Popen([MOTO, "-H", "127.0.0.1", "-p", str(port)], stderr=subprocess.DEVNULL)
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.05)
    fs, _ = url_to_fs("s3://team", skip_instance_cache=True)
    fs.mkdir("team")
    type(fs).clear_instance_cache()  # of a server before
    yield "s3://team/answers"
    server.kill()
    server.wait()


@pytest.fixture(params=["folder", "file", "memory", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place of each kind."""
    if request.param == "s3":
        return str(request.getfixturevalue("s3"))
    place = tmp_path / "shared"
    return {"folder": str(place), "file": f"file://{place}", "memory": f"memory://{place}"}[request.param]


def files(url: str) -> dict[str, bytes]:
    """What lies in a place, but for its README."""
    fs, place = url_to_fs(url)
    return {p: fs.cat_file(p) for p in fs.find(place) if not p.endswith("/README")}


def test_what_any_machine_keeps_all_have(url: str, tmp_path: Path) -> None:
    stores = [Shared(tmp_path / name, url) for name in "abc"]
    stores[0].put(KEY, {"x": (-1.5,), "e": Failure("too long")})
    stores[1].put(KEY, {"y": (-2.5, -1e-300)})
    stores[1].put(OTHER, {"x": Reply("é\u2028", "stop", 3)})
    expected = {"x": (-1.5,), "e": Failure("too long"), "y": (-2.5, -1e-300)}
    assert [store.get(KEY) for store in stores] == [expected] * 3
    assert [store.get(OTHER) for store in stores] == [{"x": Reply("é\u2028", "stop", 3)}] * 3
    assert all(Store(store.root).get(KEY) == expected for store in stores)  # of the local folder alone
    assert len({store.path(KEY).read_bytes() for store in stores}) == 1
    assert len(files(url)) == 3  # one for each that was put: what was taken is not given again


def test_answers_that_were_kept_alone_are_given_when_they_are_touched(tmp_path: Path) -> None:
    Store(tmp_path / "a").put(KEY, {"x": (-1.0,)})
    assert Shared(tmp_path / "a", str(tmp_path / "shared")).get(KEY) == {"x": (-1.0,)}
    assert Shared(tmp_path / "b", str(tmp_path / "shared")).get(KEY) == {"x": (-1.0,)}
    Store(tmp_path / "a").put(OTHER, {"x": (-1.0,)})
    Shared(tmp_path / "a", str(tmp_path / "shared")).put(OTHER, {"y": (-2.0,)})
    assert Shared(tmp_path / "b", str(tmp_path / "shared")).get(OTHER) == {"x": (-1.0,), "y": (-2.0,)}


def test_an_answer_is_given_once_however_often_its_key_is_touched(url: str, tmp_path: Path) -> None:
    stores = [Shared(tmp_path / name, url) for name in "ab"]
    for n in range(4):
        stores[n % 2].put(KEY, {str(n): (-1.0,)})
        assert [len(store.get(KEY)) for store in stores] == [n + 1] * 2
    assert [content.count(b"\n") for content in files(url).values()] == [2] * 4  # the key, and an answer


def test_what_another_machine_gave_since_is_seen(url: str, tmp_path: Path) -> None:
    """Another machine's writes forget none of what this one's file system keeps of its listings."""
    store, other = Shared(tmp_path / "a", url), Shared(tmp_path / "b", url)
    other._fs = url_to_fs(url, skip_instance_cache=True)[0]
    for n in range(2):
        other.put(KEY, {str(n): (-1.0,)})
        assert len(store.get(KEY)) == n + 1


def test_what_was_read_there_is_kept_though_nothing_can_be_written_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = str(tmp_path / "shared")
    Shared(tmp_path / "a", url).put(KEY, {"x": (-1.0,)})
    other = Shared(tmp_path / "b", url)

    def full(path: str, content: bytes) -> None:
        raise OSError("quota exceeded")

    monkeypatch.setattr(other, "_write", full)
    with pytest.warns(NotShared, match="quota exceeded"):
        other.put(KEY, {"y": (-2.0,)})
    assert other.get(KEY) == {"x": (-1.0,), "y": (-2.0,)}


def test_many_may_write_at_once(tmp_path: Path) -> None:
    def put(n: int) -> None:
        Shared(tmp_path / str(n), str(tmp_path / "shared")).put(KEY, {str(n): (-float(n),)})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, range(40)))
    assert Shared(tmp_path / "last", str(tmp_path / "shared")).get(KEY) == {str(n): (-float(n),) for n in range(40)}
    assert not list((tmp_path / "shared").rglob("*.tmp"))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-40] ^= 1
    path.write_bytes(content)


def take_anothers(path: Path) -> None:
    """Put a whole file of another key in its place."""
    Shared(path.parents[3] / "foreign", str(path.parents[2])).put(OTHER, {"y": (0.0,)})
    (foreign,) = [file for file in path.parents[2].glob("*/*/*.jsonl") if file.parent != path.parent]
    shutil.move(foreign, path.parent / foreign.name)
    path.unlink()


class Bomb:
    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return pytest.fail, ("unpickled",)


def lose_a_line(path: Path) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


DAMAGES = {
    "truncated": truncate,
    "a line lost": lose_a_line,
    "a bit flipped": flip,
    "emptied": lambda path: path.write_bytes(b""),
    "a pickle": lambda path: path.write_bytes(pickle.dumps(Bomb())),
    "another key's": take_anothers,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_file_is_refused_said_once_and_mended_when_it_is_asked_again(
    damage: Callable[[Path], object], tmp_path: Path
) -> None:
    url = str(tmp_path / "shared")
    Shared(tmp_path / "a", url).put(KEY, {"x": (-1.0,)})
    (path,) = (tmp_path / "shared").glob("*/*/*.jsonl")
    whole = path.read_bytes()
    damage(path)
    other = Shared(tmp_path / "b", url)
    with pytest.warns(NotShared, match="is damaged, and not used"):
        assert other.get(KEY) == {}
    assert other.get(KEY) == {}  # a warning would be an error
    other.put(KEY, {"x": (-1.0,)})
    assert path.read_bytes() == whole


def test_where_two_differ_ours_stays_and_it_is_said(tmp_path: Path) -> None:
    url = str(tmp_path / "shared")
    Shared(tmp_path / "a", url).put(KEY, {"x": (-1.0,), "y": (-5.0,)})
    Store(tmp_path / "b").put(KEY, {"x": (-2.0,)})
    with pytest.warns(NotShared, match="1 answers are others than those here"):
        assert Shared(tmp_path / "b", url).get(KEY) == {"x": (-2.0,), "y": (-5.0,)}
    assert Store(tmp_path / "b").get(KEY) == {"x": (-2.0,), "y": (-5.0,)}


def test_where_the_place_goes_away_the_work_goes_on_and_what_it_lacks_is_given_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "shared"
    store = Shared(tmp_path / "a", str(place))
    place.rename(tmp_path / "away")
    place.write_text("in the way")
    with pytest.warns(NotShared, match="answers are kept here alone for now"):
        store.put(KEY, {"x": (-1.0,)})
    place.unlink()
    (tmp_path / "away").rename(place)
    store.put(KEY, {"y": (-1.0,)})  # too soon
    assert not files(str(place))
    monkeypatch.setattr(shared, "monotonic", lambda: time.monotonic() + shared.PAUSE)
    assert store.get(KEY).keys() == {"x", "y"}
    assert Shared(tmp_path / "b", str(place)).get(KEY).keys() == {"x", "y"}


@pytest.mark.parametrize("wrong", ["nosuch://place", "{}/file/answers"])
def test_a_place_that_cannot_be_written_is_refused(wrong: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="answers cannot be shared at"):
        Shared(tmp_path / "a", wrong.format(tmp_path))
