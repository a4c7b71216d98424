"""The client's parts without I/O: when it tries again, what it makes of bytes and bodies, how its two faces compare."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelpool import client
from kernelpool.client import (
    Client,
    ClientError,
    ConnectionBroken,
    Done,
    ExecutionQueueFull,
    InvalidRequest,
    PayloadTooLarge,
    Retries,
    SandboxLost,
    ServerFault,
    TryLater,
    Unauthorized,
    UnexpectedAnswer,
    Unreachable,
    errors,
)
from kernelpool.client.calls import SessionCalls, code_of
from kernelpool.client.frames import Frame, FrameReader
from kernelpool.client.policy import poll_pause
from kernelpool.client.profiles import Profile, load_profile, load_profiles, profiles_file, save_profiles
from kernelpool.client.results import image_of
from kernelpool.client.streams import Watch
from kernelpool.models import DisplayOutput

BROKEN, NOBODY = ConnectionBroken("broke"), Unreachable("nobody")


@pytest.mark.parametrize(
    ("error", "failures", "repeatable", "pause"),
    [
        (TryLater("x", retry_after=3), 1, False, 3),  # it was not done, whatever it was
        (TryLater("x", retry_after=3), 6, False, None),
        (TryLater("x", retry_after=31), 1, True, None),
        (TryLater("x"), 1, True, None),
        (BROKEN, 1, True, 0.25),
        (BROKEN, 3, True, 1.0),
        (BROKEN, 1, False, None),
        (BROKEN, 6, True, None),
        (NOBODY, 1, True, None),
        (NOBODY, 2, True, 0.5),
        (NOBODY, 2, False, None),
        (Unauthorized("x"), 1, True, None),
        (ServerFault("x", retry_after=1), 1, True, None),
    ],
)
def test_a_call_is_sent_again_only_where_that_is_safe(
    error: ClientError, failures: int, repeatable: bool, pause: float | None
) -> None:
    assert Retries().pause(error, failures, repeatable=repeatable, luck=0) == pause
    assert Retries(0).pause(error, failures, repeatable=repeatable, luck=0) is None


def test_the_longer_something_takes_the_rarer_it_is_looked_at() -> None:
    assert [round(poll_pause(elapsed, None), 2) for elapsed in (0, 1, 100)] == [0.05, 0.15, 1.0]
    assert poll_pause(9.9, 10) == pytest.approx(0.1)


@given(st.lists(st.integers(1, 40)), st.sampled_from([b"", b": keep-alive\n\n"]))
def test_events_are_the_same_however_their_bytes_arrive(cuts: list[int], noise: bytes) -> None:
    text = noise + b'id: 7\nevent: output\ndata: {"a": 1}\n\n' + noise + b"event: done\ndata: {}\n\n"
    reader = FrameReader(1000)
    frames: list[Frame] = []
    for cut in [*cuts, len(text)]:
        frames += reader.feed(text[:cut])
        text = text[cut:]

    assert [(frame.kind, frame.data, frame.id) for frame in frames] == [
        ("output", b'{"a": 1}', "7"),
        ("done", b"{}", None),
    ]


def test_an_event_without_end_is_refused() -> None:
    with pytest.raises(UnexpectedAnswer, match="100 bytes"):
        list(FrameReader(100).feed(b"data: " + b"x" * 200))


def watch() -> Watch:
    calls = SessionCalls("python", "abcd-1")
    return Watch(
        calls.submit(code_of("1"), None, "id-1", streamed=True), lambda: calls.execution("id-1", streamed=True), 10_000
    )


def test_code_is_submitted_until_there_is_an_answer_and_then_only_asked_about() -> None:
    watched = watch()
    assert watched.call().method == "POST"
    assert watched.call().method == "POST"

    events = list(watched.receive(b'id: 3\nevent: state\ndata: {"state": "running"}\n\nid: 4\nevent: ou'))

    again = watched.call()
    assert [event.id for event in events] == [3]
    assert (again.method, again.headers["Last-Event-ID"]) == ("GET", "3")
    with pytest.raises(ConnectionBroken):
        watched.end()


def test_a_watch_is_done_with_the_result_and_hears_nothing_after_it() -> None:
    watched = watch()
    done = json.dumps({"id": "id-1", "status": "Succeeded", "result": {"stdout": "", "stderr": ""}}).encode()

    events = list(
        watched.receive(b"id: 3\nevent: done\ndata: " + done + b"\n\n" + b"event: done\ndata: " + done + b"\n\n")
    )

    assert [type(event) for event in events] == [Done]
    assert watched.is_done
    watched.end()


def test_an_error_in_a_stream_is_raised_as_what_it_is() -> None:
    body = {"error": {"code": "SandboxLost", "message": "gone", "traceId": "t", "remedy": "Again."}}

    with pytest.raises(SandboxLost, match="gone") as caught:
        list(watch().receive(b"event: error\ndata: " + json.dumps(body).encode() + b"\n\n"))
    assert (caught.value.trace_id, caught.value.remedy) == ("t", "Again.")


@pytest.mark.parametrize("data", [b"[]", b"{", b'{"state": ', b"3", b'{"data": 1}'])
def test_an_event_that_is_none_is_no_crash(data: bytes) -> None:
    with pytest.raises(UnexpectedAnswer):
        list(watch().receive(b"id: 1\nevent: output\ndata: " + data + b"\n\n" + b"id: x\nevent: state\ndata: {}\n\n"))


def test_events_of_a_later_version_are_passed_over() -> None:
    assert list(watch().receive(b'id: 1\nevent: confetti\ndata: {"a": 1}\n\n')) == []


@pytest.mark.parametrize(
    ("status", "body", "kind", "message"),
    [
        (429, {"code": "ExecutionQueueFull", "message": "full"}, ExecutionQueueFull, "full"),
        (400, {"title": "t", "errors": {"code": ["code: missing."]}}, InvalidRequest, "code: missing."),
        (413, {"error": {"code": "PayloadTooLarge", "message": "big"}}, PayloadTooLarge, "big"),
        (418, {"error": {"code": "New", "message": "tea"}}, InvalidRequest, "tea"),
        (599, [], ServerFault, "status 599"),
    ],
)
def test_every_shape_of_error_is_read(status: int, body: Any, kind: type[ClientError], message: str) -> None:
    error = errors.error_of(status, {}, json.dumps(body).encode())

    assert type(error) is kind
    assert (error.message, error.status) == (message, status)


def test_what_a_proxy_says_is_quoted_in_part() -> None:
    error = errors.error_of(502, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, b"\xff<html>" * 10_000)

    assert "502" in error.message
    assert len(error.message) < 3000
    assert error.retry_after is None


def test_an_image_that_is_none_is_no_error() -> None:
    assert image_of(DisplayOutput({"image/png": "x"})) is None
    assert image_of(DisplayOutput({"image/svg+xml": "\ud800"})) is None
    assert image_of(DisplayOutput({"image/png": ["x"]})) is None


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8080",
        "ftp://host",
        "http://",
        "http://u:p@host",
        "http://host/?token=x",
        "http://host/pools/python",
    ],
)
def test_a_wrong_url_is_told_before_anything_is_sent(url: str) -> None:
    with pytest.raises(InvalidRequest):
        Client(url, "token")


def test_no_repr_shows_the_token() -> None:
    with Client("http://host/base/", "a-secret-token") as made:
        session = made.pool("python").session("abcd-1")
        shown = [
            repr(each) for each in (made, vars(made), made.pool("p"), session, session.execution("x"), session.files)
        ]

    assert "http://host/base" in shown[0]
    assert "a-secret-token" not in " ".join(shown)
    assert "a-secret-token" not in repr(Profile("http://host", "a-secret-token"))


@pytest.mark.parametrize("name", ["Client", "Pool", "Session", "Execution", "Files"])
def test_both_faces_offer_the_same(name: str) -> None:
    blocking, twin = (signatures(getattr(client, prefix + name)) for prefix in ("", "Async"))

    assert blocking == twin
    assert len(blocking) >= 4


def signatures(face: type) -> dict[str, list[tuple[str, Any, Any]]]:
    """Of its public methods: parameters with kinds and defaults. `close` is `aclose` there, as everywhere."""
    return {
        "close" if name == "aclose" else name: [
            (each.name, each.kind, each.default) for each in inspect.signature(method).parameters.values()
        ]
        for name, method in inspect.getmembers(face, callable)
        if not name.startswith("_")
    }


def test_profiles_are_kept_for_their_owner_alone(tmp_path: Path) -> None:
    file = profiles_file({"XDG_CONFIG_HOME": str(tmp_path)})

    save_profiles({"default": Profile("http://a", 'quo"te\\'), "b": Profile("http://b", "t")}, file)

    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    assert load_profile("default", file) == Profile("http://a", 'quo"te\\')
    assert [path.name for path in file.parent.iterdir()] == ["profiles.toml"]


def test_what_is_wrong_with_a_profile_is_said_without_its_token(tmp_path: Path) -> None:
    file = tmp_path / "profiles.toml"
    with pytest.raises(InvalidRequest, match=r"nor any other"):
        load_profile("x", file)
    for text in ("[a]\nurl = 'http://a'\ntoken = ['a-secret']", "a-secret = ", "a = 'a-secret'"):
        file.write_text(text)
        with pytest.raises(InvalidRequest) as caught:
            load_profiles(file)
        assert "a-secret'" not in str(caught.value)
    with pytest.raises(InvalidRequest):
        save_profiles({"a b": Profile("http://a", "t")}, file)
    with pytest.raises(InvalidRequest):
        save_profiles({"a": Profile("http://a", "line\nbreak")}, file)
