"""The model card, made of the manifest and the reports that ship with the weights: no figure of this project
is typed into it.

The only figures written here are those the original paper states about its own models, for comparison.
Structure after Mitchell et al., *Model Cards for Model Reporting*, 2019.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from pathsynth.errors import WeightsError
from pathsynth.records import Comparison, DetailReport, FullReport, Measured, SetFigures
from pathsynth.tissues import CODES, TISSUES
from pathsynth.weights import TILE_PARTS, Manifest, Weights, belongs

CARD = "MODEL_CARD.md"
REPORTS = "reports"

PAPER: Final = "arXiv 2506.00786"
PAPER_FIGURES: Final[dict[str, float]] = {
    "accuracy": 0.9976,
    "macro_f1": 0.6727,
    "precision": 0.6817,
    "recall": 0.7111,
}

_HEADLINES: Final = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "macro_f1_judge": "macro F1 by the judge",
}
_TITLES: Final = {
    "validator": "Validator on real tiles",
    "judge": "Judge on real tiles",
    "generator": "Generator: first tiles, none discarded, as the validator names them",
    "loop": "Loop: accepted tiles, as the independent judge names them",
}

_GENERATOR: Final = ("validator", "judge", *TILE_PARTS)
# The components that each kind of report is about.
_MEASURED: Final = {
    "validator": ("validator",),
    "judge": ("judge",),
    "generator": _GENERATOR,
    "loop": (*_GENERATOR, "near-copies", "outliers"),
    "detail": ("validator", "contexts", "detail"),
}

_NOTICE = """\
> **Not for diagnosis.** Every tile is synthetic and meant for teaching. Neither the tiles nor what the
> classifiers say about an image may be used to diagnose, treat or monitor anyone."""

_ORIGIN = """\
Generated from `manifest.json` and `reports/` of this folder. Every figure names its split, its sample size,
its seed and the hash of the weights it was measured with."""

_DATA = """\
The models were trained on PathMNIST of MedMNIST v2 (Yang et al., *MedMNIST v2 - A large-scale lightweight
benchmark for 2D and 3D biomedical image classification*, Scientific Data 10, 41, 2023), CC BY 4.0. Its tiles
come from NCT-CRC-HE-100K (training and validation split) and CRC-VAL-HE-7K (test split): Kather, Halama and
Marx, *100,000 histological images of human colorectal cancer and healthy tissue*, Zenodo, 2018,
doi 10.5281/zenodo.1214456, CC BY 4.0. They were resized and cropped by MedMNIST; here they were turned,
flipped and varied in stain for training. No tile of these data sets is part of the weights. The text encoder
is all-MiniLM-L6-v2 (Apache 2.0), which is not part of the weights either.

The validation split comes from the patients of the training split; the test split from other patients of
another centre. Figures on the two answer different questions and are never mixed."""

_LIMITS = """\
- Nine tissues of one organ, from few centres, with one staining: other organs, stains, scanners and
  magnifications are outside. Background tiles and some debris carry artefacts of the stain normalisation.
- The validator can be wrong with high confidence, most of all on tiles of another centre; see the test split.
- What a filter passed agrees with the filter by construction. Only figures of the judge, or of unfiltered
  tiles, say anything about the generator.
- Feature-space figures (FID, KID, density, coverage) depend on the feature space and the sample size; each
  stands beside the value that two sets of real tiles of the same sizes reach.
