"""The weights folder and its manifest."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pathsynth.errors import WeightsError
from pathsynth.weights import Manifest, Weights, default_folder, loading, looks_whole, write_manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small weights folder."""
    for name, content in {
        "validator/model.safetensors": b"0123456789" * 100,
        "validator/config.json": b"{}",
        "reports/validator-val.json": b"{}",
        "MODEL_CARD.md": b"# Card",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    write_manifest(tmp_path, {"validator": {"steps": 3}})
    return tmp_path


def refusal(folder: Path) -> str:
    """The one sentence with which a folder is refused."""
    with pytest.raises(WeightsError) as caught:
        Weights(folder)
    sentence = str(caught.value)
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert len(sentence) < 400
    return sentence


def test_a_whole_folder_is_accepted(folder: Path) -> None:
    weights = Weights(folder)
    assert weights.has("validator")
    assert not weights.has("judge")
    assert weights.path("validator/config.json").read_bytes() == b"{}"
    assert weights.manifest.components == {"validator": {"steps": 3}}


@pytest.mark.parametrize("position", [0, 500, 999])
def test_one_flipped_bit_is_noticed(folder: Path, position: int) -> None:
    path = folder / "validator" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    assert "model.safetensors is damaged" in refusal(folder)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes() + b"0"),
        lambda path: path.write_bytes(b""),
    ],
    ids=["cut", "longer", "empty"],
)
def test_another_length_is_noticed(folder: Path, damage: Callable[[Path], object]) -> None:
    damage(folder / "validator" / "model.safetensors")
    assert "damaged" in refusal(folder)


def test_looking_is_enough_to_miss_a_file_or_see_another_length_but_not_a_flipped_bit(folder: Path) -> None:
    path = folder / "validator" / "model.safetensors"
    assert looks_whole(folder)
    path.write_bytes(b"1" + path.read_bytes()[1:])
    assert looks_whole(folder)
    path.write_bytes(path.read_bytes()[1:])
    assert not looks_whole(folder)
    path.unlink()
    assert not looks_whole(folder)
    assert not looks_whole(folder / "validator")


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / "validator" / "config.json").unlink()
    assert "lack validator/config.json" in refusal(folder)


def test_a_missing_report_is_noticed_too(folder: Path) -> None:
    (folder / "reports" / "validator-val.json").unlink()
    assert "lack reports/validator-val.json" in refusal(folder)


def test_a_folder_without_manifest_holds_no_weights(folder: Path, tmp_path: Path) -> None:
    (folder / "manifest.json").unlink()
    assert "PATHSYNTH_WEIGHTS" in refusal(folder)
    assert "There are no weights" in refusal(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "damage",
    [b"", b"{", b"[]", b"\xff\xfe", b'{"files": {}}', b'{"files": {"a": {"sha256": "x", "bytes": 1}}}'],
)
def test_a_damaged_manifest_is_noticed(folder: Path, damage: bytes) -> None:
    (folder / "manifest.json").write_bytes(damage)
    assert "manifest.json is damaged" in refusal(folder)


def test_a_manifest_of_a_later_format_is_refused_when_it_holds_unknown_keys(folder: Path) -> None:
    path = folder / "manifest.json"
    written = json.loads(path.read_text(encoding="utf-8")) | {"signature": "?"}
    path.write_text(json.dumps(written), encoding="utf-8")
    assert "manifest.json is damaged" in refusal(folder)


def test_reports_and_the_model_card_do_not_change_the_hash_of_the_model(folder: Path) -> None:
    before = Weights(folder).model
    (folder / "reports" / "validator-val.json").write_bytes(b'{"new": 1}')
    (folder / "reports" / "generator.json").write_bytes(b"{}")
    (folder / "MODEL_CARD.md").write_bytes(b"# Another card")
    write_manifest(folder, {})
    assert Weights(folder).model == before
    assert len(before) == 12


@pytest.mark.parametrize("name", ["validator/config.json", "validator/extra.json"])
def test_a_changed_or_added_model_file_changes_the_hash_of_the_model(folder: Path, name: str) -> None:
    before = Weights(folder).model
    (folder / name).write_bytes(b'{"temperature": 2}')
    write_manifest(folder, {})
    assert Weights(folder).model != before


def test_what_was_measured_holds_while_its_parts_are_the_same(folder: Path) -> None:
    first = Weights(folder).model
    (folder / "judge").mkdir()
    (folder / "judge" / "model.safetensors").write_bytes(b"judge")
    second = write_manifest(folder, {"judge": {}})
    assert second.measured(second.model, ["judge"])
    assert second.measured(first, ["validator"])
    assert second.measured(first, ["validator", "detail"])  # neither has one
    assert not second.measured(first, ["validator", "judge"])
    assert not second.measured("0123456789ab", ["validator"])
    (folder / "validator" / "config.json").write_bytes(b'{"temperature": 2}')
    third = write_manifest(folder, {})
    assert not third.measured(first, ["validator"])
    assert third.measured(second.model, ["judge"])
    (folder / "validator" / "config.json").write_bytes(b"{}")
    again = write_manifest(folder, {})
    assert again.model == second.model
    assert again.model not in again.earlier
    assert again.measured(third.model, ["judge"])


def test_the_manifest_remembers_so_many_earlier_weights_and_no_more(folder: Path) -> None:
    for i in range(20):
        (folder / "validator" / "config.json").write_text(str(i), encoding="utf-8")
        manifest = write_manifest(folder, {})
    assert len(manifest.earlier) == 12


def test_the_manifest_remembers_those_that_a_report_was_measured_with(folder: Path) -> None:
    first = write_manifest(folder, {})
    report = folder / "reports" / "validator-val.json"
    report.write_text(json.dumps({"model": first.model}), encoding="utf-8")
    (folder / "reports" / "broken.json").write_text("{", encoding="utf-8")
    (folder / "reports" / "list.json").write_text("[]", encoding="utf-8")
    for i in range(20):
        (folder / "judge.json").write_text(str(i), encoding="utf-8")
        manifest = write_manifest(folder, {"judge": {}})
    assert len(manifest.earlier) == 13
    assert manifest.measured(first.model, ["validator"])


def test_writing_the_manifest_again_keeps_what_was_said_of_other_components(folder: Path) -> None:
    manifest = write_manifest(folder, {"judge": {"steps": 5}})
    assert manifest.components == {"validator": {"steps": 3}, "judge": {"steps": 5}}
    assert Manifest.model_validate_json((folder / "manifest.json").read_bytes()) == manifest
    assert set(manifest.files) == {
        "validator/model.safetensors",
        "validator/config.json",
        "reports/validator-val.json",
    }
    assert manifest.files["validator/model.safetensors"].bytes == 1000


def test_the_environment_names_the_folder(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("PATHSYNTH_WEIGHTS", str(folder))
    assert default_folder() == folder
    assert Weights().folder == folder
    monkeypatch.delenv("PATHSYNTH_WEIGHTS")
    assert default_folder().name == "weights"


@pytest.mark.parametrize(
    "error", [OSError("gone"), KeyError("means"), RuntimeError("size\nmismatch: long"), ValueError("")]
)
def test_whatever_a_library_raises_while_loading_becomes_one_sentence(
    error: Exception, tmp_path: Path
) -> None:
    with pytest.raises(WeightsError) as caught, loading(tmp_path / "layout"):
        raise error
    assert str(caught.value).startswith(f"{tmp_path / 'layout'} cannot be loaded (")
    assert str(caught.value).endswith("); install PathSynth again.")
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is error


def test_an_interrupt_while_loading_stays_one(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), loading(tmp_path):
        raise KeyboardInterrupt
