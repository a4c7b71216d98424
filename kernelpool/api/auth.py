"""The credential in a request's headers. Who sends it is decided in `kernelpool.auth`."""

from __future__ import annotations

from collections.abc import Sequence

from kernelpool.errors import Unauthorized


def bearer_token(authorization: Sequence[str]) -> str:
    """`authorization` holds every header of that name. Raises `Unauthorized`, saying what is missing."""
    if not authorization:
        raise Unauthorized("The request has no Authorization header.")
    # Two headers: which one did the proxy in front of us look at? Neither counts.
    if len(authorization) > 1:
        raise Unauthorized("The request has more than one Authorization header.")
    scheme, _, token = authorization[0].partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token:
        raise Unauthorized("The Authorization header is not 'Bearer <token>'.")
    return token