- A verified tile is the right tissue to the validator; whether it would convince a pathologist was not
  studied."""

_LOOKED_AT = """\
- Looked at beside as many real tiles, first tiles of muscle, stroma, debris, lymphocytes and mucus have the
  fibres with their nuclei, the crumbs, the crowded small nuclei with gaps and the strands of their tissue.
  Most tiles of normal mucosa show pale patches or round pale glands between dark cells, some with a dark rim,
  but seldom a lumen or the single cells of the wall. Fat has thin curved membranes, of which few close to a
  cell and most end before. Tumour has dark crowded cells and clefts, which are not lined as the lumen of a
  gland is: walls of glands and whole fat cells cannot be taught from these tiles."""

_TURNED = """\
- Tiles are turned by a quarter or mirrored by their seed, as far as the words for their direction stay the
  same: left alone, the network lets most tiles of a tissue run one way."""

_OUTLIERS = """\
- What refuses other images learnt from drawn pictures and from changed tiles, with patches moved about
  among them: the figures on shuffled patches are of what it was taught, those on photographs and textures
  are not."""

_SEEN_FEATURES = """\
- The default adapter learnt against a rival that sees features of the validator, so that what the validator
  says of its tiles is no independent evidence; what the judge says is."""

_RECOGNISED = """\
- The default adapter also learnt to be named right by the validator itself. Its unfiltered figures by the
  validator, and how seldom the loop discards, are therefore what it was taught; those by the judge are
  not."""

_PUPIL = """\
- The default adapter also learnt from networks that learn the tissues from its tiles alone, in the end
  {} ({}): tiles are drawn to where those place real ones of train.
  The classification accuracy score, which trains another network and asks it of test, measures what this aims
  at; where it is of the same architecture, one of another may learn less."""

_SMALL_PUPIL = "a small one of five layers"

_WORDINGS = """\
- A request that only names a tissue draws the attributes of a training tile of it, as words, and first tiles
  were measured that way. What else a request says is used as it stands, and then nothing is drawn."""

_DETAIL_SAW = """\
- The detail model learnt to keep near real tiles in features of EfficientNet-Lite0, and, in those of
  EfficientNet-Lite2, against a rival and to be spread as real tiles are. KID and FID of the detail
  in features of Lite0 are therefore not those of a network that had no part in training.
- Those in features of the validator, which saw 28 px alone in training, depend on which validator it is: with
  another one, the FID of the same detail network went from below to above that of a Lanczos enlargement. Only
  figures of one validator can be compared."""

_WITHOUT_DETAIL = """\
- A tile has 28 px an edge, about 4 um a pixel: single nuclei and mitoses cannot be judged in it. Enlarging
  adds no detail that was seen in any tissue."""

_WITH_DETAIL = """\
- What was verified is a tile of 28 px, about 4 um a pixel. Everything finer in a tile of 224 px was made up
  by the detail model so that it fits: nuclei look as they may in such a tissue, and no single one, no mitosis
  and no count of cells means anything.
