"""The egress proxy over real sockets: whom it lets where, what it tells, and what it cannot be made to do."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import ssl
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelpool.backends.egress import host_addresses
from kernelpool.egress.addresses import Address, is_public, judge
from kernelpool.egress.client_hello import NotTls, server_name
from kernelpool.egress.decisions import Decision, Outcome
from kernelpool.egress.flow import FlowLimits
from kernelpool.egress.ledger import Ledger
from kernelpool.egress.proxy import ProxyLimits
from tests.egress import Names, Outside, certificates, door_of, outside


def get(host: str, port: int, path: str = "/", headers: str = "") -> bytes:
    return f"GET http://{host}:{port}{path} HTTP/1.1\r\nHost: {host}\r\n{headers}\r\n".encode()


def connect(host: str, port: int) -> bytes:
    return f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode()


# --- whom it lets where


async def test_an_allowed_name_is_reached_by_request_and_by_tunnel() -> None:
    async with outside().running() as world, door_of(f"a.test:{world.port}", names=Names(a_test=["127.0.0.1"])) as door:
        plain = await door.ask(get("a.test", world.port, "/x?y=1"))
        tunnel = await door.ask(connect("a.test", world.port) + b"GET /z HTTP/1.1\r\n\r\n", end=True)

        assert plain.startswith(b"HTTP/1.1 200 OK\r\n")
        assert plain.endswith(b"hi")
        assert tunnel.startswith(b"HTTP/1.1 200 Connection established\r\n\r\nHTTP/1.1 200 OK")
        assert world.heard[0].startswith(b"GET /x?y=1 HTTP/1.1\r\n")
        assert world.heard[1] == b"GET /z HTTP/1.1\r\n\r\n"
        await door.until(lambda: sum(decision.over for decision in door.told) == 2)

    begun, over = [d for d in door.told if not d.over], [d for d in door.told if d.over]
    assert door.outcomes == ["allowed", "allowed"]
    assert {(d.sandbox, d.host, d.port, d.address) for d in begun} == {("box", "a.test", world.port, "127.0.0.1")}
    assert {(d.sent > 0, d.received > 0) for d in over} == {(True, True)}
    assert over[1].sent == len(b"GET /z HTTP/1.1\r\n\r\n")


@pytest.mark.parametrize("form", [get, connect])
async def test_what_is_not_on_the_list_is_403_with_a_sentence_and_is_not_even_looked_up(form: object) -> None:
    names = Names(evil_test=["127.0.0.1"])
    async with outside().running() as world, door_of("a.test", names=names) as door:
        answer = await door.ask(form("evil.test", world.port))  # type: ignore[operator]

    sentence = f"evil.test at port {world.port} is not among the domains that this session may reach".encode()
    assert answer.startswith(b"HTTP/1.1 403 " + sentence + b"\r\n")
    assert answer.endswith(b"\r\n\r\n" + sentence + b"\n")
    assert names.asked == []
    assert world.connections == 0
    assert door.outcomes == ["refused_name"]


class Slow(Names):
    """Never answers, as servers of somebody who wants it so."""

    async def resolve(self, host: str, port: int) -> Sequence[Address]:
        self.asked.append(host)
        await asyncio.Event().wait()
        return ()


async def test_a_lookup_that_nobody_waits_for_any_more_still_holds_its_place() -> None:
    names = Slow()
    async with door_of("*.evil.test", names=names, limits=ProxyLimits(lookups=2, lookup=0.2)) as door:
        answers = await asyncio.gather(*(door.ask(get(f"{n}.evil.test", 80)) for n in range(4)))

    assert all(answer.startswith(b"HTTP/1.1 502 ") for answer in answers)
    assert len(names.asked) == 2


@pytest.mark.parametrize("spelled", ["A.TEST", "a.test.", "A.tEsT."])
async def test_one_name_is_one_name_however_it_is_spelled(spelled: str) -> None:
    async with outside().running() as world, door_of(f"a.test:{world.port}", names=Names(a_test=["127.0.0.1"])) as door:
        answer = await door.ask(get(spelled, world.port))

    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"\r\nhost: a.test:" in world.heard[0].lower()


async def test_the_name_in_the_request_line_counts_and_not_the_host_header() -> None:
    async with outside().running() as world, door_of(f"a.test:{world.port}", names=Names(a_test=["127.0.0.1"])) as door:
        await door.ask(f"GET http://a.test:{world.port}/ HTTP/1.1\r\nHost: evil.test\r\n\r\n".encode())

    assert b"evil" not in world.heard[0]


@pytest.mark.parametrize("port", [25, 22, 53, 8080])
async def test_other_ports_than_those_named_are_refused(port: int) -> None:
    async with door_of("a.test", names=Names(a_test=["127.0.0.1"])) as door:
        assert (await door.ask(connect("a.test", port))).startswith(b"HTTP/1.1 403 ")

    assert door.outcomes == ["refused_name"]


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.1", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "017700000001", "127.0.0.1."),
        *("[::1]", "[::ffff:127.0.0.1]", "[::]", "0", "0.0.0.0", "169.254.169.254", "a.0x7f"),
    ],
)
@pytest.mark.parametrize("form", [get, connect])
async def test_an_address_is_no_name_in_any_spelling(host: str, form: object) -> None:
    async with door_of("*.a.test", "a.test") as door:
        answer = await door.ask(form(host, 80))  # type: ignore[operator]

    assert answer.startswith(b"HTTP/1.1 403 ")
    assert b"is an address" in answer or b"single label" in answer


@pytest.mark.parametrize(
    ("text", "public"),
    [
        *((text, True) for text in ("8.8.8.8", "151.101.0.223", "2606:4700::1111", "2a04:4e42::223")),
        *((text, False) for text in ("0.0.0.0", "10.1.2.3", "100.64.0.1", "100.100.100.200", "127.0.0.1")),
        *((text, False) for text in ("168.63.129.16", "169.254.169.254", "172.16.0.1", "192.0.0.192", "192.168.1.1")),
        *((text, False) for text in ("198.18.0.1", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255")),
        *((text, False) for text in ("192.0.2.1", "203.0.113.1", "192.88.99.1", "::", "::1", "::8.8.8.8")),
        *((text, False) for text in ("::ffff:8.8.8.8", "::ffff:10.0.0.1", "64:ff9b::808:808", "64:ff9b:1::1")),
        *((text, False) for text in ("2002:808:808::1", "2001:0:808:808::1", "fe80::1", "fe80::1%eth0", "fec0::1")),
        *((text, False) for text in ("fc00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1", "3fff::1", "100::1")),
    ],
)
def test_only_the_public_internet_is_public(text: str, public: bool) -> None:
    assert is_public(ipaddress.ip_address(text)) is public


@given(st.ip_addresses())
def test_what_is_public_is_global_and_one_of_many(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    if is_public(address):
        assert address.is_global
        assert not address.is_multicast
        assert not address.is_private
        assert not address.is_reserved
        assert not address.is_link_local


def test_an_address_of_this_host_is_its_own_though_its_number_is_public(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernelpool.egress.addresses.is_public", lambda _: True)

    own = host_addresses(Path("/proc/net/fib_trie").read_text())
    assert {judge(network.network_address) for network in own} <= {"is this host's own"}
    assert judge(ipaddress.ip_address("127.0.0.1")) == "is this host's own"
    assert judge(ipaddress.ip_address("::1")) == "is this host's own"
    assert judge(ipaddress.ip_address("198.51.100.7")) is None


async def test_a_name_that_stands_for_an_inside_is_refused_with_its_address() -> None:
    async with door_of("a.test", names=Names(a_test=["169.254.169.254 10.0.0.1"])) as door:
        answer = await door.ask(connect("a.test", 443))

    assert answer.startswith(b"HTTP/1.1 403 a.test stands for 169.254.169.254, which is not on the public internet")
    assert door.outcomes == ["refused_address"]


async def test_of_several_addresses_only_a_public_one_is_connected_to() -> None:
    names = Names(a_test=["10.0.0.1 127.0.0.1"])
    async with outside().running() as world, door_of(f"a.test:{world.port}", names=names) as door:
        await door.ask(get("a.test", world.port))

    assert door.told[0].address == "127.0.0.1"


async def test_a_name_that_changes_after_it_was_judged_changes_nothing() -> None:
    """Rebinding: there is one lookup a connection, and its answer is what is connected to."""
    names = Names(a_test=["127.0.0.1", "10.0.0.1"])
    async with outside().running() as world, door_of(f"a.test:{world.port}", names=names) as door:
        first = await door.ask(get("a.test", world.port))
        second = await door.ask(get("a.test", world.port))

    assert first.startswith(b"HTTP/1.1 200 ")
    assert second.startswith(b"HTTP/1.1 403 ")
    assert names.asked == ["a.test", "a.test"]
    assert world.connections == 1


async def test_what_is_not_found_or_not_there_is_502() -> None:
    async with door_of("a.test:9", "b.test", names=Names(a_test=["127.0.0.1"])) as door:
        unreachable = await door.ask(connect("a.test", 9))
        unknown = await door.ask(connect("b.test", 443))

    assert unreachable.startswith(b"HTTP/1.1 502 a.test at port 9 cannot be reached")
    assert unknown.startswith(b"HTTP/1.1 502 b.test is not found")
    assert door.outcomes == ["failed", "failed"]


async def test_a_redirect_is_the_callers_to_follow() -> None:
    answer = b"HTTP/1.1 302 Found\r\nlocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n"
    names = Names(a_test=["127.0.0.1"])
    async with outside(answer).running() as world, door_of(f"a.test:{world.port}", names=names) as door:
        got = await door.ask(get("a.test", world.port))

    assert got.startswith(b"HTTP/1.1 302 Found\r\nlocation: http://169.254.169.254/\r\n")
    assert world.connections == 1


# --- HTTP, strictly


@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n",
        b"GET a.test HTTP/1.1\r\nHost: a.test\r\n\r\n",
        b"GET https://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n",
        b"GET ftp://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n",
        b"GET http://u:p@a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n",
        b"GET http://a.test\\@b.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n",
        b"GET http://a.test:99999/ HTTP/1.1\r\nHost: a.test\r\n\r\n",
        b"GET http://a.test/#x HTTP/1.1\r\nHost: a.test\r\n\r\n",
        b"GET http:///x HTTP/1.1\r\nHost: a.test\r\n\r\n",
        b"CONNECT a.test HTTP/1.1\r\nHost: a.test\r\n\r\n",
        b"CONNECT http://a.test:443 HTTP/1.1\r\nHost: a.test\r\n\r\n",
        b"CONNECT a.test:0443 HTTP/1.1\r\nHost: a.test\r\n\r\n",
        b"CONNECT a.test:443 HTTP/1.1\r\nHost: a.test\r\nContent-Length: 4\r\n\r\nabcd",
        b"CONNECT a.test:443 HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST http://a.test/ HTTP/1.1\r\nHost: a.test\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
        b"POST http://a.test/ HTTP/1.1\r\nHost: a.test\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcde",
        b"POST http://a.test/ HTTP/1.1\r\nHost: a.test\r\nContent-Length: +4\r\n\r\nabcd",
        b"POST http://a.test/ HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"POST http://a.test/ HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        b"PUT http://a.test/ HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"POST http://a.test/ HTTP/1.0\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\nHost: b.test\r\n\r\n",
        b"GET http://a.test/ HTTP/1.1\r\n\r\n",
        b"GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\nX: a\r\n b\r\n c\0\r\n\r\n",
        b"GET http://a.test/ HTTP/2.0\r\nHost: a.test\r\n\r\n",
        b"GET  http://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n",
        b"G\0T http://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n",
        b"GET http://a.test/\xff HTTP/1.1\r\nHost: a.test\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"\x05\x01\x00\r\n\r\n",
        b"GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\nX: " + b"y" * 70_000 + b"\r\n\r\n",
        b"GET http://a.test/" + b"y" * 70_000 + b" HTTP/1.1\r\nHost: a.test\r\n\r\n",
    ],
)
async def test_what_is_ambiguous_or_malformed_is_refused_and_nothing_is_connected_to(request_: bytes) -> None:
    names = Names(a_test=["127.0.0.1"])
    async with door_of("a.test", names=names) as door:
        answer = await door.ask(request_)

    assert answer[:13] in (b"HTTP/1.1 400 ", b"")
    assert names.asked == []
    assert door.outcomes == ["bad_request"]


async def test_headers_of_the_connection_and_for_the_proxy_go_no_further() -> None:
    headers = (
        "Proxy-Authorization: Basic c2VjcmV0\r\nProxy-Connection: keep-alive\r\nConnection: keep-alive, X-Named\r\n"
        "X-Named: 1\r\nKeep-Alive: 5\r\nTE: trailers\r\nUpgrade: h2c\r\nX-Kept: 2\r\n"
    )
    answer = (
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: X-Hop\r\nX-Hop: 1\r\nProxy-Authenticate: B\r\nX-K: 3"
        b"\r\n\r\nhi"
    )
    names = Names(a_test=["127.0.0.1"])
    async with outside(answer).running() as world, door_of(f"a.test:{world.port}", names=names) as door:
        got = await door.ask(get("a.test", world.port, headers=headers))

    assert world.heard[0].lower().split(b"\r\n")[1:-2] == [
        f"host: a.test:{world.port}".encode(),
        b"x-kept: 2",
        b"connection: close",
    ]
    assert b"x-hop" not in got.lower()
    assert b"proxy-auth" not in got.lower()
    assert b"\r\nx-k: 3\r\n" in got


@pytest.mark.parametrize(
    "framing", ["Content-Length: 5\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"]
)
async def test_a_body_is_passed_on_and_what_follows_it_is_not(framing: str) -> None:
    names = Names(a_test=["127.0.0.1"])
    async with outside().running() as world, door_of(f"a.test:{world.port}", names=names) as door:
        request = (
            f"POST http://a.test:{world.port}/ HTTP/1.1\r\nHost: a.test\r\n{framing}GET /smuggled HTTP/1.1\r\n\r\n"
        )
        answer = await door.ask(request.encode())
        await door.until(lambda: any(decision.over for decision in door.told))

    assert answer.count(b"HTTP/1.1") == 1
    assert b"smuggled" not in world.heard[0]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
        b"HTTP/1.0 200 OK\r\n\r\nhi",
    ],
)
async def test_an_answer_is_framed_in_one_way(answer: bytes) -> None:
    names = Names(a_test=["127.0.0.1"])
    async with outside(answer).running() as world, door_of(f"a.test:{world.port}", names=names) as door:
        got = await door.ask(get("a.test", world.port))

    head, _, body = got.removeprefix(b"HTTP/1.1 100 \r\n\r\n").partition(b"\r\n\r\n")
    assert b"hi" in body
    assert head.lower().count(b"content-length") + head.lower().count(b"transfer-encoding") == 1
    assert b"\r\nconnection: close" in head.lower()


async def test_an_answer_that_is_no_http_ends_the_connection() -> None:
    names = Names(a_test=["127.0.0.1"])
    broken = outside(b"\xff\xffnonsense\r\n\r\n")
    async with broken.running() as world, door_of(f"a.test:{world.port}", names=names) as door:
        assert await door.ask(get("a.test", world.port)) == b""


# --- TLS in a tunnel


def hello(name: str | None) -> bytes:
    context = ssl.create_default_context()
    context.check_hostname = False
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


def test_the_name_is_read_from_a_real_hello_however_it_is_cut() -> None:
    whole = hello("a.test")
    body = whole[5:]
    records = b"".join(b"\x16\x03\x01" + len(part).to_bytes(2) + part for part in (body[:1], body[1:50], body[50:]))

    assert server_name(whole) == server_name(records) == "a.test"
    assert server_name(hello(None)) == ""
    assert all(server_name(whole[:cut]) is None for cut in range(1, len(whole)))


HELLO = hello("a.test")


@given(st.binary(max_size=400), st.integers(0, 200))
def test_a_hello_of_any_bytes_is_a_name_or_none(data: bytes, at: int) -> None:
    for text in (data, b"\x16\x03\x01" + data, HELLO[:at] + data):
        with contextlib.suppress(NotTls):
            server_name(text)


@pytest.mark.parametrize("asked", ["b.test", None, "a.test.evil.test"])
async def test_tls_for_another_name_than_the_tunnels_is_ended_with_an_alert(
    asked: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with outside().running() as world:
        monkeypatch.setattr("kernelpool.egress.proxy.TLS_PORT", world.port)
        async with door_of(f"a.test:{world.port}", names=Names(a_test=["127.0.0.1"])) as door:
            answer = await door.ask(connect("a.test", world.port) + hello(asked))
            await door.until(lambda: any(decision.over for decision in door.told))

    assert answer.endswith(b"\r\n\r\n\x15\x03\x03\x00\x02\x02\x70")
    assert world.heard == []
    assert door.outcomes == ["allowed", "refused_tls"]


async def test_tls_for_the_tunnels_own_name_goes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    server, client = certificates("a.test")
    async with outside(tls=server).running() as world:
        monkeypatch.setattr("kernelpool.egress.proxy.TLS_PORT", world.port)
        async with door_of(f"a.test:{world.port}", names=Names(a_test=["127.0.0.1"])) as door:
            reader, writer = await door.connect()
            writer.write(connect("a.test", world.port))
            await reader.readuntil(b"\r\n\r\n")
            await writer.start_tls(client, server_hostname="a.test")
            writer.write(b"GET / HTTP/1.1\r\n\r\n")
            answer = await reader.readuntil(b"hi")
            writer.close()

    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert world.heard[0].startswith(b"GET / HTTP/1.1")


async def test_what_is_no_tls_does_not_pass_at_the_port_of_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    async with outside().running() as world:
        monkeypatch.setattr("kernelpool.egress.proxy.TLS_PORT", world.port)
        async with door_of(f"a.test:{world.port}", names=Names(a_test=["127.0.0.1"])) as door:
            await door.ask(connect("a.test", world.port) + b"GET / HTTP/1.1\r\n\r\n")

    assert world.heard == []
    assert door.outcomes == ["allowed", "refused_tls"]


# --- limits


@pytest.mark.parametrize("words", [b"", b"GET http://a.te", connect("a.test", 80)[:-2]])
async def test_a_head_that_does_not_come_is_waited_for_so_long_and_no_longer(words: bytes) -> None:
    async with door_of("a.test", limits=ProxyLimits(head=0.3)) as door:
        assert (await door.ask(words)).startswith(b"HTTP/1.1 408 ")


async def test_a_tunnel_in_which_nothing_moves_is_ended() -> None:
    limits, names = ProxyLimits(flow=FlowLimits(idle=0.4)), Names(a_test=["127.0.0.1"])
    async with outside().running() as world, door_of(f"a.test:{world.port}", names=names, limits=limits) as door:
        assert await door.ask(connect("a.test", world.port)) == b"HTTP/1.1 200 Connection established\r\n\r\n"
        await door.until(lambda: door.told[-1].over)


async def test_a_connection_that_moves_more_than_the_limit_is_ended() -> None:
    limits, names = ProxyLimits(flow=FlowLimits(size=1000)), Names(a_test=["127.0.0.1"])
    large = outside(b"x" * 100_000)
    async with large.running() as world, door_of(f"a.test:{world.port}", names=names, limits=limits) as door:
        answer = await door.ask(connect("a.test", world.port) + b"GET / HTTP/1.1\r\n\r\n")

    assert len(answer) < 100_000


async def test_half_of_a_tunnel_may_end_and_the_other_half_goes_on() -> None:
    names, large = Names(a_test=["127.0.0.1"]), outside(b"x" * 3_000_000)
    async with large.running() as world, door_of(f"a.test:{world.port}", names=names) as door:
        answer = await door.ask(connect("a.test", world.port) + b"GET / HTTP/1.1\r\n\r\n", end=True)
        await door.until(lambda: door.told[-1].over)

    assert len(answer) == 3_000_000 + len(b"HTTP/1.1 200 Connection established\r\n\r\n")
    assert door.told[-1].received == 3_000_000


async def test_the_end_of_what_one_side_says_is_heard_by_the_other() -> None:
    names, patient = Names(a_test=["127.0.0.1"]), Outside(b"all of it", None, after_end=True)
    async with patient.running() as world, door_of(f"a.test:{world.port}", names=names) as door:
        answer = await door.ask(connect("a.test", world.port) + b"GET / HTTP/1.1\r\n\r\nmore", end=True)

    assert answer.endswith(b"all of it")
    assert world.heard[0].endswith(b"more")


async def test_more_connections_than_allowed_wait_their_turn() -> None:
    async with door_of("a.test", limits=ProxyLimits(connections=2)) as door:
        held = [await door.connect() for _ in range(2)]
        third = asyncio.create_task(door.ask(connect("b.test", 80)))
        done, _ = await asyncio.wait([third], timeout=0.2)
        assert not done
        held[0][1].close()

        assert (await third).startswith(b"HTTP/1.1 403 ")
        held[1][1].close()


async def test_no_sandbox_may_have_more_connections_than_are_left_for_others() -> None:
    async with door_of("a.test", limits=ProxyLimits(total=3)) as door:
        _, held = await door.connect()
        answer = await door.ask(connect("b.test", 80))
        held.close()

    assert answer.startswith(b"HTTP/1.1 503 the proxy has too many connections")
    assert door.outcomes == ["busy"]


# --- what is told


@pytest.mark.usefixtures("virtual_clock")
async def test_a_flood_of_decisions_is_counted_and_not_told() -> None:
    told: list[Decision] = []

    def send(decision: Decision) -> bool:
        told.append(decision)
        return True

    ledger = Ledger(send)
    one = Decision("box", Outcome.REFUSED_NAME, "b.test", 443)
    for _ in range(1000):
        ledger.tell(one)
        ledger.tell(replace(one, over=True))
    async with asyncio.timeout(30):
        while not any(decision.untold for decision in told):
            await asyncio.sleep(0.005)

    assert len(told) < 70
    assert sum(decision.count for decision in told if not decision.over) == 1000


@given(
    st.builds(
        Decision,
        st.text(max_size=12),
        st.sampled_from(Outcome),
        st.text(max_size=253),
        st.integers(0, 65535),
        sent=st.integers(0, 1 << 40),
        seconds=st.floats(0, 1e9),
        over=st.booleans(),
    )
)
def test_a_decision_that_was_sent_is_read_again(decision: Decision) -> None:
    assert Decision.from_json(decision.to_json()) == decision


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"null", b"[]", b"{}", b'{"sandbox": "a", "outcome": "odd"}', b'{"sandbox": 1, "outcome": "allowed"}'),
        *(b'{"sandbox": "a", "outcome": "allowed", "count": -1}', b'{"sandbox": "a", "outcome": "allowed", "x": 1}'),
        *(b'{"sandbox": "a", "outcome": "allowed", "seconds": NaN}', b"\xff", b'{"sandbox": "a", "outcome": []}'),
        b'{"sandbox": "a", "outcome": "allowed", "host": "' + b"x" * 301 + b'"}',
    ],
)
def test_what_a_sound_proxy_does_not_say_is_not_read(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whatever it says
        Decision.from_json(data)
