"""`pathsynth-mcp`: starts the MCP server."""

import argparse
import ipaddress
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pathsynth import __version__
from pathsynth.studio import Studio
from server.app import build_server

DEFAULT_PORT = 8765
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until the client leaves. Returns the exit code: 0, or 130 when interrupted; wrong usage gives 2.

    Over stdio Ctrl-C ends the process at once: the thread that waits for the client's next line cannot be
    interrupted in another way, and the image store is whole at every moment.
    """
    options = _parse(argv)
    if options.transport == "stdio":
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        build_server(Studio(), image_folders=local_folders()).run("stdio")
    else:
        server = build_server(Studio())
        try:
            server.run("streamable-http", host=options.host, port=options.port, stateless_http=True)
        except KeyboardInterrupt:
            return INTERRUPTED
    return 0


def local_folders() -> tuple[Path, ...]:
    """Where a client on this machine may have an image read by its path: home, temporary and working
    folder."""
    folders = {Path.home(), Path(tempfile.gettempdir()), Path.cwd()}
    return tuple(sorted(folder.resolve() for folder in folders if folder != Path(folder.anchor)))


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server bound to `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="pathsynth-mcp", description="MCP server for verified synthetic histopathology tiles."
    )
    parser.add_argument("--transport", choices=("stdio", "http"), default="stdio", help="default: stdio")
    parser.add_argument(
        "--host", default="127.0.0.1", help="http only; must be a loopback address (default: 127.0.0.1)"
    )
    parser.add_argument(
        "--port", type=_port, default=DEFAULT_PORT, help=f"http only (default: {DEFAULT_PORT})"
    )
    parser.add_argument("--version", action="version", version=f"pathsynth-mcp {__version__}")
    options = parser.parse_args(argv)
    if options.transport == "http" and not is_loopback(options.host):
        parser.error(
            f"--host {options.host} can be reached from other machines; only a loopback address is served."
        )
    return options


def _port(text: str) -> int:
    port = int(text)
    if not 1 <= port <= 65_535:
        raise argparse.ArgumentTypeError("a port lies between 1 and 65535")
    return port


if __name__ == "__main__":
    sys.exit(main())
