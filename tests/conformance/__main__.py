"""Runs every check, prints one line each, and exits with 1 when one failed.

Needs the Node packages beside this file, as `make conformance` installs them. With arguments, only the checks
whose name contains one of them are run.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.conformance.node import PACKAGES, command

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
CONFORMANCE = PACKAGES / "@modelcontextprotocol" / "conformance" / "dist" / "index.js"
INSPECTOR = PACKAGES / "@modelcontextprotocol" / "inspector" / "clients" / "launcher" / "build" / "index.js"
MCPB = PACKAGES / "@anthropic-ai" / "mcpb" / "dist" / "cli" / "cli.js"

# Those that need no tool, prompt or resource made for them.
SCENARIOS = {
    "2025-11-25": (
        "server-initialize",
        "ping",
        "tools-list",
        "resources-list",
        "prompts-list",
        "dns-rebinding-protection",
        "server-sse-multiple-streams",
        "server-session-lifecycle",
    ),
    "2026-07-28": (
        "server-stateless",
        "tools-list",
        "resources-list",
        "prompts-list",
        "caching",
        "sep-2164-resource-not-found",
        "dns-rebinding-protection",
        "http-header-validation",
        "input-required-result-unsupported-methods",
        "input-required-result-ignore-extra-params",
    ),
}
ERAS = {"legacy": "legacy", "modern": "auto"}
"""Protocol eras, as the inspector and as the TypeScript client call them."""

HANDED_ON = {"PYTHONPATH", "PATHSYNTH_HOME", "PATHSYNTH_DATA"}

FUZZED_CALLS = 1000
TOOLPROOF_EXAMPLES = 15
SEED = 1
MOST_ANSWER_BYTES = 300_000
START_SECONDS = 120
CALL_SECONDS = 120
CHECK_SECONDS = 600
FUZZ_SECONDS = 3000


@dataclass(frozen=True)
class Outcome:
    """What a program said: its exit code, and what it wrote to stdout and stderr."""

    code: int
    output: str
    errors: str

    def last_line(self) -> str:
        """The last line that is not empty, from stdout if there is one."""
        lines = [line.strip() for line in (self.output or self.errors).splitlines() if line.strip()]
        return lines[-1] if lines else ""


class CheckFailedError(Exception):
    """A check did not pass; the text says what was seen."""


class Checks:
    """Runs checks one by one, prints a line for each, and counts."""

    def __init__(self, wanted: Sequence[str]) -> None:
        self._wanted = wanted
        self.passed = 0
        self.failed: list[str] = []

    def run(self, name: str, check: Callable[[], str]) -> None:
        """Run one check; it returns what is worth telling, or raises CheckFailedError."""
        if self._wanted and not any(part in name for part in self._wanted):
            return
        started = time.monotonic()
        try:
            detail, verdict = check(), "ok  "
            self.passed += 1
        except CheckFailedError as error:
            detail, verdict = str(error), "FAIL"
            self.failed.append(name)
        print(
            f"{verdict} {time.monotonic() - started:6.1f} s  {name}" + (f": {detail}" if detail else ""),
            flush=True,
        )


def run(arguments: Sequence[str], environment: Mapping[str, str], seconds: float = CHECK_SECONDS) -> Outcome:
    """Run a program with everything it starts in a process group of its own, which ends with it."""
    process = subprocess.Popen(
        arguments,
        cwd=HERE,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        raise CheckFailedError(f"no end within {seconds:g} s") from None
    finally:
        if hasattr(os, "killpg"):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.wait()
    return Outcome(process.returncode, output, errors)


def passed(outcome: Outcome) -> Outcome:
    """The outcome, when its exit code is 0. Raises CheckFailedError otherwise."""
    if outcome.code != 0:
        lines = [line for line in (outcome.output + "\n" + outcome.errors).splitlines() if line.strip()]
        raise CheckFailedError("exit code {}\n       {}".format(outcome.code, "\n       ".join(lines[-25:])))
    return outcome


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(environment: Mapping[str, str], log: Path) -> Iterator[str]:
    """The server over HTTP in a process of its own. Yields its address; errors go to `log`."""
    port = free_port()
    arguments = [sys.executable, "-m", "server.main", "--transport", "http", "--port", str(port)]
    with log.open("wb") as errors:
        process = subprocess.Popen(
            arguments, env=dict(environment), stdin=subprocess.DEVNULL, stdout=errors, stderr=errors
        )
        try:
            _wait_for(port, process, log)
            yield f"http://127.0.0.1:{port}/mcp"
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    said = log.read_text(encoding="utf-8", errors="replace")[-2000:]
    raise CheckFailedError(f"the server did not listen within {START_SECONDS} s; it said: {said}")


def scenario(environment: Mapping[str, str], url: str, version: str, name: str) -> str:
    """One scenario of the protocol's own suite, in the era of a revision."""
    arguments = ["server", "--url", url, "--spec-version", version, "--scenario", name]
    passed(
        run(command(CONFORMANCE, *arguments, "--expected-failures", str(HERE / "baseline.yml")), environment)
    )
    return ""


