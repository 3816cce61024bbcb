"""The HTTP server: who is answered, what it tells of itself, and clients that vanish."""

import base64
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from pathsynth import __version__
from pathsynth.images import encode_png
from pathsynth.records import GenerationResult
from server.http import MCP_PATH
from server.metrics import Metrics
from tests.fakes import FakeStudio, smooth_tile
from tests.mcp_fixtures import refusal, served, texts

TOKEN = "correct-horse-battery"
HANDSHAKE_SECONDS = 2.0

_META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}
_ACCEPT = {"Accept": "application/json, text/event-stream"}


def discover() -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 1, "method": "server/discover", "params": {"_meta": _META}}


def initialize() -> dict[str, Any]:
    return {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {
            "protocolVersion": "2025-11-25",
            "capabilities": {},
            "clientInfo": {"name": "test", "version": "1"},
        },
    }


def tool_call(mode: str, arguments: dict[str, Any], token: str | None = None) -> dict[str, Any]:
    """A call of generate_tissue_image; `token` asks for progress."""
    meta: dict[str, Any] = dict(_META) if mode == "auto" else {}
    if token is not None:
        meta["progressToken"] = token
    params = {"name": "generate_tissue_image", "arguments": arguments, "_meta": meta}
    return {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": params}


def headers(mode: str, message: dict[str, Any]) -> dict[str, str]:
    version = {"auto": "2026-07-28", "legacy": "2025-11-25"}[mode]
    sent = _ACCEPT | {"MCP-Protocol-Version": version, "Mcp-Method": message["method"]}
    name = message["params"].get("name")
    return sent if name is None else sent | {"Mcp-Name": name}


def post(address: str, mode: str = "auto", **more: str) -> httpx2.Response:
    """A small request that any client may make."""
    message = discover() if mode == "auto" else initialize()
    return httpx2.post(address + MCP_PATH, json=message, headers=headers(mode, message) | more)


def opened(address: str, mode: str) -> dict[str, str]:
    """The headers of a session that is ready for calls; the newer protocol needs none."""
    if mode == "auto":
        return {}
    session = {"Mcp-Session-Id": post(address, mode).headers["Mcp-Session-Id"]}
    ready = {"jsonrpc": "2.0", "method": "notifications/initialized", "params": {}}
    sent = httpx2.post(address + MCP_PATH, json=ready, headers=headers(mode, ready) | session)
    assert sent.status_code == 202
    return session


def test_a_foreign_host_or_origin_is_refused(studio: FakeStudio, mode: str) -> None:
    with served(studio) as address:
        port = urlsplit(address).port
        assert post(address, mode).status_code == 200
        assert post(address, mode, Host=f"localhost:{port}", Origin=address).status_code == 200
        assert post(address, mode, Host=f"evil.example:{port}").status_code == 421
        assert post(address, mode, Host=f"localhost.evil.example:{port}").status_code == 421
        assert post(address, mode, Host=f"0.0.0.0:{port}").status_code == 421
        assert post(address, mode, Origin="http://evil.example").status_code == 403
        assert post(address, mode, Origin="null").status_code == 403


def test_a_further_loopback_address_is_protected_as_well(studio: FakeStudio, mode: str) -> None:
    with served(studio, host="127.0.0.2") as address:
        assert post(address, mode).status_code == 200
        assert post(address, mode, Host="evil.example").status_code == 421


def test_the_figures_are_kept_from_foreign_hosts_but_liveness_is_told_to_all(studio: FakeStudio) -> None:
    with served(studio) as address:
        evil = {"Host": "evil.example"}
        assert httpx2.get(f"{address}/metrics", headers=evil).status_code == 421
        assert httpx2.get(f"{address}/healthz", headers=evil).status_code == 200


def test_a_server_for_other_machines_answers_to_the_names_it_was_given(studio: FakeStudio, mode: str) -> None:
    allowed = ["tiles.example", "other.example:99"]
    with served(studio, host="0.0.0.0", token=TOKEN, allowed=allowed) as address:
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        status = {
            host: post(address, mode, Host=host, **bearer).status_code
            for host in ("tiles.example", "tiles.example:1", "other.example:99", "other.example", "0.0.0.0")
        }
        assert post(address, mode, **bearer).status_code == 200
        origin = {"Host": "tiles.example", "Origin": "https://tiles.example"}
        assert post(address, mode, **bearer, **origin).status_code == 200

    assert status == {
        "tiles.example": 200,
        "tiles.example:1": 200,
        "other.example:99": 200,
        "other.example": 421,
        "0.0.0.0": 421,
    }


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        f"Bearer {TOKEN} {TOKEN}",
        "Bearer wrong-horse-battery",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        f"Basic {TOKEN}",
        TOKEN,
        "Bearer t\xf6ken",
    ],
)
def test_without_the_token_the_answer_is_401_and_nothing_runs(
    studio: FakeStudio, mode: str, authorization: str | None
) -> None:
    message = tool_call(mode, {"tissue": "ADI"})
    sent = headers(mode, message).items()
    given = [] if authorization is None else [(b"Authorization", authorization.encode("latin-1"))]
    with served(studio, token=TOKEN) as address:
        answers = [
            httpx2.post(
                address + MCP_PATH,
                json=message,
                headers=[*((name.encode(), value.encode()) for name, value in sent), *given],
            ),
            httpx2.get(f"{address}/metrics", headers=given),
            httpx2.get(f"{address}/nothing", headers=given),
        ]

    for answer in answers:
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
        assert TOKEN not in answer.text
    assert studio.requests == []


