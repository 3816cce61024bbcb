"""Who may talk to the HTTP server: host names it answers to, and the bearer token."""

import hmac
import ipaddress
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from mcp.server.transport_security import TransportSecuritySettings
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from pathsynth.errors import PathSynthError

TOKEN_VARIABLE = "PATHSYNTH_TOKEN"
MIN_TOKEN_LENGTH = 16

_MAX_TOKEN_FILE_BYTES = 4096
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # RFC 6750: what an Authorization header can carry
_LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(:[0-9]{1,5})?")


class AccessError(PathSynthError):
    """The token or an allowed host cannot be used."""


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server bound to `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def read_token(file: Path | None, environment: Mapping[str, str]) -> str | None:
    """The bearer token of `file`, else of PATHSYNTH_TOKEN, else None.

    Raises:
        AccessError: the file cannot be read, or the token is too short or unfit for a header.
    """
    if file is not None:
        source = "the token file"
        try:
            with file.open("rb") as opened:
                token = opened.read(_MAX_TOKEN_FILE_BYTES).decode("utf-8", errors="replace").strip()
        except OSError as error:
            raise AccessError(
                f"The token file {file} cannot be read ({error.strerror or error}); check --token-file."
            ) from error
    elif TOKEN_VARIABLE in environment:
        source = TOKEN_VARIABLE
        token = environment[TOKEN_VARIABLE].strip()
    else:
        return None
    # An empty token is refused as well: a variable that was meant to hold one must not open the server.
    if len(token) < MIN_TOKEN_LENGTH:
        raise AccessError(
            f"The token in {source} has {len(token)} characters; it needs at least {MIN_TOKEN_LENGTH}."
        )
    if _TOKEN.fullmatch(token) is None:
        raise AccessError(f"The token in {source} may hold only letters, digits and the characters -._~+/=.")
    return token


def transport_security(host: str, allowed: Sequence[str] = ()) -> TransportSecuritySettings:
    """The `Host` and `Origin` headers that are answered, against DNS rebinding: those of this machine, of the
    address `host` that the server is bound to, and of every name in `allowed`, with any port unless it names
    one.

    Raises:
        AccessError: a name in `allowed` is not a host or host:port.
    """
    names = [*_LOOPBACK_NAMES]
    # 0.0.0.0 and :: are where to listen, not what a client calls the server; browsers that take 0.0.0.0 for
    # this machine are one of the attacks.
    if host and not _is_unspecified(host):
        names.append(f"[{host}]" if ":" in host else host.lower())
    hosts = [form for name in names for form in (name, f"{name}:*")]
    for name in allowed:
        match = _HOST.fullmatch(name)
        if match is None:
            raise AccessError(
                f"--allowed-host {name} is no host name; give one like tiles.example or tiles.example:8765."
            )
        hosts += [name.lower()] if match[2] else [name.lower(), f"{name.lower()}:*"]
    return TransportSecuritySettings(
        enable_dns_rebinding_protection=True,
        allowed_hosts=hosts,
        allowed_origins=[f"{scheme}://{name}" for scheme in ("http", "https") for name in hosts],
    )


def _is_unspecified(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


class BearerGate:
    """ASGI middleware that answers 401 to every HTTP request without the token, except to `open_paths`."""

    def __init__(self, app: ASGIApp, token: str, open_paths: frozenset[str] = frozenset()) -> None:
        self._app = app
        self._token = token.encode("ascii")
        self._open_paths = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope["path"] in self._open_paths:
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).getlist("authorization")
        if len(given) == 1 and self._is_valid(given[0]):
            await self._app(scope, receive, send)
            return
        challenge = 'Bearer error="invalid_token"' if given else "Bearer"
        refusal = PlainTextResponse(
            "This server needs the header `Authorization: Bearer TOKEN` with its token.\n",
            status_code=401,
            headers={"WWW-Authenticate": challenge},
        )
        await refusal(scope, receive, send)

    def _is_valid(self, header: str) -> bool:
        scheme, _, token = header.partition(" ")
        # Headers are latin-1; the comparison takes as long whatever the first wrong character is.
        is_token = hmac.compare_digest(token.strip().encode("latin-1"), self._token)
        return scheme.lower() == "bearer" and is_token
