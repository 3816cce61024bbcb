"""`pathsynth-mcp`: starts the MCP server."""

import argparse
import errno
import gc
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from pathsynth import __version__
from pathsynth.errors import PathSynthError
from pathsynth.studio import Studio
from server.access import TOKEN_VARIABLE, is_loopback, read_token, transport_security
from server.app import build_server

DEFAULT_PORT = 8765
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until the client leaves or the server is told to stop. Returns the exit code: 0, 1 when it cannot
    listen, 130 when interrupted; wrong usage gives 2.

    Over stdio Ctrl-C ends the process at once: the thread that waits for the client's next line cannot be
    interrupted in another way, and the image store is whole at every moment.
    """
    options = _parse(argv)
    wait_without_spinning()
    collect_garbage_rarely()
    if options.transport == "http":
        return _serve_http(options)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    build_server(Studio(), image_folders=local_folders()).run("stdio")
    return 0


def wait_without_spinning() -> None:
    """Let threads of torch sleep while they wait for one another, unless the environment says otherwise; it
    is read when torch is loaded.

    Tiles are made by one thread (`pathsynth.threads`). When they were made by two that spin while they wait,
    beside one busy process on two cores a tile of 224 px took 25 to 35 s, in place of 0.6 s.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def collect_garbage_rarely() -> None:
    """Look for cycles of garbage after 50,000 new objects, not after 700.

    Importing the models' libraries makes a million objects that stay: Python went through them 1,500 times,
    for 1.3 of the 11 s of processor time that the imports took (measured three times each).
    """
    gc.set_threshold(50_000, 20, 100)


def local_folders() -> tuple[Path, ...]:
    """Where a client on this machine may have an image read by its path: home, temporary and working
    folder."""
    folders = {Path.home(), Path(tempfile.gettempdir()), Path.cwd()}
    return tuple(sorted(folder.resolve() for folder in folders if folder != Path(folder.anchor)))


def _serve_http(options: argparse.Namespace) -> int:
    # Not at the top: stdio, which most clients use, does without uvicorn and Prometheus.
    from server.http import MCP_PATH, http_app, listen, uvicorn_server
    from server.metrics import Metrics

    try:
        listener = listen(options.host, options.port)
    except OSError as error:
        print(_cannot_listen(options.host, options.port, error), file=sys.stderr)
        return 1
    with listener:
        bound = listener.getsockname()[0]
        if options.token is None and not is_loopback(bound):
            print(
                f"pathsynth-mcp: {options.host} is {bound} here, which other machines can reach; "
                f"give a token, or use --host 127.0.0.1.",
                file=sys.stderr,
            )
            return 1
        signal.signal(signal.SIGTERM, _leave)
        studio, metrics = Studio(), Metrics()
        server = build_server(studio, metrics=metrics)
        metrics.watch(server.queue)
        app = http_app(server, studio, metrics, options.security, options.token)
        name = f"[{options.host}]" if ":" in options.host else options.host
        access = "" if options.token is None else ", with the bearer token"
        print(f"PathSynth answers at http://{name}:{options.port}{MCP_PATH}{access}.", file=sys.stderr)
        try:
            uvicorn_server(app).run(sockets=[listener])
        except KeyboardInterrupt:
            return INTERRUPTED
    return 0


def _leave(signal_number: int, frame: FrameType | None) -> NoReturn:
    """End the process as one that did what it was asked to: uvicorn raises the signal that stopped it again
    once everything is closed."""
    raise SystemExit(0)


def _cannot_listen(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"pathsynth-mcp: port {port} of {host} is in use; choose another one with --port."
    reason = error.strerror or str(error)
    return f"pathsynth-mcp: cannot listen at {host}, port {port} ({reason}); check --host and --port."


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, without the usage above it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message.rstrip('.')}.\n")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options, with `token` and `security` made from them."""
    parser = _Parser(
        prog="pathsynth-mcp",
        description="MCP server for verified synthetic histopathology tiles.",
        allow_abbrev=False,
    )
    parser.add_argument("--transport", choices=("stdio", "http"), default="stdio", help="default: stdio")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="http only; any address but a loopback one needs a token (default: 127.0.0.1)",
    )
    parser.add_argument(
        "--port", type=_port, default=DEFAULT_PORT, help=f"http only (default: {DEFAULT_PORT})"
    )
    parser.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help=f"http only; every request must bear the token in FILE (default: that in {TOKEN_VARIABLE})",
    )
    parser.add_argument(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="http only; a further name, or name:port, by which clients reach the server; repeatable",
    )
    parser.add_argument("--token", dest="bare_token", help=argparse.SUPPRESS)
    parser.add_argument("--version", action="version", version=f"pathsynth-mcp {__version__}")
    options = parser.parse_args(argv)
    if options.bare_token is not None:
        parser.error(
            "a token on the command line shows in every list of processes; "
            f"use --token-file or the variable {TOKEN_VARIABLE}"
        )
    if options.transport == "stdio":
        if options.token_file is not None or options.allowed_host:
            parser.error("--token-file and --allowed-host are for --transport http only")
        return options
    try:
        options.token = read_token(options.token_file, os.environ)
        options.security = transport_security(options.host, options.allowed_host)
    except PathSynthError as error:
        parser.error(str(error))
    if options.token is None and not is_loopback(options.host):
        parser.error(
            f"--host {options.host} can be reached from other machines; give a token with --token-file or "
            f"{TOKEN_VARIABLE}, or use a loopback address"
        )
    return options


def _port(text: str) -> int:
    try:
        port = int(text)
    except ValueError:
        port = 0
    if not 1 <= port <= 65_535:
        raise argparse.ArgumentTypeError("a port is a number between 1 and 65535")
    return port


if __name__ == "__main__":
    sys.exit(main())