def inspect(environment: Mapping[str, str], target: Sequence[str], era: str, *arguments: str) -> Outcome:
    """One run of the inspector's command line against a server, which it starts or reaches at a URL. It hands
    on only the variables that it is told to."""
    handed_on = [
        part for name, value in environment.items() if name in HANDED_ON for part in ("-e", f"{name}={value}")
    ]
    options = [
        "--cli",
        *target,
        "--protocol-era",
        era,
        *handed_on,
        "--connect-timeout",
        str(1000 * CALL_SECONDS),
        *arguments,
    ]
    return passed(run(command(INSPECTOR, *options), environment))


def strict_schemas(environment: Mapping[str, str], target: Sequence[str], era: str) -> str:
    """Every schema is portable: the inspector has nothing at all to report, not even a warning."""
    outcome = inspect(environment, target, era, "--method", "tools/list", "--strict", "--format", "json")
    tools = _json(outcome)["tools"]
    if outcome.errors.strip():
        raise CheckFailedError(f"reported: {outcome.errors.strip()}")
    size = len(json.dumps(tools, separators=(",", ":")))
    return f"{len(tools)} tools, {size / 1000:.1f} kB"


def call_every_tool(environment: Mapping[str, str], url: str, era: str) -> str:
    """Every tool answers through the inspector, and no answer is too large."""
    target = [url, "--transport", "http"]
    listed = _json(inspect(environment, target, era, "--method", "tools/list", "--format", "json"))
    names = [tool["name"] for tool in listed["tools"]]

    def call(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        options = ["--method", "tools/call", "--tool-name", name, "--tool-args-json", json.dumps(arguments)]
        outcome = inspect(environment, target, era, *options, "--format", "json", "-q")
        answer: dict[str, Any] = _json(outcome)
        size = len(json.dumps(answer, separators=(",", ":")))
        if size > MOST_ANSWER_BYTES:
            raise CheckFailedError(f"{name} answers {size} bytes")
        return answer

    made = call("generate_tissue_image", {"tissue": "ADI", "count": 2, "seed": SEED})
    ids = [tile["image_id"] for tile in json.loads(made["content"][0]["text"])["tiles"]]
    examples: dict[str, dict[str, Any]] = {
        "generate_tissue_image": {"description": "fat cells", "count": 1, "seed": SEED + 10},
        "classify_image": {"image": ids[0]},
        "evaluate_model": {"what": "validator", "split": "test"},
        "list_tissues": {"glossary": True},
        "view_image": {"image_ids": ids},
        "read_report": {"name": "tiles.png"},
    }
    without = [name for name in names if name not in examples]
    if without:
        raise CheckFailedError(f"there is no example of a call of {', '.join(without)}")
    for name in names:
        call(name, examples[name])
    return ", ".join(names)


def _json(outcome: Outcome) -> Any:
    """The JSON of an inspector run, without the envelope that some of its versions put around a result."""
    try:
        value = json.loads(outcome.output)
    except ValueError as error:
        raise CheckFailedError(f"no JSON: {outcome.output[:300]} {outcome.errors[:300]}") from error
    return value.get("result", value)


def session(environment: Mapping[str, str], arguments: Sequence[str]) -> str:
    """A whole session of the TypeScript client."""
    return passed(run(command(HERE / "client.mjs", *arguments), environment)).last_line()


def speed(environment: Mapping[str, str]) -> str:
    """A call through the server takes hardly longer than the work itself."""
    return passed(run([sys.executable, "-m", "tests.conformance.speed"], environment)).last_line()


def load(environment: Mapping[str, str], url: str) -> str:
    """Eight clients at once get their own tiles, and the server does not grow."""
    return passed(run([sys.executable, "-m", "tests.conformance.load", url], environment)).last_line()


def bundle(environment: Mapping[str, str]) -> str:
    """The manifest of the MCP bundle is valid; `make bundle` packs it."""
    manifest = REPOSITORY / "mcpb" / "manifest.json"
    return passed(run(command(MCPB, "validate", str(manifest)), environment)).last_line()


def toolproof(environment: Mapping[str, str], url: str, folder: Path) -> str:
    """Schema fuzzing by somebody else's program. Its settings are a file, since no option of it lengthens the
    time that it gives a call."""
    fuzz = {"max_examples": TOOLPROOF_EXAMPLES, "seed": SEED, "timeout_ms": 1000 * CALL_SECONDS}
    settings = {
        "server": {"url": url, "startup_timeout_s": CALL_SECONDS},
        "fuzz": fuzz | {"max_time_s": CHECK_SECONDS},
    }
    file = folder / "toolproof.yaml"
    file.write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML
    program = Path(sys.executable).with_name("toolproof")
    outcome = run([str(program), "fuzz", "--config", str(file)], environment, FUZZ_SECONDS)
    return re.sub(r"\s+", " ", passed(outcome).last_line())


def fuzzing(environment: Mapping[str, str], url: str, log: Path, forbidden: Sequence[str]) -> str:
    """Schema fuzzing by our own program, which also looks for what an answer must not say."""
    arguments = [url, str(FUZZED_CALLS), str(log), *forbidden]
    program = [sys.executable, "-m", "tests.conformance.fuzz"]
    return passed(run([*program, *arguments], environment, FUZZ_SECONDS)).last_line()


def environment_for(folder: Path, weights: Path | None = None) -> dict[str, str]:
    """The environment of a server that keeps its images in `folder` and finds no PathMNIST."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PATHSYNTH_")}
    own = {
        "PYTHONPATH": str(REPOSITORY),
        "PATHSYNTH_HOME": str(folder / "home"),
        "PATHSYNTH_DATA": str(folder / "data"),
        "HYPOTHESIS_STORAGE_DIRECTORY": str(folder / "hypothesis"),
        "NO_COLOR": "1",
        "COLUMNS": "200",
        "DO_NOT_TRACK": "1",
    }
    return kept | own | ({} if weights is None else {"PATHSYNTH_WEIGHTS": str(weights)})


def real_checks(checks: Checks, folder: Path) -> None:
    """Everything that runs on the weights that are shipped."""
    environment = environment_for(folder)
    over_stdio = [sys.executable, "-m", "server.main"]
    checks.run("mcpb validate", partial(bundle, environment))
    checks.run("time of a call", partial(speed, environment))
    with serving(environment, folder / "server.log") as url:
        for version, names in SCENARIOS.items():
            for name in names:
                checks.run(
                    f"conformance {version} {name}", partial(scenario, environment, url, version, name)
                )
        for era, mode in ERAS.items():
            for kind, target in (("stdio", over_stdio), ("http", [url, "--transport", "http"])):
                checks.run(
                    f"inspector --strict, {kind}, {era}", partial(strict_schemas, environment, target, era)
                )
            checks.run(f"inspector calls every tool, {era}", partial(call_every_tool, environment, url, era))
            for kind, target in (("stdio", over_stdio), ("http", [url])):
                arguments = [mode, kind, *target]
                checks.run(f"TypeScript client, {kind}, {era}", partial(session, environment, arguments))
        checks.run("eight clients at once, http", partial(load, environment, url))


def fuzz_checks(checks: Checks, folder: Path) -> None:
    """Thousands of calls, on toy weights."""
    weights, log = folder / "toy-weights", folder / "fuzzed.log"
    environment = environment_for(folder, weights)
    forbidden = [str(folder), str(REPOSITORY), sys.prefix, str(Path.home())]
    passed(run([sys.executable, "-m", "tests.conformance.toy", str(weights)], environment))
    with serving(environment, log) as url:
        checks.run("toolproof, http", partial(toolproof, environment, url, folder))
        checks.run("schema fuzzing, http", partial(fuzzing, environment, url, log, forbidden))


def main(wanted: Sequence[str]) -> int:
    """Run the checks. Returns 0 when all passed, 1 when not."""
    checks = Checks(wanted)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="pathsynth-conformance-") as temporary:
        for number, group in enumerate((real_checks, fuzz_checks)):
            folder = Path(temporary) / str(number)
            (folder / "data").mkdir(parents=True)
            try:
                group(checks, folder)
            except CheckFailedError as error:
                print(f"FAIL {error}")
                checks.failed.append(group.__name__)
    seconds = time.monotonic() - started
    print(f"{checks.passed} passed, {len(checks.failed)} failed in {seconds:.0f} s")
    for name in checks.failed:
        print(f"failed: {name}")
    return 1 if checks.failed or not checks.passed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