def test_two_authorization_headers_are_refused(studio: FakeStudio) -> None:
    both = [("Authorization", f"Bearer {TOKEN}"), ("Authorization", "Bearer another-long-token")]
    with served(studio, token=TOKEN) as address:
        assert httpx2.get(f"{address}/metrics", headers=both).status_code == 401


def test_with_the_token_everything_is_answered_and_liveness_needs_none(studio: FakeStudio, mode: str) -> None:
    with served(studio, token=TOKEN) as address:
        assert post(address, mode, Authorization=f"Bearer {TOKEN}").status_code == 200
        assert post(address, mode, Authorization=f"bearer {TOKEN}").status_code == 200
        assert httpx2.get(f"{address}/metrics", headers={"Authorization": f"Bearer {TOKEN}"}).is_success
        assert httpx2.get(f"{address}/healthz").is_success


@pytest.mark.anyio
async def test_a_client_with_the_token_generates(studio: FakeStudio, mode: str) -> None:
    with served(studio, token=TOKEN) as address, anyio.fail_after(20):
        async with httpx2.AsyncClient(headers={"Authorization": f"Bearer {TOKEN}"}) as http:
            transport = streamable_http_client(address + MCP_PATH, http_client=http)
            async with Client(transport, mode=mode) as client:
                made = await client.call_tool("generate_tissue_image", {"tissue": "ADI"})

    assert GenerationResult.model_validate_json(texts(made)[0]).verified


def test_liveness_tells_version_and_weights_and_no_folder(
    studio: FakeStudio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(studio) as address:
        assert httpx2.get(f"{address}/healthz").json() == {
            "status": "ok",
            "version": __version__,
            "weights": "present",
        }
        assert studio.weights.manifest.files
        assert httpx2.get(f"{address}/healthz").json()["weights"] == "verified"
    with served(FakeStudio(tmp_path)) as address:
        monkeypatch.setenv("PATHSYNTH_WEIGHTS", str(tmp_path / "nowhere"))
        answer = httpx2.get(f"{address}/healthz")
        assert answer.json()["weights"] == "missing or damaged"
        assert str(tmp_path) not in answer.text


@pytest.mark.anyio
async def test_calls_tiles_and_attempts_are_counted(studio: FakeStudio, mode: str) -> None:
    studio.is_verified = lambda attempt: attempt > 1
    metrics = Metrics()
    with served(studio, metrics=metrics) as address, anyio.fail_after(20):
        async with Client(address + MCP_PATH, mode=mode) as client:
            await client.call_tool("generate_tissue_image", {"tissue": "ADI", "count": 2})
            await client.call_tool("generate_tissue_image", {"tissue": "ADI", "count": 0})
            studio.error = ValueError("crash")
            await client.call_tool("generate_tissue_image", {"tissue": "ADI"})
            for name in ("made_up_1", "made_up_2"):
                refusal(await client.call_tool(name, {}))
        figures = httpx2.get(f"{address}/metrics").text.splitlines()

    assert [
        line
        for line in figures
        if line.startswith(("pathsynth_tool_calls_total", "pathsynth_verified"))
        and not line.startswith("pathsynth_verified_tiles_created")
    ] == [
        'pathsynth_tool_calls_total{outcome="answered",tool="generate_tissue_image"} 1.0',
        'pathsynth_tool_calls_total{outcome="refused",tool="generate_tissue_image"} 1.0',
        'pathsynth_tool_calls_total{outcome="crashed",tool="generate_tissue_image"} 1.0',
        'pathsynth_tool_calls_total{outcome="refused",tool="unknown"} 2.0',
        'pathsynth_verified_tiles_total{tissue="ADI"} 2.0',
    ]
    assert 'pathsynth_attempts_total{tissue="ADI"} 3.0' in figures
    assert 'pathsynth_tool_seconds_count{tool="generate_tissue_image"} 3.0' in figures


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="only Linux tells the memory of a process")
def test_the_memory_of_the_process_is_told(studio: FakeStudio) -> None:
    with served(studio) as address:
        figures = httpx2.get(f"{address}/metrics").text

    assert re.search(r"^process_resident_memory_bytes [1-9]", figures, re.MULTILINE)


