"""An OpenID Connect issuer of the tests' own: a real server on a real socket, with keys that rotate."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import cache
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import jwt
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID

AUDIENCE = "https://dynamicsessions.io"
PRIVATE = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


@cache
def private_key(name: str) -> PRIVATE:
    """Made once a name: RSA's take a while. Names that begin with "ec" are of an elliptic curve."""
    if name.startswith("ec"):
        return ec.generate_private_key(ec.SECP256R1())
    return rsa.generate_private_key(public_exponent=65537, key_size=1024 if name.startswith("weak") else 2048)


def jwk(kid: str, name: str, **more: Any) -> dict[str, Any]:
    public = private_key(name).public_key()
    algorithm: Any = jwt.get_algorithm_by_name("ES256" if name.startswith("ec") else "RS256")
    return {**json.loads(algorithm.to_jwk(public)), "kid": kid, "use": "sig", **more}


def pem(name: str) -> bytes:
    return private_key(name).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def encoded(value: Any) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Issuer:
    """What it publishes, and how it misbehaves, is public."""

    def __init__(self) -> None:
        self.url = ""
        self.keys: list[Any] = [jwk("first", "one")]
        self.answer: tuple[int, bytes, dict[str, str]] | None = None
        """Status, body and headers, instead of the keys."""
        self.discovery: dict[str, Any] = {}
        """Over what the document would say."""
        self.is_hanging = False
        self.asked = 0
        """How often for its keys."""
        self.changed = asyncio.Condition()

    async def wait_asked(self, times: int) -> None:
        async with asyncio.timeout(30), self.changed:
            await self.changed.wait_for(lambda: self.asked >= times)

    def claims(self, **changes: Any) -> dict[str, Any]:
        """Those of a good token; None leaves one out."""
        now = int(time.time())
        good = {
            "iss": self.url,
            "aud": AUDIENCE,
            "sub": "alice",
            "exp": now + 600,
            "nbf": now,
            "iat": now,
            "tid": "acme",
        }
        return {name: value for name, value in {**good, "roles": ["run"], **changes}.items() if value is not None}

    def token(
        self,
        *,
        kid: str | None = "first",
        key: str = "one",
        alg: str = "RS256",
        header: dict[str, Any] | None = None,
        **changes: Any,
    ) -> str:
        headers = {**({} if kid is None else {"kid": kid}), **(header or {})}
        return jwt.encode(self.claims(**changes), private_key(key), algorithm=alg, headers=headers)

    async def _serve_discovery(self, request: web.Request) -> web.Response:
        return web.json_response({"issuer": self.url, "jwks_uri": f"{self.url}/keys", **self.discovery})

    async def _serve_keys(self, request: web.Request) -> web.Response:
        self.asked += 1
        async with self.changed:
            self.changed.notify_all()
        if self.is_hanging:
            await asyncio.Event().wait()
        if self.answer is not None:
            status, body, headers = self.answer
            return web.Response(status=status, body=body, headers=headers)
        return web.json_response({"keys": self.keys})


def self_signed(folder: Path) -> ssl.SSLContext:
    """For 127.0.0.1, by nobody whom anybody trusts."""
    key, now = private_key("ec-tls"), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(1)).not_valid_after(now + timedelta(1))
    address = x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))])
    certificate = builder.add_extension(address, critical=False).sign(key, hashes.SHA256())
    file = folder / "tls.pem"
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    file.write_bytes(private + certificate.public_bytes(Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context


@asynccontextmanager
async def issuer_of(tls: ssl.SSLContext | None = None) -> AsyncIterator[Issuer]:
    issuer = Issuer()
    app = web.Application()
    app.router.add_get("/.well-known/openid-configuration", issuer._serve_discovery)
    app.router.add_get("/keys", issuer._serve_keys)
    runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
        await site.start()
        issuer.url = f"{'https' if tls else 'http'}://127.0.0.1:{runner.addresses[0][1]}"
        yield issuer
    finally:
        await runner.cleanup()
