"""Streamable HTTP: the SDK's app with host check, bearer token, `/healthz` and `/metrics`, under uvicorn.

Clients of the 2026 protocol need no session. Those of 2025 have one each, since over a connection of its own
nothing but a session tells whose call a cancellation means.
"""

import socket
from typing import Final

import uvicorn
from mcp.server import MCPServer
from mcp.server.transport_security import TransportSecurityMiddleware, TransportSecuritySettings
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from pathsynth import __version__
from pathsynth.studio import Studio
from server.access import BearerGate
from server.metrics import Metrics
from server.vanished import CancelWhenVanished
from tools.classify_image import MAX_IMAGE_CHARACTERS

MCP_PATH: Final = "/mcp"
HEALTH_PATH: Final = "/healthz"
METRICS_PATH: Final = "/metrics"

STOP_SECONDS: Final = 5
"""How long calls that run may go on after the server was told to stop; they are cancelled then."""

_KEEP_ALIVE_SECONDS: Final = 30
"""Longer than the 5 s after which common clients let an idle connection go: with uvicorn's own 5 s, both may
act at the same moment, and the next request fails."""

_MAX_SESSIONS: Final = 1000

_SESSION_IDLE_SECONDS: Final = 600
"""After which a session without any connection ends; its client is told to open another."""

_MAX_BODY_BYTES: Final = MAX_IMAGE_CHARACTERS + 65_536
"""The longest image that classify_image takes, and the envelope around it."""


def http_app(
    server: MCPServer,
    studio: Studio,
    metrics: Metrics,
    security: TransportSecuritySettings,
    token: str | None = None,
) -> ASGIApp:
    """The ASGI app: MCP at `/mcp`, figures at `/metrics`, liveness at `/healthz`.

    With a `token`, all but `/healthz` need it. `/healthz` answers under every host name too, since whoever
    watches over a container asks by its address; it tells no more than version and state of the weights.
    """

    async def healthz(request: Request) -> Response:
        return JSONResponse({"status": "ok", "version": __version__, "weights": studio.weights_state})

    async def exposition(request: Request) -> Response:
        refusal = await TransportSecurityMiddleware(security).validate_request(request)
        return refusal or Response(metrics.exposition(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    server.custom_route(HEALTH_PATH, methods=["GET"])(healthz)
    server.custom_route(METRICS_PATH, methods=["GET"])(exposition)
    app = server.streamable_http_app(
        streamable_http_path=MCP_PATH,
        max_sessions=_MAX_SESSIONS,
        session_idle_timeout=_SESSION_IDLE_SECONDS,
        max_request_body_size=_MAX_BODY_BYTES,
        transport_security=security,
    )
    app.add_exception_handler(ClientDisconnect, _unanswerable)
    watched = CancelWhenVanished(app)
    return watched if token is None else BearerGate(watched, token, frozenset({HEALTH_PATH}))


async def _unanswerable(request: Request, error: Exception) -> Response:
    """For a client that left before it had sent its request: nobody reads this, and the log keeps silent."""
    return Response(status_code=400)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes any free one. Raises OSError when it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=128)


def uvicorn_server(app: ASGIApp) -> uvicorn.Server:
    """uvicorn for `app`, to be run on the socket of `listen`; SIGTERM and SIGINT stop it within
    `STOP_SECONDS`."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            lifespan="on",
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=STOP_SECONDS,
        )
    )