def test_the_queue_is_told_as_it_is_at_the_moment() -> None:
    class TwoCounts:
        running, waiting = 1, 3

    metrics, queue = Metrics(), TwoCounts()
    metrics.watch(queue)
    queue.waiting = 2

    lines = metrics.exposition().decode().splitlines()
    assert "pathsynth_queue_running 1.0" in lines
    assert "pathsynth_queue_waiting 2.0" in lines


@pytest.mark.parametrize(
    "form", ["{path}", "file://{path}", "{path}.gone", "/etc/passwd", "~/x.png", "C:\\x.png"]
)
@pytest.mark.anyio
async def test_no_path_of_the_servers_disk_is_touched_or_told(
    studio: FakeStudio, tmp_path: Path, mode: str, form: str
) -> None:
    picture = tmp_path / "picture.png"
    picture.write_bytes(encode_png(smooth_tile(1)))
    with served(studio) as address, anyio.fail_after(20):
        async with Client(address + MCP_PATH, mode=mode) as client:
            sentence = refusal(await client.call_tool("classify_image", {"image": form.format(path=picture)}))
            described = await client.list_tools()

    assert "does not read paths" in sentence
    assert str(tmp_path) not in sentence
    assert "path of a local file" not in described.model_dump_json()


@pytest.mark.anyio
async def test_the_largest_image_that_the_tool_takes_passes_the_transport(
    studio: FakeStudio, mode: str
) -> None:
    picture = encode_png(smooth_tile(1))
    padded = base64.b64encode(picture).decode().ljust(15_900_000)
    with served(studio) as address, anyio.fail_after(30):
        async with Client(address + MCP_PATH, mode=mode) as client:
            assert not (await client.call_tool("classify_image", {"image": padded})).is_error
        assert httpx2.post(address + MCP_PATH, content=b" " * 16_100_000).status_code == 413


@pytest.mark.parametrize("progress", [None, "t"], ids=["silent", "with progress"])
def test_a_client_that_vanishes_ends_its_call_and_the_next_is_answered(
    studio: FakeStudio, mode: str, progress: str | None
) -> None:
    message = tool_call(mode, {"tissue": "ADI"}, progress)
    studio.pauses_before_attempt = 0
    with served(studio) as address:
        place = urlsplit(address)
        body = json.dumps(message)
        session = opened(address, mode)
        head = (
            headers(mode, message)
            | session
            | {
                "Host": place.netloc,
                "Content-Type": "application/json",
                "Content-Length": str(len(body)),
            }
        )
        lines = [f"POST {MCP_PATH} HTTP/1.1", *(f"{name}: {value}" for name, value in head.items())]
        with closing(socket.create_connection((str(place.hostname), int(place.port or 0)))) as connection:
            connection.sendall(("\r\n".join(lines) + "\r\n\r\n" + body).encode())
            assert studio.paused.wait(10)
            assert not studio.stopped.is_set()
        started = time.perf_counter()
        assert studio.stopped.wait(5)
        # A pause looks for its cancellation every 5 ms, and by itself it ends after 10 s.
        assert time.perf_counter() - started < 2

        studio.pauses_before_attempt = None
        answer = httpx2.post(address + MCP_PATH, json=message, headers=headers(mode, message) | session)
    assert '"verified":true' in answer.text.replace("\\", "")


def test_a_cancellation_from_another_session_ends_no_call(studio: FakeStudio) -> None:
    message = tool_call("legacy", {"tissue": "ADI"})
    cancelled = {
        "jsonrpc": "2.0",
        "method": "notifications/cancelled",
        "params": {"requestId": message["id"]},
    }
    studio.pauses_before_attempt = 0
    with served(studio) as address:
        own, other = opened(address, "legacy"), opened(address, "legacy")

        def send(message: dict[str, Any], session: dict[str, str]) -> httpx2.Response:
            return httpx2.post(
                address + MCP_PATH, json=message, headers=headers("legacy", message) | session, timeout=60
            )

        answers: list[httpx2.Response] = []
        caller = threading.Thread(target=lambda: answers.append(send(message, own)))
        caller.start()
        assert studio.paused.wait(10)
        assert send(cancelled, other).status_code == 202
        assert not studio.stopped.wait(0.5)
        assert send(cancelled, own).status_code == 202
        assert studio.stopped.wait(5)
        caller.join(60)
    assert [answer.status_code for answer in answers] == [200]


