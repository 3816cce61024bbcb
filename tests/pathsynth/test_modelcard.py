"""The model card says what manifest and reports say, and nothing else."""

import json
import re
from pathlib import Path
from typing import Any, Literal

import pytest

from pathsynth.errors import WeightsError
from pathsynth.modelcard import PAPER_FIGURES, write_model_card
from pathsynth.records import (
    AdapterSettings,
    Comparison,
    FullReport,
    Memorisation,
    Outside,
    OutsideSet,
    Realism,
    Record,
    SetFigures,
    Stress,
)
from pathsynth.tissues import CODES, TISSUES
from pathsynth.weights import Weights, write_manifest
from tests import fakes


def report(what: Literal["validator", "judge", "generator"], n: int = 90, **fields: object) -> FullReport:
    """A consistent report with the further figures given."""
    return FullReport.model_validate(fakes.report(what, n).model_dump() | fields)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A weights folder with one component and no report."""
    (tmp_path / "validator").mkdir()
    (tmp_path / "validator" / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "reports").mkdir()
    write_manifest(tmp_path, {"validator": {"config": {"steps": 4321}, "data": "ab" * 32}})
    return tmp_path


def add(folder: Path, name: str, record: Record) -> None:
    path = folder / "reports" / f"{name}.json"
    path.write_text(record.model_dump_json(exclude_none=True), encoding="utf-8")
    write_manifest(folder, {})


def card(folder: Path) -> str:
    return write_model_card(folder).read_text(encoding="utf-8")


def own(folder: Path) -> dict[str, Any]:
    return {"model": Weights(folder).model}


def test_the_card_stands_in_the_folder_and_leaves_the_weights_whole(folder: Path) -> None:
    path = write_model_card(folder)
    assert path == folder / "MODEL_CARD.md"
    assert Weights(folder).model in path.read_text(encoding="utf-8").splitlines()[0]
    assert not list(folder.glob("*.partial"))


def test_the_card_changes_when_a_figure_of_a_report_changes(folder: Path) -> None:
    add(folder, "validator-val", report("validator", n=9009, accuracy=0.9321, **own(folder)))
    first = card(folder)
    add(folder, "validator-val", report("validator", n=9009, accuracy=0.8765, **own(folder)))
    second = card(folder)
    assert "0.9321" in first
    assert "0.9321" not in second
    assert "0.8765" in second
    assert "9,009" in second


def test_without_reports_the_card_holds_no_measured_figure(folder: Path) -> None:
    figures = {f"{value:.4f}" for value in PAPER_FIGURES.values()}
    assert set(re.findall(r"\b\d\.\d{4}\b", card(folder))) <= figures


def test_each_report_names_split_size_seed_weights_and_data(folder: Path) -> None:
    add(folder, "validator-test", report("validator", split="test", data="cd" * 32, **own(folder)))
    add(folder, "generator", report("generator", seed=77, **own(folder)))
    text = card(folder)
    assert f"split test, n = 90, weights {Weights(folder).model}" in text
    assert f"generated tiles, n = 90, seed 77, weights {Weights(folder).model}" in text
    assert "cd" * 32 in text
    assert "not these weights" not in text


def test_a_report_of_other_weights_is_marked(folder: Path) -> None:
    add(folder, "generator", report("generator", model="0123456789ab"))
    text = card(folder)
    assert "weights 0123456789ab, **not these weights: measure again**" in text


def test_a_report_of_earlier_weights_holds_where_its_parts_are_the_same(folder: Path) -> None:
    measured = own(folder)
    add(folder, "validator-val", report("validator", **measured))
    add(folder, "generator", report("generator", **measured))
    (folder / "layout").mkdir()
    (folder / "layout" / "model.safetensors").write_bytes(b"another")
    write_manifest(folder, {"layout": {}})
    text = card(folder)
    assert f"weights {measured['model']}, the same in what was measured (validator)" in text
    assert f"weights {measured['model']}, **not these weights: measure again**" in text


def test_the_figures_of_the_paper_stand_beside_ours(folder: Path) -> None:
    add(folder, "validator-val", report("validator", accuracy=0.5432, **own(folder)))
    add(folder, "generator", report("generator", macro_f1=0.7654, **own(folder)))
    rows = [line for line in card(folder).splitlines() if line.startswith("| ")]
    assert any("accuracy | 0.9976 | 0.5432" in row for row in rows)
    assert any("macro F1 | 0.6727 | 0.7654" in row for row in rows)
    assert any("precision | 0.6817 | 1.0000" in row for row in rows)
    assert any("recall | 0.7111 | 1.0000" in row for row in rows)


def test_data_licence_limits_and_training_are_told(folder: Path) -> None:
    text = card(folder)
    for needed in (
        "Not for diagnosis",
        "Yang et al.",
        "Kather",
        "NCT-CRC-HE-100K",
        "CRC-VAL-HE-7K",
        "CC BY 4.0",
        "arXiv 2506.00786",
        "## Limits",
        "seldom a lumen",
        '"steps": 4321',
    ):
        assert needed in " ".join(text.split())


def test_the_card_says_when_the_adapter_was_taught_by_a_rival_that_sees_what_the_validator_sees(
    folder: Path,
) -> None:
    warning = "is no independent evidence"
    assert warning not in card(folder)
    for adversarial, is_told in ((None, False), ({"steps": 4}, False), ({"features": ["layer2"]}, True)):
        write_manifest(folder, {"lora/default": {"config": {"adversarial": adversarial}}})
        assert (warning in " ".join(card(folder).split())) is is_told


def test_the_card_says_when_tiles_are_turned(folder: Path) -> None:
    for is_turned in (False, True):
        write_manifest(folder, {"lora/default": {"sampling": {"steps": 4, "turned": is_turned}}})
        assert ("turned by a quarter or mirrored" in " ".join(card(folder).split())) is is_turned


def test_the_card_says_when_the_adapter_was_taught_to_be_recognised_by_the_validator(folder: Path) -> None:
    warning = "named right by the validator itself"
    for adversarial, is_told in (({"recognition": 0.0}, False), ({"recognition": 0.5}, True)):
        write_manifest(folder, {"lora/default": {"config": {"adversarial": adversarial}}})
        assert (warning in " ".join(card(folder).split())) is is_told


def test_the_card_says_when_the_adapter_aimed_at_what_its_tiles_teach(folder: Path) -> None:
    kinds = ["regnet_y_400mf", "small"]
    for adversarial, told in (
        ({"pupil": 0.0}, ""),
        ({"pupil": 2.5}, "one that learns on (a small one of five layers)"),
        ({"pupil": 2.5, "fresh_pupils": 3}, "from scratch again and again (a small one of five layers)"),
        (
            {"pupil": 2.5, "fresh_pupils": 3, "fresh_architectures": kinds},
            "from scratch again and again (regnet_y_400mf, a small one of five layers)",
        ),
    ):
        write_manifest(folder, {"lora/default": {"config": {"adversarial": adversarial}}})
        text = " ".join(card(folder).split())
        assert ("networks that learn the tissues from its tiles" in text) is bool(told)
        assert told in text


@pytest.mark.parametrize(
    ("adversarial", "strengths"),
    [({"steps": 4}, {}), ({"texture": "earlier"}, {"STR": 0.82, "MUS": 0.5, "LYM": 0})],
)
def test_the_card_says_how_texture_was_corrected(
    folder: Path, adversarial: dict[str, object], strengths: dict[str, float]
) -> None:
    texture = {"of": ["STR", "MUS"], "strengths": strengths}
    write_manifest(folder, {"lora/default": {"config": {"adversarial": adversarial}, "texture": texture}})
    limits = " ".join(card(folder).split())
    assert "Not corrected, since more than such factors is amiss: adipose" in limits
    assert ("trained through a correction" in limits) is ("texture" in adversarial)
    assert ("only a share is made: MUS 0.5, STR 0.82." in limits) is bool(strengths)
    assert f"network makes them: {'lymphocytes' if strengths else 'none'}." in limits
    assert ("only a share" in limits) is bool(strengths)


def test_the_card_says_when_a_tissue_alone_draws_attributes(folder: Path) -> None:
    told = "draws the attributes of a training tile"
    assert told not in " ".join(card(folder).split())
    write_manifest(folder, {"wordings": {"per_tissue": 4}})
    assert told in " ".join(card(folder).split())


def test_the_card_says_when_the_decoder_was_taught_by_a_network_like_the_one_that_measures(
    folder: Path,
) -> None:
    warning = "had no part in training"
    assert warning not in card(folder)
    for config, is_told in (({"rival_features": False}, False), ({"rival_features": True}, True)):
        write_manifest(folder, {"detail": {"config": config}})
        assert (warning in " ".join(card(folder).split())) is is_told


def test_the_judge_has_its_own_figures_and_tables(folder: Path) -> None:
    add(folder, "judge-test", report("judge", n=7020, accuracy=0.4321, **own(folder)))
    judged: dict[str, Any] = {"per_class_judge": fakes.report("judge").per_class}
    add(folder, "generator", report("generator", **judged, **own(folder)))
    text = card(folder)
    assert "Judge on real tiles" in text
    assert "0.4321" in text
    assert "As the judge names them:" in text
    assert "| validator, accuracy" not in text  # the judge does not stand beside the paper's validator


def test_every_tissue_has_a_row_and_the_confusion_is_shown(folder: Path) -> None:
    confusion = [[0] * 9 for _ in CODES]
    confusion[2][7] = 8888
    add(folder, "loop", report("generator", confusion=confusion, attempts=dict.fromkeys(CODES, 31)))
    text = card(folder)
    assert "8888" in text
    for tissue in TISSUES:
        assert re.search(rf"^\| {tissue.code} {tissue.label} \|.*\| 31 \|$", text, re.MULTILINE)


def test_further_figures_are_printed_with_their_own_sample(folder: Path) -> None:
    of: dict[str, Any] = {"split": "val", "n": 1234, "seed": 5, "model": "abc"}
    figures = {
        "fid": 3.25,
        "kid": 0.0125,
        "precision": 0.81,
        "recall": 0.82,
        "density": 0.83,
        "coverage": 0.84,
    }
    generated = SetFigures.model_validate(figures)
    real = SetFigures.model_validate(figures | {"fid": 1.75})
    by_tissue = dict.fromkeys(CODES, 0.4321)
    add(
        folder,
        "generator",
        report(
            "generator",
            realism=[
                Realism(
                    space="some network",
                    generated=generated,
                    real_vs_real=real,
                    density_by_tissue=by_tissue,
                    coverage_by_tissue=by_tissue,
                    **of,
                )
            ],
            memorisation=[
                Memorisation(
                    space="pixels",
                    reference=456,
                    limit=7.5,
                    below=0.0078,
                    below_by_tissue=by_tissue,
                    median_generated=20.0,
                    median_real=21.0,
                    **of,
                )
            ],
        ),
    )
    add(
        folder,
        "validator-val",
        report(
            "validator",
            stress=Stress(accuracy={"unchanged": 0.99, "blur": 0.4567}, **of),
            outside=Outside(
                refused=0.005,
                sets={"noise": OutsideSet(what="uniform", n=50, auroc=0.9876, refused=1.0)},
                **of,
            ),
        ),
    )
    text = card(folder)
    assert "some network (split val, n = 1,234, seed 5, weights abc" in text
    assert "| FID | 3.25000 | 1.75000 |" in text
    assert "0.4321" in text
    assert "| pixels | 7.5000 | 0.0078 |" in text
    assert "| blur | 0.4567 |" in text
    assert "| noise | uniform | 50 | 0.9876 | 1.0000 |" in text


def test_adapters_come_as_one_table_with_a_row_each_and_not_as_the_generator(folder: Path) -> None:
    for name, rank in (("small", 4), ("large", 16)):
        settings: dict[str, Any] = {"rank": rank, "targets": ["to_q", "to_v"]}
        adapter = AdapterSettings(name=name, bytes=1000 * rank, settings=settings)
        add(folder, f"lora-{name}", report("generator", macro_f1=rank / 100, adapter=adapter))
    text = card(folder)
    rows = [line for line in text.splitlines() if "to_q, to_v" in line]
    assert [row.split(" | ")[0] for row in rows] == ["| large", "| small"]
    assert "16,000" in rows[0]
    assert "0.0400" in rows[1]
    assert "Generator: first tiles" not in text


def test_comparisons_and_pictures_are_shown(folder: Path) -> None:
    table = Comparison(
        what="comparison", title="Ablation", note="Equal time.", columns=["run", "F1"], rows=[["a", 0.25]]
    )
    add(folder, "ablation", table)
    (folder / "reports" / "confusion-generator.png").write_bytes(b"png")
    write_manifest(folder, {})
    text = card(folder)
    assert "### Ablation\n\nEqual time.\n\n| run | F1 |\n| --- | --- |\n| a | 0.2500 |" in text
    assert "![confusion generator](reports/confusion-generator.png)" in text


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"what": "generator"}), '{"what": "comparison"}'])
def test_a_file_that_is_no_report_is_refused_by_name(folder: Path, content: str) -> None:
    (folder / "reports" / "broken.json").write_text(content, encoding="utf-8")
    write_manifest(folder, {})
    with pytest.raises(WeightsError, match=r"broken\.json is not a report"):
        write_model_card(folder)


def test_damaged_weights_get_no_card(folder: Path) -> None:
    (folder / "validator" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(WeightsError, match="damaged"):
        write_model_card(folder)
    assert not (folder / "MODEL_CARD.md").exists()
