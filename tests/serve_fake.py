"""A server without models in a process of its own: `python -m tests.serve_fake stdio|http HOME`.

Over HTTP it takes any free port and writes its number as the first line of stdout.
"""

import sys
from pathlib import Path

from server.access import transport_security
from server.app import build_server
from server.http import http_app, listen, uvicorn_server
from server.metrics import Metrics
from tests.fakes import FakeStudio


def main(transport: str, home: str) -> None:
    studio = FakeStudio(Path(home))
    if transport == "stdio":
        build_server(studio).run("stdio")
        return
    metrics = Metrics()
    with listen("127.0.0.1", 0) as listener:
        print(listener.getsockname()[1], flush=True)
        server = build_server(studio, metrics=metrics)
        metrics.watch(server.queue)
        app = http_app(server, studio, metrics, transport_security("127.0.0.1"))
        uvicorn_server(app).run(sockets=[listener])


if __name__ == "__main__":
    main(*sys.argv[1:])