def test_a_session_that_does_not_exist_is_said_so_that_the_client_opens_another(studio: FakeStudio) -> None:
    message = tool_call("legacy", {"tissue": "ADI"})
    with served(studio) as address:
        sent = headers("legacy", message) | {"Mcp-Session-Id": "0" * 32}
        assert httpx2.post(address + MCP_PATH, json=message, headers=sent).status_code == 404
    assert studio.requests == []


def test_a_client_that_vanishes_while_it_sends_leaves_no_traceback_in_the_log(
    studio: FakeStudio, capfd: pytest.CaptureFixture[str]
) -> None:
    head = headers("auto", discover()) | {"Host": "localhost", "Content-Type": "application/json"}
    lines = [f"POST {MCP_PATH} HTTP/1.1", *(f"{name}: {value}" for name, value in head.items())]
    with served(studio) as address:
        place = urlsplit(address)
        with closing(socket.create_connection((str(place.hostname), int(place.port or 0)))) as connection:
            connection.sendall(("\r\n".join(lines) + "\r\nContent-Length: 99\r\n\r\n{").encode())
        assert post(address).is_success
    assert capfd.readouterr().err == ""


def test_stopping_the_server_ends_a_call_that_goes_on_too_long(
    studio: FakeStudio, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.http.STOP_SECONDS", 1)
    studio.pauses_before_attempt = 0
    message = tool_call(mode, {"tissue": "ADI"}, "t")

    def call(address: str) -> None:
        # What becomes of the answer is not asked here: the server may close the connection before it.
        with suppress(httpx2.HTTPError):
            sent = headers(mode, message) | opened(address, mode)
            httpx2.post(address + MCP_PATH, json=message, headers=sent, timeout=60)

    with served(studio) as address:
        caller = threading.Thread(target=call, args=[address])
        caller.start()
        assert studio.paused.wait(10)
        assert not studio.stopped.is_set()
    assert studio.stopped.wait(5)
    caller.join(60)
    assert not caller.is_alive()


def start(*arguments: str, home: Path) -> "subprocess.Popen[str]":
    """`pathsynth-mcp --transport http` on a free port, with `arguments`."""
    environment = os.environ | {"PATHSYNTH_HOME": str(home)}
    environment.pop("PATHSYNTH_TOKEN", None)
    return subprocess.Popen(
        [sys.executable, "-m", "server.main", "--transport", "http", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env=environment,
    )


@pytest.fixture
def port() -> int:
    """A port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def answer_of(process: "subprocess.Popen[str]", port: int, mode: str) -> httpx2.Response:
    """The answer to the first handshake after the server said that it listens."""
    assert process.stderr is not None
    assert process.stderr.readline() == f"PathSynth answers at http://127.0.0.1:{port}/mcp.\n"
    return post(f"http://127.0.0.1:{port}", mode)


def test_the_handshake_is_answered_within_two_seconds_over_http(mode: str, port: int, tmp_path: Path) -> None:
    seconds = []
    for _ in range(3):  # the best of three, since whatever else runs on the machine is not the server's doing
        started = time.perf_counter()
        with start("--port", str(port), home=tmp_path) as process:
            assert answer_of(process, port, mode).is_success
            seconds.append(time.perf_counter() - started)
            process.kill()
    assert min(seconds) < HANDSHAKE_SECONDS


def test_neither_liveness_nor_listing_needs_torch(studio: FakeStudio) -> None:
    script = """
import sys, threading
from pathlib import Path
import anyio, httpx2
from mcp import Client
from pathsynth.studio import Studio
from tests.mcp_fixtures import served

async def greet(address, mode):
    async with Client(address + "/mcp", mode=mode) as client:
        await client.list_tools()

with served(Studio(home=Path(sys.argv[1]))) as address:
    for mode in ("auto", "legacy"):
        anyio.run(greet, address, mode)
    httpx2.get(address + "/healthz").raise_for_status()
    httpx2.get(address + "/metrics").raise_for_status()
print(sorted(name for name in ("torch", "diffusers", "transformers", "torchvision") if name in sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(studio.store.root)],
        capture_output=True,
        text=True,
        check=True,
        encoding="utf-8",
    )
    assert done.stdout == "[]\n"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals for a single process")
@pytest.mark.parametrize(("signal_number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_stops_the_server_without_a_traceback(
    signal_number: signal.Signals, code: int, port: int, tmp_path: Path
) -> None:
    with start("--port", str(port), home=tmp_path) as process:
        answer_of(process, port, "auto")
        process.send_signal(signal_number)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (code, "")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows lets two sockets share a port")
def test_a_port_in_use_is_said_in_a_sentence(port: int, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", port)), start("--port", str(port), home=tmp_path) as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors == f"pathsynth-mcp: port {port} of 127.0.0.1 is in use; choose another one with --port.\n"
