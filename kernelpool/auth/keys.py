"""API keys on disk: made, listed and revoked by the command line, while a gateway runs or not. Blocks.

A key is `kp_<id>_<secret>`. `<state>/keys/<id>.json` holds what it may do and the SHA-256 of the secret, which is 256
random bits: there is nothing for a slow hash to protect. Files are made and removed, never changed. A key has no
capital letters, since a Jupyter client may send it in a path that it turns to lower case; older ones are good still.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

from kernelpool.auth.principal import DEFAULT_TENANT, Principal, Role
from kernelpool.errors import Conflict, InvalidRequest, NotFound, StartFailed

PREFIX: Final = "kp_"
FOLDER: Final = "keys"
MAX_KEYS: Final = 10_000
_MAX_RECORD_BYTES = 64 << 10
_LOCK_SECONDS = 10.0
_ID = re.compile(r"[0-9a-f]{12}")
_KEY = re.compile(r"kp_([0-9a-f]{12})_([0-9a-f]{64}|[A-Za-z0-9_-]{43})", re.ASCII)
_Tenant = Annotated[str, Field(pattern=r"^[A-Za-z0-9._:@/+-]{1,256}$")]


class KeyRecord(BaseModel):
    """A key as it is on disk: all but its secret."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern=r"^[0-9a-f]{12}$")
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    tenant: _Tenant = DEFAULT_TENANT
    roles: frozenset[Role] = Field(frozenset({Role.EXECUTOR}), min_length=1)
    pools: frozenset[str] | None = Field(None, min_length=1)
    created_at: float = Field(gt=0, allow_inf_nan=False)
    expires_at: float | None = Field(None, gt=0, allow_inf_nan=False)
    digest: str = Field(pattern=r"^[0-9a-f]{64}$", repr=False)
    """SHA-256 of the secret, in hexadecimal."""

    @property
    def principal(self) -> Principal:
        return Principal(f"key:{self.name}", self.tenant, self.roles, self.pools)

    def is_expired(self, now: float) -> bool:
        return self.expires_at is not None and self.expires_at <= now


@dataclass(frozen=True, slots=True)
class Contents:
    """What was found on disk."""

    records: dict[str, KeyRecord] = field(default_factory=dict)
    """By id."""
    corrupt: frozenset[str] = frozenset()
    """Files that could not be read. Whoever has such a key is a stranger; the other keys are not touched by it."""


def split_key(text: str) -> tuple[str, bytes]:
    """The id and the digest of the secret; of what is no key, an id that nobody has."""
    match = _KEY.fullmatch(text)
    id, secret = match.groups() if match else ("", text)
    return id, hashlib.sha256(secret.encode(errors="surrogateescape")).digest()


class KeyStore:
    """`<state>/keys`. Needs no lock on the state directory, which a running gateway holds."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._folder = state / FOLDER

    @property
    def folder(self) -> Path:
        return self._folder

    def create(
        self,
        name: str,
        *,
        tenant: str = DEFAULT_TENANT,
        roles: frozenset[Role] = frozenset({Role.EXECUTOR}),
        pools: frozenset[str] | None = None,
        seconds: float | None = None,
    ) -> tuple[KeyRecord, str]:
        """The key's text is returned this once. Raises `Conflict` when the name is taken; a `ValidationError` names
        what is not allowed."""
        id, secret, now = secrets.token_hex(6), secrets.token_hex(32), time.time()
        if _ID.fullmatch(name):
            raise InvalidRequest(f"'{name}' looks like the id of a key; choose another name")
        record = KeyRecord(
            id=id,
            name=name,
            tenant=tenant,
            roles=roles,
            pools=pools,
            created_at=now,
            expires_at=None if seconds is None else now + seconds,
            digest=hashlib.sha256(secret.encode()).hexdigest(),
        )
        with self._locked():
            there = self.load().records
            if any(other.name == name for other in there.values()):
                raise Conflict(f"there is a key '{name}' already; revoke it first, or choose another name")
            if len(there) >= MAX_KEYS:
                raise Conflict(f"there are {len(there)} keys already, and no more than {MAX_KEYS} may be")
            self._write(record)
        return record, f"{PREFIX}{id}_{secret}"

    def revoke(self, id_or_name: str) -> KeyRecord:
        """Raises `NotFound`."""
        with self._locked():
            for record in self.load().records.values():
                if id_or_name in (record.id, record.name):
                    (self._folder / f"{record.id}.json").unlink()
                    _sync(self._folder)
                    return record
        raise NotFound(f"there is no key '{id_or_name}'")

    def load(self) -> Contents:
        """Raises `OSError` when the folder itself cannot be read; one that is not there holds no keys."""
        records: dict[str, KeyRecord] = {}
        corrupt: set[str] = set()
        try:
            names = sorted(os.listdir(self._folder))
        except FileNotFoundError:
            return Contents()
        for name in names[:MAX_KEYS]:
            id, suffix = os.path.splitext(name)
            if suffix != ".json" or not _ID.fullmatch(id):
                continue
            try:
                records[id] = _read(self._folder / name, id)
            except FileNotFoundError:
                continue  # revoked since the folder was listed
            except (OSError, ValueError):
                corrupt.add(name)
        return Contents(records, frozenset(corrupt))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One command at a time. Raises `StartFailed` when the folder cannot be used."""
        try:
            self._make_folder()
            descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise StartFailed(f"the folder {self._folder} cannot be used: {error.strerror}") from error
        try:
            _lock(descriptor)
            yield
        finally:
            os.close(descriptor)

    def _make_folder(self) -> None:
        self._state.mkdir(mode=0o711, parents=True, exist_ok=True)
        owner = self._state.stat().st_uid
        if owner != os.geteuid():  # the gateway could not read what is written here
            raise StartFailed(
                f"the state directory {self._state} belongs to uid {owner}; run this command as that user"
            )
        self._folder.mkdir(mode=0o700, exist_ok=True)

    def _write(self, record: KeyRecord) -> None:
        path = self._folder / f"{record.id}.json"
        scratch = path.with_suffix(".new")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(scratch, flags, 0o600), "wb") as file:
            file.write(record.model_dump_json().encode())
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
        _sync(self._folder)


def _read(path: Path, id: str) -> KeyRecord:
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        facts = os.fstat(file.fileno())
        if not stat.S_ISREG(facts.st_mode) or facts.st_size > _MAX_RECORD_BYTES:
            raise ValueError("not a file of a key's size")
        record = KeyRecord.model_validate_json(file.read())
    if record.id != id:
        raise ValueError("record of another key")
    return record


def _sync(folder: Path) -> None:
    """A revocation must not come back with the power."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    ends_at = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > ends_at:
                raise StartFailed("another `kernelpool keys` is at work on this state directory") from None
            time.sleep(0.05)
        else:
            return
