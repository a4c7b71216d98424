"""The composition root: builds everything from the settings, runs it, drains it.

Shutdown is the stack unwinding. SIGTERM or SIGINT: not ready any more, no new work (503), callers who wait are served
for `drain_seconds`, connections are closed. Sessions and ready sandboxes stay alive for the next start, and end
themselves when none comes: sessions at their cooldown, ready ones at their lease. `stop_sessions` destroys them
instead. A second signal ends the waiting.

What remains on disk after that: the state directory, with runtime trees, the token's hash and, for sessions that were
kept, their records.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from ipaddress import ip_network
from pathlib import Path

from kernelpool.agents import Connect, connect
from kernelpool.api import make_application
from kernelpool.api.application import EdgeApplication
from kernelpool.api.base import Collaborators
from kernelpool.api.edge import EdgePolicy, allowed_hosts
from kernelpool.api.http_server import EdgeServer, make_server
from kernelpool.api.listener import Crowd, raise_file_limit
from kernelpool.api.mcp.endpoint import Endpoint
from kernelpool.api.tls import Certificates
from kernelpool.auth.authenticator import Authenticator
from kernelpool.auth.initial import digest_of, load_or_make_token
from kernelpool.auth.keyring import KeyRing
from kernelpool.auth.oidc import Issuers
from kernelpool.auth.pool_keys import PoolKeys
from kernelpool.backends import BACKENDS
from kernelpool.backends.base import Finding, Say
from kernelpool.config import Settings
from kernelpool.egress.doors import Doors
from kernelpool.errors import KernelpoolError, StartFailed, StateDirectoryInUse
from kernelpool.gateway import Gateway
from kernelpool.journal import Journal
from kernelpool.management import Management
from kernelpool.network import LOOPBACK_HOSTS, WILDCARD_ADDRESSES
from kernelpool.pool.settings import PoolSettings
from kernelpool.pool.store import PoolStore
from kernelpool.quotas import Quotas
from kernelpool.scratch import backends_of, has_leftovers, in_scratch, scratch_folders
from kernelpool.sources import Sources
from kernelpool.telemetry import Telemetry
from kernelpool.telemetry.audit import Audit, AuditLog, Unaudited
from kernelpool.telemetry.lag import LoopLag
from kernelpool.telemetry.metrics import CollectorRegistry, Metrics
from kernelpool.telemetry.otlp import open_tracing

log = logging.getLogger(__name__)

BACKLOG = 1024
GOODBYE_SECONDS = 5.0
"""How long WebSocket clients may take to answer the close that they were sent."""


class Stop:
    """What the signals say: the first one, to drain; the second, to be quick about it."""

    def __init__(self) -> None:
        self.wanted = asyncio.Event()
        self.now = asyncio.Event()

    def __call__(self) -> None:
        (self.now if self.wanted.is_set() else self.wanted).set()

    def listen(self) -> None:
        """From now on signals come here."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self)