- The detail model has seen fat, muscle and debris at full detail in grey tiles only. In empty fat, in dark
  background and in muscle it draws fine wavy lines that are not there in real tiles. How many nuclei a
  tumour has cannot be read off a thumbnail: in tiles of one dataset more are drawn than are there, in those
  of another fewer."""

_TEXTURE = """\
- Texture of a tissue is corrected by the same factors for every tile, found on other generated tiles and on
  training tiles: its mean power spectrum is near that of real tiles because of that. What differs from tile
  to tile is as the network made it. Left as the network makes them: {}. Not corrected, since more than such
  factors is amiss: {}.{}"""
_TRAINED_THROUGH = """ The
  adapter was trained through a correction of this kind: rival, validator and spectrum saw corrected tiles."""

_VARIED = """\
- How strong the texture is was also mapped, before these factors and tile by tile, to the strength of the
  real tile of the same rank: {}. What there is in a tile stays, fainter or bolder."""

_PARTLY_CORRECTED = """\
- Of the correction only a share is made: {}. The whole may make a tissue harder to recognise, as the network
  gives it a texture that helps the validator to name it."""

_DETAIL_DATA = """\
The detail model was trained on other tiles, at 0.5 um a pixel after scaling, with their stain matched to
PathMNIST: the textures of Kather et al., *Multi-class texture analysis in colorectal cancer histology*,
Scientific Reports 6, 27988, 2016 (CC BY 4.0, in grey); colon tiles of LC25000 (Borkowski et al., arXiv
1912.12142); and two public sets of colorectal H&E tiles, of which one is from a single slide. No tile of
these is part of the weights."""


def write_model_card(folder: Path) -> Path:
    """Write `MODEL_CARD.md` of a weights folder from its manifest and `reports/*.json`; return its path.

    Raises:
        WeightsError: the weights are missing or damaged, or a report cannot be read.
    """
    weights = Weights(folder)
    reports, comparisons = read_reports(folder)
    adapters = {name: report for name, report in reports.items() if report.adapter is not None}
    plain = {name: report for name, report in reports.items() if report.adapter is None}
    sections = [
        f"# Model card: PathSynth weights {weights.model}",
        _NOTICE,
        _ORIGIN,
        _contents(weights),
        "## Beside the paper",
        _beside_paper(plain, weights.manifest),
        "## Figures",
        *(_report(name, report, weights.manifest) for name, report in plain.items()),
        *_adapters(adapters),
        *_detail(folder, weights.manifest),
        *(_comparison(table) for table in comparisons.values()),
        *_pictures(folder),
        "## Data and licences",
        _DATA,
        *([_DETAIL_DATA] if weights.has("detail") else []),
        "## Limits",
        "\n".join(_limits(weights)),
        "## Training",
        _training(weights),
    ]
    card = folder / CARD
    partial = card.with_name(f"{CARD}.{os.getpid()}.partial")
    try:
        partial.write_text("\n\n".join(sections) + "\n", encoding="utf-8")
        os.replace(partial, card)
    finally:
        partial.unlink(missing_ok=True)
    return card


def read_reports(folder: Path) -> tuple[dict[str, FullReport], dict[str, Comparison]]:
    """The evaluations and the comparisons among the reports of a weights folder, by name, in order.

    Raises:
        WeightsError: a JSON file there is neither.
    """
    reports: dict[str, FullReport] = {}
    comparisons: dict[str, Comparison] = {}
    for path in sorted((folder / REPORTS).glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(content, dict) and content.get("what") == "comparison":
                comparisons[path.stem] = Comparison.model_validate(content)
            elif isinstance(content, dict) and content.get("what") == "detail":
                DetailReport.model_validate(content)  # `_detail` reads it
            else:
                reports[path.stem] = FullReport.model_validate(content)
        except (OSError, UnicodeDecodeError, json.JSONDecodeError, ValidationError) as error:
            raise WeightsError(
                f"{path} is not a report of PathSynth; measure it again with `pathsynth evaluate --json`."
            ) from error
    order = list(_TITLES)
    return dict(sorted(reports.items(), key=lambda item: (order.index(item[1].what), item[0]))), comparisons


def _limits(weights: Weights) -> Iterator[str]:
    yield _WITH_DETAIL if weights.has("detail") else _WITHOUT_DETAIL
    yield _LIMITS
    yield _LOOKED_AT
    adapter = weights.manifest.components.get("lora/default", {})
    adversarial = adapter.get("config", {}).get("adversarial") or {}
    if adversarial.get("features"):
        yield _SEEN_FEATURES
    if adversarial.get("recognition"):
        yield _RECOGNISED
    if adversarial.get("pupil"):
        is_fresh = bool(adversarial.get("fresh_pupils"))
        kinds = adversarial.get("fresh_architectures", ["small"]) if is_fresh else ["small"]
        names = ", ".join(_SMALL_PUPIL if kind == "small" else kind for kind in kinds)
        yield _PUPIL.format(
            "trained from scratch again and again" if is_fresh else "one that learns on", names
        )
    if weights.has("wordings"):
        yield _WORDINGS
    if adapter.get("sampling", {}).get("turned"):
        yield _TURNED
    if (texture := adapter.get("texture")) is not None:
        shares = {tissue.code: texture.get("strengths", {}).get(tissue.code, 1.0) for tissue in TISSUES}
        left = [tissue.label for tissue in TISSUES if not shares[tissue.code]]
        amiss = [t.label for t in TISSUES if shares[t.code] and t.code not in texture["of"]]
        through = _TRAINED_THROUGH if adversarial.get("texture") else ""
        partly = [f"{code} {share:g}" for code, share in shares.items() if 0 < share < 1]
        yield _TEXTURE.format(", ".join(left) or "none", ", ".join(amiss) or "none", through)
        if partly:
            yield _PARTLY_CORRECTED.format(", ".join(partly))
        if varied := texture.get("varied"):
            yield _VARIED.format(", ".join(varied))
    if weights.has("outliers"):
        yield _OUTLIERS
    if weights.manifest.components.get("detail", {}).get("config", {}).get("rival_features"):
        yield _DETAIL_SAW


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in lines)


def _number(value: str | float | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 100 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _facts(report: FullReport, own: Manifest) -> str:
    facts = [f"split {report.split}" if report.split else "generated tiles", f"n = {report.n:,}"]
    if report.seed is not None:
        facts.append(f"seed {report.seed}")
    facts.append(_measured_with(report.model, own, _MEASURED[report.what]))
    return ", ".join(facts)


def _measured_with(model: str, own: Manifest, parts: Sequence[str]) -> str:
    """The weights that something about `parts` was measured with, and whether it holds for these."""
    if model == own.model:
        return f"weights {model}"
    if own.measured(model, parts):
        named = ", ".join(part for part in parts if part in own.components)
        return f"weights {model}, the same in what was measured ({named})"
    return f"weights {model}, **not these weights: measure again**"


def _contents(weights: Weights) -> str:
    rows = []
    listed = weights.manifest.files
    for name in weights.manifest.components:
        sizes = [entry.bytes for path, entry in listed.items() if belongs(path, name)]
        rows.append([f"`{name}`", str(len(sizes)), _number(sum(sizes))])
    total = sum(entry.bytes for entry in listed.values())
    rows.append(["all, with the reports", str(len(listed)), _number(total)])
    return "## Contents\n\n" + _table(["component", "files", "bytes"], rows)


def _beside_paper(reports: Mapping[str, FullReport], own: Manifest) -> str:
    rows = []
    for report in reports.values():
        if report.what in ("loop", "judge"):
            continue
        names = ("accuracy",) if report.what == "validator" else ("precision", "recall", "macro_f1")
        for name in names:
            of = "validator" if report.what == "validator" else "generator before filtering"
            value = _number(getattr(report, name))
            rows.append(
                [
                    f"{of}, {_HEADLINES.get(name, name)}",
                    _number(PAPER_FIGURES[name]),
                    value,
                    _facts(report, own),
                ]
            )
    return (
        f"The paper ({PAPER}) fine-tunes Stable Diffusion on PathMNIST with LoRA and filters by a ResNet-18. "
        "Its figures are the authors' own; it does not name the split of its validator, and its validator "
        "and generator are other models than these.\n\n"
        + _table(["figure", "paper", "here", "measured on"], rows)
    )


def _report(name: str, report: FullReport, own: Manifest) -> str:
    low, high = report.ci95
    headline = _HEADLINES.get(report.headline, report.headline)
    parts = [
        f"### {_TITLES[report.what]} (`{REPORTS}/{name}.json`)",
        f"{_facts(report, own)}; {report.seconds:,.0f} s.",
        _table(
            ["figure", "value"],
            [
                *([label, _number(value)] for label, value in _figures(report) if value is not None),
                [f"95 % interval of {headline}, bootstrap", f"{low:.4f} to {high:.4f}"],
            ],
        ),
        _table(
            ["tissue", "precision", "recall", "F1", "n", *(["attempts"] if report.attempts else [])],
            [
                [
                    f"{t.code} {t.label}",
                    _number(row.precision),
                    _number(row.recall),
                    _number(row.f1),
                    _number(row.support),
                    *([_number(report.attempts.get(t.code))] if report.attempts else []),
                ]
                for t in TISSUES
                if (row := report.per_class.get(t.code)) is not None
            ],
        ),
        f"Confusion, rows {'true' if report.split else 'asked'}, columns named:",
        _table(
            ["", *CODES],
            [
                [code, *(str(count) for count in counts)]
                for code, counts in zip(CODES, report.confusion, strict=True)
            ],
        ),
        *_validator_figures(report, own),
        *_generator_figures(report, own),
    ]
    if report.data is not None:
        parts.append(f"Data: SHA-256 `{report.data}`.")
    return "\n\n".join(parts)


def _figures(report: FullReport) -> Iterator[tuple[str, float | None]]:
    yield "accuracy", report.accuracy
    yield "macro precision", report.precision
    yield "macro recall", report.recall
    yield "macro F1", report.macro_f1
    yield "macro F1 by the judge", report.macro_f1_judge
    yield "expected calibration error, 15 bins", report.ece
    yield "mean attempts for an accepted tile", report.mean_attempts
    for name, value in (report.baselines or {}).items():
        yield f"baseline for comparison: {name}, accuracy", value


def _validator_figures(report: FullReport, own: Manifest) -> Iterator[str]:
    parts = _MEASURED[report.what]
    if report.selective is not None:
        yield f"Selective accuracy ({_of(report.selective, own, parts)}):"
        yield _table(
            ["share of tiles answered", "confidence from", "accuracy"],
            [
                [_number(p.coverage), _number(p.confidence), _number(p.accuracy)]
                for p in report.selective.points
            ],
        )
    if report.cross_fitted is not None:
        yield (
            "Calibrated on nine tenths of the split and measured on the other, ten times "
            f"({_of(report.cross_fitted, own, parts)}): accuracy {_number(report.cross_fitted.accuracy)}, "
            f"expected calibration error {_number(report.cross_fitted.ece)}. The figures above are of the "
            "calibration that ships, which was fitted on this split."
        )
    if report.reliability is not None:
        yield f"Reliability ({_of(report.reliability, own, parts)}):"
        yield _table(
            ["confidence", "n", "mean confidence", "accuracy"],
            [
                [f"{b.low:.3f} to {b.high:.3f}", _number(b.n), _number(b.confidence), _number(b.accuracy)]
                for b in report.reliability.bins
                if b.n
            ],
        )
    if report.stress is not None:
        yield f"Under disturbance ({_of(report.stress, own, parts)}):"
        yield _table(
            ["disturbance", "accuracy"],
            [[name, _number(value)] for name, value in report.stress.accuracy.items()],
        )
    if report.outside is not None:
        yield (
            f"Images that are no such tiles, against real tiles ({_of(report.outside, own, parts)}); "
            f"{report.outside.refused:.2%} of the real tiles are refused:"
        )
        yield _table(
            ["set", "what", "n", "AUROC", "refused"],
            [
                [name, s.what, _number(s.n), _number(s.auroc), _number(s.refused)]
                for name, s in report.outside.sets.items()
            ],
        )


def _of(measured: Measured, own: Manifest, parts: Sequence[str]) -> str:
    """Split, size, seed and weights of a further figure, which is about `parts` of them."""
    split = [f"split {measured.split}"] if measured.split else []
    seed = [f"seed {measured.seed}"] if measured.seed is not None else []
    with_weights = _measured_with(measured.model, own, parts)
    return ", ".join([*split, f"n = {measured.n:,}", *seed, with_weights])


def _mean(value: float, parts: Sequence[float]) -> str:
    """A mean, and what it is the mean of."""
    shown = f"{value:.4f}"
    return f"{shown} (mean of {', '.join(f'{part:.4f}' for part in parts)})" if len(parts) > 1 else shown


def _generator_figures(report: FullReport, own: Manifest) -> Iterator[str]:
    parts = (*TILE_PARTS, "judge" if report.per_class_judge is not None else "validator")
    if report.per_class_judge is not None:
        yield "As the judge names them:"
        yield _table(
            ["tissue", "precision", "recall", "F1", "n"],
            [
                [code, *(_number(value) for value in (row.precision, row.recall, row.f1, row.support))]
                for code, row in report.per_class_judge.items()
            ],
        )
    for realism in report.realism or []:
        yield f"Realism in the features of {realism.space} ({_of(realism, own, parts)}; as many in each set):"
        yield _set_table(realism.generated, realism.real_vs_real)
        yield _table(
            ["tissue", "density", "coverage"],
            [
                [code, _number(realism.density_by_tissue[code]), _number(value)]
                for code, value in realism.coverage_by_tissue.items()
            ],
        )
    if report.transfer is not None:
        t = report.transfer
        yield (
            f"Classification accuracy score: {t.architecture} trained for {t.steps:,} steps on "
            f"{t.trained_on:,} generated tiles alone reaches {_mean(t.synthetic, t.synthetic_by_seed)}, on "
            f"as many real tiles {_mean(t.real, t.real_by_seed)}, ratio {t.ratio:.4f} ({_of(t, own, parts)})."
        )
        yield _table(
            ["tissue", "recall, trained on generated", "recall, trained on real"],
            [
                [code, _number(value), _number(t.recall_real.get(code))]
                for code, value in t.recall_synthetic.items()
            ],
        )
    if report.memorisation:
        yield (
            "Memorisation: distance to the nearest training tile, however turned or flipped, beside that of "
            "unseen real tiles:"
        )
        yield _table(
            ["space", "1st percentile of real", "generated below", "median generated", "median real", "of"],
            [
                [
                    m.space,
                    _number(m.limit),
                    _number(m.below),
                    _number(m.median_generated),
                    _number(m.median_real),
                    f"{_of(m, own, parts)}, {m.reference:,} real tiles",
                ]
                for m in report.memorisation
            ],
        )
    if report.structure is not None:
        yield f"Structure, relative difference from real ({_of(report.structure, own, parts)}):"
        yield _table(
            ["tissue", "power spectrum", "real vs real", "orientation coherence", "real vs real"],
            [
                [
                    code,
                    _number(row.spectrum),
                    _number(row.spectrum_real_vs_real),
                    _number(row.coherence),
                    _number(row.coherence_real_vs_real),
                ]
                for code, row in report.structure.by_tissue.items()
            ],
        )
    if report.real_or_generated is not None:
        r = report.real_or_generated
        yield (
            f"A small network trained to tell generated from real tiles is right for {r.accuracy:.4f} of "
            f"unseen tiles (0.5 would be perfect; real against real {r.real_vs_real:.4f}; "
            f"{_of(r, own, parts)})."
        )
    if report.fidelity is not None:
        f = report.fidelity
        yield (
            "Attributes asked for in words against the same attributes measured in the tile, Spearman "
            f"correlation within tissues, mean {f.mean:.4f} ({_of(f, own, parts)}):"
        )
        yield _table(
            ["attribute", "generated", "real tiles with these words"],
            [[name, _number(value), _number(f.ceiling.get(name))] for name, value in f.spearman.items()],
        )


def _set_table(generated: SetFigures, real: SetFigures) -> str:
    names = {"fid": "FID", "kid": "KID"}
    real_values = real.model_dump()
    return _table(
        ["figure", "generated against real", "real against real"],
        [
            [names.get(name, name), f"{value:.5f}", f"{real_values[name]:.5f}"]
            for name, value in generated.model_dump().items()
        ],
    )


def _adapters(reports: Mapping[str, FullReport]) -> list[str]:
    if not reports:
        return []
    described = {name: report.adapter for name, report in reports.items() if report.adapter is not None}
    keys = list(dict.fromkeys(key for adapter in described.values() for key in adapter.settings))
    rows = []
    for name, adapter in described.items():
        report = reports[name]
        settings = (adapter.settings.get(key) for key in keys)
        rows.append(
            [
                adapter.name,
                *(
                    ", ".join(value) if isinstance(value, list) else "-" if value is None else f"{value}"
                    for value in settings
                ),
                _number(report.precision),
                _number(report.recall),
                _number(report.macro_f1),
                _number(report.macro_f1_judge),
                _number(report.seconds),
                _number(adapter.bytes),
                f"n = {report.n:,}, seed {report.seed}, weights {report.model}",
            ]
        )
    header = [
        "adapter",
        *keys,
        "precision",
        "recall",
        "F1",
        "F1 by the judge",
        "seconds",
        "bytes",
        "measured on",
    ]
    return ["### LoRA adapters: first tiles, none discarded", _table(header, rows)]


def _detail(folder: Path, own: Manifest) -> Iterator[str]:
    """What the reports on the detail model say."""
    for path in sorted((folder / REPORTS).glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or content.get("what") != "detail":
            continue
        report = DetailReport.model_validate(content)
        yield f"### Detail against held-out real tiles of 224 px (`{REPORTS}/{path.name}`)"
        yield (
            f"n = {report.n:,}, seed {report.seed}, "
            f"{_measured_with(report.model, own, _MEASURED[report.what])}; {report.seconds:,.0f} s. "
            "Beside the detailed tiles stand a Lanczos enlargement of the same thumbnails and the "
            "autoencoder alone; for KID and FID also two halves of the real tiles."
        )
        rows = []
        for each in report.spaces:
            sets = (each.detailed, each.lanczos, each.autoencoder, each.real_vs_real)
            rows.append([f"KID, {each.space}", *(f"{one.kid:.5f}" for one in sets)])
            rows.append([f"FID, {each.space}", *(_number(one.fid) for one in sets)])
        columns = ("detailed", "lanczos", "autoencoder")
        for name, values in (("power spectrum", report.spectrum), ("gradients", report.gradients)):
            rows.append([f"{name}, distance from real", *(_number(values[key]) for key in columns), "-"])
        yield _table(["figure", *columns, "real against real"], rows)
        yield _table(
            ["tissue", "n", "nuclei a tile, real", "detailed", "Lanczos", "by dataset: n, real, detailed"],
            [
                [
                    code,
                    _number(row.n),
                    *(f"{value:.1f}" for value in (row.real, row.detailed, row.lanczos)),
                    "; ".join(
                        f"{name} {one.n}, {one.real:.0f}, {one.detailed:.0f}"
                        for name, one in row.sources.items()
                    ),
                ]
                for code, row in report.nuclei.items()
            ],
        )
        rmse = _number(report.rmse_max)
        yield (
            f"Autoencoder alone: PSNR {report.psnr:.2f} dB, SSIM {report.ssim:.4f}. Of {report.layouts:,} "
            f"layout tiles ({report.layouts_of}) the validator names the same tissue after detailing in "
            f"{report.class_unchanged:.2%}; resized to 28 px a tile is off by at most {rmse} grey levels "
            f"(root mean square); {report.failed} had no picture; {report.seconds_per_tile:.2f} s a tile."
        )
        yield f"Data: SHA-256 `{report.data}`."


def _comparison(table: Comparison) -> str:
    rows = [[_number(value) for value in row] for row in table.rows]
    return f"### {table.title}\n\n{table.note}\n\n{_table(table.columns, rows)}"


def _pictures(folder: Path) -> list[str]:
    pictures = sorted((folder / REPORTS).glob("*.png"))
    if not pictures:
        return []
    links = [f"![{path.stem.replace('-', ' ')}]({REPORTS}/{path.name})" for path in pictures]
    return ["### Pictures", *links]


def _training(weights: Weights) -> str:
    parts = ["How each component was made, as its training run wrote it down."]
    for name, record in weights.manifest.components.items():
        parts.append(f"### `{name}`\n\n```json\n{json.dumps(record, indent=1, ensure_ascii=False)}\n```")
    return "\n\n".join(parts)
