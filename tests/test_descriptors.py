"""What others read of the project without running it: registry entry, bundle, container, client snippets."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PUBLIC_REGISTRY = "https://registry.npmjs.org/"


def read(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


def parsed(name: str) -> dict[str, Any]:
    value = json.loads(read(name))
    assert isinstance(value, dict)
    return value


def test_every_descriptor_names_the_version_of_the_project() -> None:
    server = parsed("server.json")
    found = [server["version"], parsed("mcpb/manifest.json")["version"]]
    found += [package["version"] for package in server["packages"]]
    for page in ("README.md", "docs/clients.md"):
        found += re.findall(r"pathsynth-(\d+\.\d+\.\d+)[-.]", read(page))

    assert len(found) >= 6
    assert set(found) == {PROJECT["version"]}


def test_the_registry_entry_keeps_the_limits_of_its_schema() -> None:
    entry = parsed("server.json")

    assert re.fullmatch(r"[a-zA-Z0-9.-]+/[a-zA-Z0-9._-]+", entry["name"])
    assert 0 < len(entry["description"]) <= 100
    (package,) = entry["packages"]
    assert (package["registryType"], package["identifier"]) == ("pypi", PROJECT["name"])
    assert package["transport"] == {"type": "stdio"}


def test_readme_and_container_bear_the_name_of_the_registry_entry() -> None:
    name = parsed("server.json")["name"]

    assert f"<!-- mcp-name: {name} -->" in read("README.md")
    assert f'io.modelcontextprotocol.server.name="{name}"' in read("Dockerfile")


def test_the_bundle_starts_a_command_that_is_installed() -> None:
    manifest = parsed("mcpb/manifest.json")

    assert manifest["manifest_version"] == "0.4"
    assert manifest["server"]["type"] == "uv"
    assert (REPOSITORY / manifest["server"]["entry_point"]).is_file()
    assert manifest["server"]["mcp_config"]["args"][-1] in PROJECT["scripts"]


def test_the_committed_client_configuration_starts_a_command_that_setup_installs() -> None:
    command = parsed(".mcp.json")["mcpServers"]["pathsynth"]["command"]

    assert command.startswith(".venv/bin/")
    assert Path(command).name in PROJECT["scripts"]


@pytest.mark.parametrize("page", ["README.md", "docs/clients.md", "docs/how-to.md"])
def test_every_json_snippet_can_be_parsed(page: str) -> None:
    snippets = re.findall(r"```json\n(.*?)```", read(page), flags=re.DOTALL)

    assert snippets
    for snippet in snippets:
        json.loads(snippet)


@pytest.mark.parametrize("client", ["Claude Desktop", "Claude Code", "VS Code", "Cursor"])
def test_readme_and_pages_say_how_to_connect_each_client(client: str) -> None:
    assert f"**{client}**" in read("README.md")
    assert f"## {client}" in read("docs/clients.md")


def test_the_container_has_no_rights_and_tells_its_health() -> None:
    lines = read("Dockerfile").splitlines()

    users = [line for line in lines if line.startswith("USER ")]
    assert users
    assert users[-1] != "USER 0"
    assert "/healthz" in read("Dockerfile").split("HEALTHCHECK", 1)[1]
    copied = {line.split()[1] for line in lines if line.startswith("COPY ") and "--from" not in line}
    admitted = {line[1:] for line in read(".dockerignore").splitlines() if line.startswith("!")}
    assert copied <= admitted


def test_node_packages_are_pinned_and_come_from_the_public_registry() -> None:
    wanted = parsed("tests/conformance/package.json")["devDependencies"]
    locked = parsed("tests/conformance/package-lock.json")["packages"]

    assert wanted
    for name, version in wanted.items():
        assert locked[f"node_modules/{name}"]["version"] == version
    addresses = [entry["resolved"] for entry in locked.values() if "resolved" in entry]
    assert [address for address in addresses if not address.startswith(PUBLIC_REGISTRY)] == []
    assert [path for path, entry in locked.items() if path and not entry.get("integrity")] == []


def test_what_fuzzing_and_pages_need_stays_out_of_the_base_installation() -> None:
    extras = PROJECT["optional-dependencies"]
    base = {re.split(r"[^a-z0-9-]", each.lower())[0] for each in PROJECT["dependencies"]}

    for extra in ("docs", "conformance"):
        names = {re.split(r"[^a-z0-9-]", each.lower())[0] for each in extras[extra]}
        assert names
        assert not names & base
