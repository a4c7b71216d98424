"""TLS by certificate files: real certificates of the test's own, renewed while connections are open."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trustme

from kernelpool.api.edge import EdgePolicy
from kernelpool.api.tls import Certificates
from kernelpool.config import Settings
from kernelpool.errors import InvalidRequest, StartFailed
from tests.api.conftest import Api, api_of
from tests.api.test_server import TOKEN, fake_backends, gateway_of, settings_of
from tests.api.test_slow_clients import QUICK

__all__ = ["fake_backends"]
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: sessions.test\r\nConnection: close\r\n\r\n"


class Files:
    """A certificate and its key, and the authority that one has to trust for it."""

    def __init__(self, folder: Path) -> None:
        self.certificate, self.key = folder / "tls.crt", folder / "tls.key"
        self.authority = trustme.CA()
        self.renew()

    def renew(self) -> None:
        leaf = self.authority.issue_cert("sessions.test", "127.0.0.1")
        leaf.private_key_pem.write_to_path(str(self.key))
        self.certificate.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))

    def client(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        return context


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@asynccontextmanager
async def tls_api(folder: Path, certificates: Certificates, **server: Any) -> AsyncIterator[Api]:
    edge = EdgePolicy(("sessions.test", "127.0.0.1"), hsts=True)
    async with (
        certificates.watched(0.05),
        api_of(folder / "journal", edge=edge, server={"tls": certificates, **server}) as served,
    ):
        yield served


@asynccontextmanager
async def connected(
    port: int, context: ssl.SSLContext
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="sessions.test")
    try:
        async with asyncio.timeout(60):
            yield reader, writer
    finally:
        writer.transport.abort()


async def serial(port: int, files: Files) -> str:
    async with connected(port, files.client()) as (_, writer):
        number: str = writer.get_extra_info("peercert")["serialNumber"]
        return number


async def test_a_client_that_trusts_the_certificate_is_served(tmp_path: Path, files: Files) -> None:
    async with tls_api(tmp_path, Certificates(files.certificate, files.key)) as api:
        context = files.client()
        context.set_alpn_protocols(["h2", "http/1.1"])
        async with connected(api.port, context) as (reader, writer):
            session = writer.get_extra_info("ssl_object")
            assert session.selected_alpn_protocol() == "http/1.1"
            assert session.version() in ("TLSv1.2", "TLSv1.3")
            writer.write(HEALTH)
            answer = await reader.read()

    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"Strict-Transport-Security: max-age=" in answer


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
async def test_old_versions_of_tls_are_refused(tmp_path: Path, files: Files) -> None:
    async with tls_api(tmp_path, Certificates(files.certificate, files.key)) as api:
        context = files.client()
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
        context.set_ciphers("DEFAULT@SECLEVEL=0")

        with pytest.raises((ssl.SSLError, ConnectionError)):
            async with connected(api.port, context):
                pass


@pytest.mark.parametrize("hello", [b"", b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/1.1\r\n\r\n"])
async def test_a_handshake_that_does_not_come_to_an_end_is_cut_off(tmp_path: Path, files: Files, hello: bytes) -> None:
    async with tls_api(tmp_path, Certificates(files.certificate, files.key), pace=QUICK) as api:
        with suppress(ConnectionResetError):
            assert b"200" not in await api.raw(hello)


async def test_a_renewed_certificate_is_used_for_new_connections_and_old_ones_live_on(
    tmp_path: Path, files: Files
) -> None:
    async with tls_api(tmp_path, Certificates(files.certificate, files.key)) as api:
        before = await serial(api.port, files)
        async with connected(api.port, files.client()) as (reader, writer):
            writer.write(HEALTH.replace(b"Connection: close\r\n", b""))
            await reader.readuntil(b'"alive"}')
            files.renew()
            async with asyncio.timeout(30):
                while await serial(api.port, files) == before:
                    await asyncio.sleep(0.01)
            writer.write(HEALTH)

            assert b" 200 " in await reader.read()


@pytest.mark.parametrize("broken", ["", "no certificate", "another's key"])
async def test_a_broken_file_leaves_the_old_certificate_and_is_told_of(
    tmp_path: Path, files: Files, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with tls_api(tmp_path, Certificates(files.certificate, files.key)) as api:
        before = await serial(api.port, files)
        if broken == "another's key":
            trustme.CA().issue_cert("x.test").private_key_pem.write_to_path(str(files.key))
        else:
            files.certificate.write_text(broken)
        async with asyncio.timeout(30):
            while "certificate not reloaded" not in caplog.text:
                await asyncio.sleep(0.01)

        assert await serial(api.port, files) == before
        files.renew()
        async with asyncio.timeout(30):
            while await serial(api.port, files) == before:
                await asyncio.sleep(0.01)


async def test_files_that_cannot_be_used_are_named_at_the_start(tmp_path: Path, files: Files) -> None:
    for break_ in (lambda: files.key.write_text("nonsense"), files.key.unlink):
        break_()
        with pytest.raises(StartFailed, match=r"tls\.key"):
            async with Certificates(files.certificate, files.key).watched():
                pass


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
async def test_an_encrypted_key_is_refused_without_asking_anybody(tmp_path: Path, files: Files) -> None:
    encrypted = tmp_path / "encrypted.key"
    command = ["openssl", "pkey", "-in", files.key, "-aes128", "-passout", "pass:secret", "-out", encrypted]
    process = await asyncio.create_subprocess_exec(*map(str, command))
    assert await process.wait() == 0

    with pytest.raises(StartFailed, match="encrypted"):
        async with Certificates(files.certificate, encrypted).watched():
            pass


def test_certificate_and_key_go_together(files: Files) -> None:
    with pytest.raises(InvalidRequest, match="together"):
        Settings.load(None, {}, {"tls_certificate": files.certificate})


async def test_a_gateway_with_a_certificate_says_https_and_reloads_on_sighup(tmp_path: Path, files: Files) -> None:
    tls: dict[str, Any] = {"tls_certificate": files.certificate, "tls_key": files.key}
    async with gateway_of(settings_of(tmp_path / "state", token=TOKEN, **tls)) as running:
        port = int(running.endpoint.split(":")[2].split("/")[0])
        before = await serial(port, files)
        files.renew()
        os.kill(os.getpid(), signal.SIGHUP)  # the files themselves are looked at every ten seconds
        async with asyncio.timeout(9):
            while await serial(port, files) == before:
                await asyncio.sleep(0.01)

    assert running.endpoint.startswith("https://127.0.0.1:")


async def test_a_client_that_connects_and_resets_harms_nobody(tmp_path: Path, files: Files) -> None:
    async with tls_api(tmp_path, Certificates(files.certificate, files.key)) as api:
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", api.port)) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

        assert await serial(api.port, files)