async def serve(
    settings: Settings,
    say: Say,
    stop: Stop,
    connect: Connect = connect,
    announce: Callable[[str], None] | None = None,
) -> None:
    """Runs a gateway until `stop` says so. Raises `KernelpoolError` when it cannot start, saying what to do. `announce`
    gets its URL when it serves, in the place of the lines that greet an operator."""
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(state_directory(settings.state_dir))
        # Before anything slow: a port that is taken is told at once.
        listener = await stack.enter_async_context(_listening(settings.host, settings.port))
        certificates = await _certificates(stack, settings)
        metrics = Metrics(CollectorRegistry())
        telemetry = await _open_telemetry(stack, settings, metrics)
        doors = await stack.enter_async_context(Doors(telemetry))
        sources = await stack.enter_async_context(
            Sources(settings.state_dir, say, settings.backends, doors, allow_insecure=settings.allow_insecure)
        )
        store = PoolStore(settings.state_dir)
        pools = await _pools(settings, store, say)
        made = [await sources.make(pool) for pool in pools.values()]
        journal = await stack.enter_async_context(Journal(settings.state_dir))
        gateway = await stack.enter_async_context(
            Gateway(made, connect, journal, Quotas(settings.tenants), telemetry=telemetry)
        )
        doors.session_of = gateway.session_in
        management = await stack.enter_async_context(
            Management(gateway, sources.make, store, settings.pools, settings.max_pools, telemetry.audit)
        )
        keys = await stack.enter_async_context(KeyRing(settings.state_dir))
        issuers = await stack.enter_async_context(Issuers(settings.oidc))
        pool_keys = await asyncio.to_thread(PoolKeys.load, settings.state_dir)
        management.on_deleted = pool_keys.renew
        mcp = await stack.enter_async_context(Endpoint())
        # Last, so that no start that fails makes a token which nobody is shown.
        digest, token = await asyncio.to_thread(_token, settings)
        collaborators = Collaborators(
            gateway,
            Authenticator(digest, keys, issuers, pool_keys),
            management,
            max_body=settings.max_body,
            telemetry=telemetry,
            edge=_edge(settings),
            mcp=mcp,
        )
        application = make_application(
            collaborators, lambda: not stop.wanted.is_set(), metrics, metrics_public=settings.metrics_public
        )
        server = _server(settings, application, collaborators, certificates)
        server.add_socket(listener)
        stop.listen()
        port = listener.getsockname()[1]
        if announce is None:
            _greet(settings, port, token, say)
        else:
            announce(f"http://{settings.host}:{port}")
        await stop.wanted.wait()
        say("Stopping: waiting for what is being answered. Press Ctrl-C again not to.")
        await _drain(settings, collaborators, server, stop)
        if settings.stop_sessions:
            await gateway.aclose(discard=True)
        else:
            say("Sessions stay alive for the next start, until their cooldown. `kernelpool cleanup` destroys them.")


async def _certificates(stack: AsyncExitStack, settings: Settings) -> Certificates | None:
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    certificates = Certificates(settings.tls_certificate, settings.tls_key)
    await stack.enter_async_context(certificates.watched())
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, certificates.reload)
    stack.callback(loop.remove_signal_handler, signal.SIGHUP)
    return certificates


def _edge(settings: Settings) -> EdgePolicy:
    return EdgePolicy(
        hosts=allowed_hosts(settings.host, settings.allowed_hosts),
        origins=settings.allowed_origins,
        hsts=settings.tls_certificate is not None,
    )


