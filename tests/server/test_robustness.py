"""What the server survives: being killed, calls given up, nonsense, and very many calls.

The suite makes a tenth of the rounds; `PATHSYNTH_ROUNDS=1 python -m pytest tests/server/test_robustness.py
-s` makes all of them (50 kills, 100 cancellations, 1,000 calls of nonsense, 500 calls in a row) and prints
the figures.
"""

import base64
import multiprocessing
import os
import random
import subprocess
import sys
import threading
from itertools import count
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from mcp import Client, MCPError

from pathsynth.history import Remembered
from pathsynth.images import encode_png
from pathsynth.records import MAX_SEED
from pathsynth.store import ImageStore
from pathsynth.studio import GenerationRequest
from server.app import PathSynthServer, build_server
from tests.fakes import FakeStudio, smooth_tile
from tests.mcp_fixtures import texts

ROUNDS = float(os.environ.get("PATHSYNTH_ROUNDS", "0.1"))
KILLS, CANCELLATIONS = round(50 * ROUNDS), round(100 * ROUNDS)
FUZZED, IN_A_ROW = round(1000 * ROUNDS), round(500 * ROUNDS)
LARGEST_GROWTH = 0.05
BOMB_BYTES = 200_000_000
REPOSITORY = Path(__file__).resolve().parents[2]


def request(seed: int, number: int = 9) -> GenerationRequest:
    return GenerationRequest.checked(description="glands", tissue="TUM", count=number, seed=seed)


def is_third(attempt: int) -> bool:
    return attempt % 3 == 0


def generate_for_ever(home: Path, begun: Event) -> None:
    """One request after the other; each is cut short by the kill or done."""
    studio = FakeStudio(home)
    studio.is_verified = is_third
    begun.set()
    for round_number in count():
        studio.generate(request(seed=100 * round_number))


def assert_whole(home: Path) -> int:
    """Every listed image has the pixels of its id, every remembered request can be read; returns how many
    images there are.
    """
    store = ImageStore(home)
    for image_id in store.ids():
        assert store.get(image_id).record.image_id == image_id
    for path in (home / "requests").glob("*.json"):
        Remembered.model_validate_json(path.read_bytes())
    return len(store.ids())


@pytest.mark.skipif("forkserver" not in multiprocessing.get_all_start_methods(), reason="needs forkserver")
def test_a_process_killed_at_any_moment_leaves_a_whole_store(tmp_path: Path) -> None:
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["tests.fakes"])
    moments = random.Random(0)
    home, images = tmp_path / "home", 0
    for _ in range(KILLS):
        begun = processes.Event()
        process = processes.Process(target=generate_for_ever, args=(home, begun))
        process.start()
        assert begun.wait(60)
        process.join(moments.uniform(0, 0.5))
        process.kill()
        process.join()
        assert process.exitcode == -9
        images = assert_whole(home)
    assert images > 0

    studio, untouched = FakeStudio(home), FakeStudio(tmp_path / "untouched")
    studio.is_verified = untouched.is_verified = is_third
    for seed in (0, 100, 200):
        after, whole = studio.generate(request(seed)), untouched.generate(request(seed))
        assert after.model_dump(exclude={"seconds"}) == whole.model_dump(exclude={"seconds"})
    print(f"\n{KILLS} kills: {images} images whole")


def assert_unset(event: threading.Event, seconds: float) -> None:
    """A denoising step: time in which nobody is heard."""
    assert not event.wait(seconds)