def _server(
    settings: Settings, application: EdgeApplication, collaborators: Collaborators, certificates: Certificates | None
) -> EdgeServer:
    trusted = [ip_network(network) for network in settings.trusted_proxies]
    # The other half is for agents and files: running out of those would look like broken sandboxes.
    most = min(settings.max_connections, raise_file_limit() // 2)
    if most < settings.max_connections:
        log.warning("fewer connections than max_connections", extra={"limit": most, "why": "RLIMIT_NOFILE"})
    return make_server(
        application,
        max_body=settings.max_body,
        idle_timeout=settings.idle_timeout,
        body_timeout=settings.body_timeout,
        crowd=Crowd(most, settings.max_connections_per_client, trusted),
        trusted=trusted,
        tls=certificates,
    )


async def doctor(settings: Settings, say: Say) -> dict[str, list[Finding]]:
    """What the sandboxes of each pool promise here, by the name of the pool, whether or not a gateway runs."""
    pools = await _pools(settings, PoolStore(settings.state_dir), say)

    async def check(settings: Settings) -> dict[str, list[Finding]]:
        async with state_directory(settings.state_dir), Sources(settings.state_dir, say, settings.backends) as sources:
            return {name: list(await sources.check(pool)) for name, pool in pools.items()}

    return await in_scratch(settings, check)


async def serve_command(
    settings: Settings,
    say: Say,
    stop: Stop,
    connect: Connect = connect,
    announce: Callable[[str], None] | None = None,
) -> None:
    """As `serve`, beside whatever other gateways there are, for as long as a command needs one: it finds nothing of
    those before it, and leaves nothing."""

    try:
        await _clear_scratch(settings, lambda text: None)
    except KernelpoolError as error:
        log.warning("what a killed command left is there still", extra={"error": error.message})
    settings = settings.model_copy(update={"stop_sessions": True})
    await in_scratch(settings, lambda scratch: serve(scratch, say, stop, connect, announce))


async def cleanup(settings: Settings, say: Say) -> int:
    """Destroys every sandbox of the state directory, whatever is in it, and forgets all sessions; what commands left
    that were killed, too. Returns how many."""
    return await _clear_scratch(settings, say) + await _clear(settings, say)


async def _clear_scratch(settings: Settings, say: Say) -> int:
    """What killed commands left. Those that run keep what they have."""
    count = 0
    for folder in await asyncio.to_thread(scratch_folders, settings.state_dir):
        if await asyncio.to_thread(has_leftovers, folder):
            with suppress(StateDirectoryInUse):
                count += await _clear(settings.model_copy(update={"state_dir": folder}), say)
    return count


async def _clear(settings: Settings, say: Say) -> int:
    """Raises `StartFailed` when the backend of a sandbox there does not answer, or a gateway runs there."""
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(state_directory(settings.state_dir))
        sources = await stack.enter_async_context(Sources(settings.state_dir, say, settings.backends))
        pools = await _pools(settings, PoolStore(settings.state_dir), say)
        # The settings may name other backends by now than those that have sandboxes there.
        left = await asyncio.to_thread(backends_of, settings.state_dir)
        names = {pool.backend for pool in pools.values()} | (left & {*BACKENDS})
        backends = {name: await sources.open(PoolSettings(name="left", backend=name)) for name in sorted(names)}
        journal = await stack.enter_async_context(Journal(settings.state_dir))
        # Sandboxes first: one without a record counts as never used.
        sandboxes = [sandbox for backend in backends.values() for sandbox in await backend.adopt()]
        for sandbox in sandboxes:
            say(f"destroying sandbox {sandbox.id} of pool {sandbox.pool}")
            await sandbox.destroy()
        contents = await journal.load()
        for id in contents.records.keys() | contents.corrupt:
            await journal.remove(id)
        return len(sandboxes)


async def _open_telemetry(stack: AsyncExitStack, settings: Settings, metrics: Metrics) -> Telemetry:
    tracing = await stack.enter_async_context(open_tracing(settings.otlp_endpoint, os.environ))
    audit: Audit = Unaudited()
    if settings.audit_log is not None:
        kept = AuditLog(settings.audit_log, metrics, with_code=settings.audit_code)
        audit = await stack.enter_async_context(kept)
    await stack.enter_async_context(LoopLag(metrics))
    return Telemetry(metrics, tracing, audit)


@asynccontextmanager
async def state_directory(path: Path) -> AsyncIterator[None]:
    """Made when it is not there, and held for one gateway. Raises `StartFailed`."""
    lock = await asyncio.to_thread(_lock, path)
    try:
        yield
    finally:
        os.close(lock)


def _lock(path: Path) -> int:
    try:
        # Others may pass through, to what is meant for sandboxes; they may not look around.
        path.mkdir(mode=0o711, parents=True, exist_ok=True)
        lock = os.open(path / "gateway.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise StartFailed(f"the state directory {path} cannot be used: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise StateDirectoryInUse(
            f"another gateway is using the state directory {path}; stop it, or give another --state-dir"
        ) from None
    return lock


@asynccontextmanager
async def _listening(host: str, port: int) -> AsyncIterator[socket.socket]:
    try:
        listener = await asyncio.to_thread(_listen, host, port)
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        raise StartFailed(f"cannot listen on {host}:{port}: {why}; give another --host or --port") from error
    with listener:
        yield listener


def _listen(host: str, port: int) -> socket.socket:
    is_six = ":" in host
    family = socket.AF_INET6 if is_six else socket.AF_INET
    both = host == "::" and socket.has_dualstack_ipv6()
    listener = socket.create_server((host, port), family=family, backlog=BACKLOG, dualstack_ipv6=both)
    listener.setblocking(False)
    return listener


def _token(settings: Settings) -> tuple[bytes, str | None]:
    """What to compare with, and the token itself when it has just been made."""
    if settings.token is not None:
        return digest_of(settings.token.get_secret_value()), None
    try:
        return load_or_make_token(settings.state_dir)
    except (OSError, ValueError) as error:
        raise StartFailed(f"the token's hash in {settings.state_dir} cannot be used: {error}") from error


async def _pools(settings: Settings, store: PoolStore, say: Say) -> dict[str, PoolSettings]:
    """Those of the settings, and over them those that were made or changed while an earlier gateway ran."""
    stored = await asyncio.to_thread(store.load)
    for name in sorted(stored.keys() & settings.pools.keys()):
        if stored[name] != settings.pools[name]:
            path = settings.state_dir / "pools" / f"{name}.json"
            say(f"pool {name}: has settings that it was given while a gateway ran; remove {path} to drop them.")
    return settings.pools | stored


async def _drain(settings: Settings, collaborators: Collaborators, server: EdgeServer, stop: Stop) -> None:
    """Who waits for an execution first, then WebSockets, transfers and streams; together no longer than was said."""
    loop = asyncio.get_running_loop()
    collaborators.works.draining = True
    server.drain()
    ends_at = loop.time() + settings.drain_seconds

    async def finish() -> None:
        await collaborators.gateway.drain(settings.drain_seconds)
        await collaborators.management.wait_idle(max(0.0, ends_at - loop.time()))
        await collaborators.sockets.close_all(min(GOODBYE_SECONDS, max(0.0, ends_at - loop.time())))
        await collaborators.works.wait_idle(max(0.0, ends_at - loop.time()))

    drained, hurried = asyncio.create_task(finish()), asyncio.create_task(stop.now.wait())
    try:
        await asyncio.wait((drained, hurried), return_when=asyncio.FIRST_COMPLETED)
    finally:
        drained.cancel()
        hurried.cancel()
    if len(collaborators.works):
        log.warning("requests left unanswered", extra={"count": len(collaborators.works)})
    server.stop()
    await server.close_all_connections()


def _greet(settings: Settings, port: int, token: str | None, say: Say) -> None:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    host = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)  # noqa: S104 - compared, not bound
    pool = next(iter(settings.pools))
    scheme = "https" if settings.tls_certificate else "http"
    endpoint = f"{scheme}://{host}:{port}/pools/{pool}"
    say(f"\nPool management endpoint: {endpoint}")
    if settings.host in WILDCARD_ADDRESSES and not settings.allowed_hosts:
        say("Other machines are refused (421) until allowed_hosts names what they call this one.")
    if settings.host not in LOOPBACK_HOSTS and not settings.tls_certificate and not settings.trusted_proxies:
        say("Warning: without TLS (tls_certificate, or a proxy in trusted_proxies) tokens travel in the clear.")
    if token is not None:
        say(f"Token (shown only now):   {token}")
    elif settings.token is not None:
        say("Token: the setting `token`, which may stand in KERNELPOOL_TOKEN.")
    else:
        say(f"Token: as printed at the first start. Delete {settings.state_dir}/token.sha256 to get a new one.")
    say("Try it:\n")
    say(
        f"curl '{endpoint}/executions?api-version=2025-10-02-preview&identifier=demo-1' "
        f'-H "Authorization: Bearer {token or "$TOKEN"}" '
        "-H 'Content-Type: application/json' -d '{\"code\": \"1 + 1\"}'\n"
    )