@pytest.mark.anyio
async def test_a_call_given_up_at_any_moment_frees_the_next_one(
    client: Client, studio: FakeStudio, server: PathSynthServer
) -> None:
    step_seconds = 0.3
    studio.is_verified = is_third
    never = threading.Event()
    studio.on_step = lambda: assert_unset(never, step_seconds)
    moments = random.Random(0)
    waits: list[float] = []
    for number in range(CANCELLATIONS):
        with anyio.move_on_after(moments.uniform(0, 3 * step_seconds)) as call:
            arguments = {"tissue": "TUM", "count": 9, "seed": 1000 * number}
            await client.call_tool("generate_tissue_image", arguments)
        with anyio.fail_after(10):
            while server.queue.running or server.queue.waiting:
                await anyio.sleep(0.001)  # spinning would keep the interpreter from the worker
        waits.append(anyio.current_time() - call.deadline)
    studio.on_step = lambda: None
    with anyio.fail_after(10):
        assert not (await client.call_tool("generate_tissue_image", {"tissue": "ADI"})).is_error
    home = studio.store.root
    assert {path.stem for path in (home / "images").iterdir()} == set(studio.store.ids())
    assert not list(home.rglob("*.partial"))
    assert_whole(home)
    median = sorted(waits)[len(waits) // 2]
    assert median < step_seconds
    print(f"\n{CANCELLATIONS} given up: free after {median * 1e3:.0f} ms, at most {max(waits) * 1e3:.0f} ms")


NONSENSE: tuple[Any, ...] = (
    "", " ", "TUM", "tum", "LIVER", "x" * 2000, "\x00", "\ufffe", "\U0001f52c" * 50, "a\nb", "%s%n", "{}",
    "${HOME}", "../../etc/passwd", "/etc/passwd", "~/.ssh/id_rsa", "file:///etc/passwd", "C:\\win.ini",
    "'; DROP TABLE x", "data:image/png;base64,", "data:image/png;base64,AAAA", "https://example.org/x.png",
    "0123456789abcdef", "0123456789ab", "<svg/>", "null", "1e999", "-0", "validator", "generator", "val",
    "test", None, True, False, 0, 1, -1, 9, 28, 224, 0.5, -0.5, 1.5, 1e308, 10**30, 2**32 - 1, 2**32,
    [], [1], ["0123456789abcdef"], ["x"] * 50, {}, {"a": {"b": []}}, [[[]]],
)  # fmt: skip


@pytest.mark.anyio
async def test_nonsense_is_answered_in_words_that_tell_nothing_of_the_server(
    studio: FakeStudio, mode: str
) -> None:
    (image_id,) = [tile.image_id for tile in studio.generate(request(0, 1)).tiles]
    chance = random.Random(mode)
    good: dict[str, Any] = {
        "image": base64.b64encode(encode_png(smooth_tile(1))).decode("ascii"),
        "image_ids": [image_id],
        "tissue": "ADI",
        "what": "generator",
        "per_class": 1,
    }
    forbidden = ("Traceback", 'File "', "pydantic", "site-packages", ".py", "unexpectedly", "Error executing")
    told = (str(studio.store.root), str(REPOSITORY), str(Path.home()), "root:")
    refused = 0
    async with Client(build_server(studio), mode=mode) as client:  # no folders: as over HTTP
        tools = (await client.list_tools()).tools
        for _ in range(FUZZED):
            tool = chance.choice(tools)
            arguments = {name: good[name] for name in tool.input_schema["properties"] if name in good}
            for name in [*tool.input_schema["properties"], "surplus"]:
                if chance.random() < 0.3:
                    part = good["image"][: chance.randrange(400)]
                    arguments[name] = chance.choice((*NONSENSE, part, image_id))
            try:
                with anyio.fail_after(30):
                    result = await client.call_tool(tool.name, arguments)
            except MCPError as error:
                words = [error.error.message]
            else:
                words = texts(result)
                refused += result.is_error is True
                assert len(result.model_dump_json(by_alias=True).encode()) <= 300_000
            for text in words:
                assert not [word for word in forbidden if word in text], (tool.name, arguments, text)
                assert not [each for each in told if each in text], (tool.name, arguments, text)
    assert 0 < refused < FUZZED
    print(f"\n{FUZZED} calls of nonsense, {refused} refused in a sentence")


def resident_bytes() -> int:
    """Memory of this process that is in use now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.anyio
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
async def test_very_many_calls_do_not_fill_the_memory(client: Client, studio: FakeStudio) -> None:
    image = base64.b64encode(encode_png(smooth_tile(1))).decode("ascii")

    async def calls(first: int, last: int) -> None:
        for number in range(first, last):
            made = await client.call_tool(
                "generate_tissue_image", {"tissue": "TUM", "seed": number % MAX_SEED, "count": 1 + number % 3}
            )
            image_id = texts(made)[0].split('"image_id":"')[1][:16]
            await client.call_tool("view_image", {"image_ids": [image_id]})
            await client.call_tool("classify_image", {"image": image})
            await client.call_tool("list_tissues", {"glossary": True})
            await client.call_tool("evaluate_model", {"what": "generator", "per_class": 1})

    warm_up = 20
    await calls(0, warm_up)
    before = resident_bytes()
    await calls(warm_up, warm_up + max(1, IN_A_ROW // 5))
    growth = resident_bytes() / before - 1
    print(f"\n{IN_A_ROW} calls: memory {before / 1e6:.0f} MB, grown by {growth:.2%}")
    assert growth < LARGEST_GROWTH


BOMBS = """
import io, struct, sys, zlib
from PIL import Image
from pathsynth.errors import ImageError
from pathsynth.images import read_image

def png(width, height, body):
    def chunk(kind, content):
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    signature = b"\\x89PNG\\r\\n\\x1a\\n"
    return signature + chunk(b"IHDR", header) + body(chunk) + chunk(b"IEND", b"")

def zeros(size):
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(size >> 20)) + packer.flush()

def saved(kind, width, height):
    file = io.BytesIO()
    Image.new("1", (width, height)).save(file, kind)
    return file.getvalue()

def bombs():
    yield png(50_000, 50_000, lambda chunk: chunk(b"IDAT", zeros(1 << 24)))
    yield png(8_000, 7_900, lambda chunk: chunk(b"IDAT", zeros(8_000 * 7_900 * 3 + (1 << 20))))
    for kind in (b"zTXt", b"iCCP"):
        text = b"a\\0\\0" + zeros(1 << 28)
        yield png(64, 64, lambda chunk: chunk(kind, text) + chunk(b"IDAT", zeros(1 << 20)))
    yield saved("TIFF", 3_000, 3_000)
    yield b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + bytes(100)
    yield b"RIFF\\x1e\\0\\0\\0WEBPVP8X\\n\\0\\0\\0" + bytes(4) + (16_382).to_bytes(3, "little") * 2
    yield b"P6 60000 60000 255\\n" + bytes(1000)

files = list(bombs())
for file in files:
    try:
        read_image(file)
    except ImageError as error:
        assert "\\n" not in str(error)
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {error}")
# Not ru_maxrss: that is handed on by the process that started this one, however large it was.
status = open("/proc/self/status", encoding="utf-8").read()
print(int(status.partition("VmHWM:")[2].split()[0]) * 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux does")
def test_images_made_to_fill_the_memory_are_refused_before_they_do() -> None:
    done = subprocess.run(
        [sys.executable, "-c", BOMBS],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    print(f"\nbombs: {int(done.stdout) / 1e6:.0f} MB for the whole process")
    assert int(done.stdout) < BOMB_BYTES
