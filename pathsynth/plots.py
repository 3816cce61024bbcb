"""Reports as pictures: confusion, reliability, selective accuracy, attempts, spectra, adapters, samples.

Every picture names what it was measured on. Pictures show generated tiles alone, never real ones.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from pathsynth.images import contact_sheet, encode_png, upscale
from pathsynth.mark import marked
from pathsynth.provenance import provenance_text
from pathsynth.records import FullReport, Report
from pathsynth.store import write_atomically
from pathsynth.tissues import CODES, TISSUES

SAMPLES = 12
_SAMPLE_EDGE = 112
_COLUMNS = 6
_DPI = 110
_COLOURS = 64


def write_plots(report: Report, folder: Path) -> list[Path]:
    """Write every picture that the report has figures for into `folder`, made when absent; return their
    paths.
    """
    name = report.what if report.split is None else f"{report.what}-{report.split}"
    pictures: dict[str, Figure] = {"confusion": confusion(report)}
    if report.attempts is not None:
        pictures["attempts"] = attempts(report)
    if not isinstance(report, FullReport):
        return _saved(pictures, name, folder)
    if report.reliability is not None:
        pictures["reliability"] = reliability(report)
    if report.selective is not None:
        pictures["selective"] = selective(report)
    if report.structure is not None:
        pictures["spectra"] = spectra(report)
    return _saved(pictures, name, folder)


def _saved(pictures: Mapping[str, Figure], name: str, folder: Path) -> list[Path]:
    return [_save(figure, folder / f"{what}-{name}.png") for what, figure in pictures.items()]


def write_sheets(
    tiles: npt.NDArray[np.uint8], asked: npt.NDArray[np.int64], folder: Path, samples: int = SAMPLES
) -> list[Path]:
    """Write a sheet of the first `samples` tiles (N, 28, 28, 3) of each tissue in `asked` (N,), enlarged."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for tissue in TISSUES:
        chosen = tiles[asked == tissue.index][:samples]
        if len(chosen) == 0:
            continue
        shown = [marked(upscale(tile, _SAMPLE_EDGE)) for tile in chosen]
        sheet = contact_sheet(shown, [tissue.label] * len(shown), _COLUMNS)
        path = folder / f"sheet-{tissue.code}.png"
        text = provenance_text((), f"Synthetic tiles asked for as {tissue.label}, none discarded")
        write_atomically(path, encode_png(sheet, text, 9, _COLOURS))
        paths.append(path)
    return paths


def write_adapter_plot(reports: Sequence[FullReport], path: Path) -> Path:
    """Write precision, recall and F1 of reports of LoRA adapters beside each other.

    Raises:
        ValueError: there is no report, or one says of no adapter.
    """
    names = [report.adapter.name for report in reports if report.adapter is not None]
    if not names or len(names) != len(reports):
        raise ValueError("a comparison of adapters needs reports that each name their adapter")
    figure, axes = _axes("LoRA adapters: first tiles, none discarded", 1.5 + 1.1 * len(names), 4.0)
    places = np.arange(len(reports))
    for i, figure_name in enumerate(("precision", "recall", "macro_f1")):
        values = [getattr(report, figure_name) for report in reports]
        axes.bar(places + 0.27 * (i - 1), values, 0.25, label=figure_name.replace("_", " "))
    axes.set_xticks(places, [f"{n}\nn = {r.n:,}" for n, r in zip(names, reports, strict=True)])
    axes.set_ylim(0, 1)
    axes.legend()
    return _save(figure, path)


def _of(report: Report) -> str:
    split = f"{report.split}, " if report.split else ""
    seed = f", seed {report.seed}" if report.seed is not None else ""
    return f"{split}n = {report.n:,}{seed}, model {report.model}"


def _axes(title: str, width: float = 5.2, height: float = 4.6) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=9)
    return figure, axes


def _save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=_DPI)
    with Image.open(drawn) as picture:
        write_atomically(path, encode_png(np.array(picture.convert("RGB")), None, 9, _COLOURS))
    return path


def confusion(report: Report) -> Figure:
    """The 9 x 9 confusion matrix: colours are shares of the row, numbers are counts."""
    figure, axes = _axes(f"{report.what}: confusion\n{_of(report)}")
    counts = np.array(report.confusion)
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        if count:
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(count), ha="center", va="center", fontsize=7, color=colour)
    axes.set_xticks(range(len(CODES)), CODES, fontsize=7)
    axes.set_yticks(range(len(CODES)), CODES, fontsize=7)
    axes.set_xlabel("named")
    axes.set_ylabel("true" if report.split else "asked")
    return figure


def reliability(report: FullReport) -> Figure:
    """Accuracy over confidence, the diagonal of perfect calibration, and the share of tiles in each bin."""
    figure, axes = _axes(f"{report.what}: reliability, ECE {report.ece or 0:.4f}\n{_of(report)}")
    bins = report.reliability.bins if report.reliability is not None else []
    total = max(1, sum(each.n for each in bins))
    axes.bar(
        [each.low for each in bins],
        [each.n / total for each in bins],
        [each.high - each.low for each in bins],
        align="edge",
        color="lightgrey",
        label="share of tiles",
    )
    filled = [each for each in bins if each.n]
    axes.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle="--", label="perfect")
    axes.plot(
        [each.confidence or 0.0 for each in filled],
        [each.accuracy or 0.0 for each in filled],
        marker="o",
        label="accuracy",
    )
    axes.set_xlabel("confidence")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.legend(loc="upper left", fontsize=8)
    return figure


def selective(report: FullReport) -> Figure:
    """Accuracy over the share of tiles answered, the surest first."""
    figure, axes = _axes(f"{report.what}: selective accuracy\n{_of(report)}")
    points = report.selective.points if report.selective is not None else []
    axes.plot([point.coverage for point in points], [point.accuracy for point in points], marker="o")
    axes.set_xlabel("share of tiles answered")
    axes.set_ylabel("accuracy of the answers")
    return figure


def attempts(report: Report) -> Figure:
    """Proposals for each accepted tile, by tissue; tissues of which none was accepted are named."""
    figure, axes = _axes(f"{report.what}: attempts for an accepted tile\n{_of(report)}", 6.0, 3.6)
    tried = report.attempts or {}
    kept = {code: report.per_class[code].support for code in tried}
    axes.bar(list(tried), [tried[code] / kept[code] if kept[code] else 0 for code in tried])
    for place, code in enumerate(tried):
        if not kept[code]:
            axes.text(place, 0, f"none of {tried[code]}", rotation=90, ha="center", va="bottom", fontsize=7)
    axes.axhline(1, color="black", linewidth=0.8, linestyle="--")
    axes.set_ylabel("attempts")
    return figure


def spectra(report: FullReport) -> Figure:
    """Radial power spectra of generated and of real tiles, a panel for each tissue."""
    figure = Figure(figsize=(8.0, 7.0), layout="constrained")
    figure.suptitle(f"{report.what}: radial power spectrum\n{_of(report)}", fontsize=9)
    by_tissue = report.structure.by_tissue if report.structure is not None else {}
    for place, (code, row) in enumerate(by_tissue.items()):
        axes = figure.add_subplot(3, 3, place + 1)
        cycles = range(1, len(row.spectrum_of_real) + 1)
        axes.semilogy(cycles, row.spectrum_of_real, label="real", color="black", linewidth=0.9)
        axes.semilogy(cycles, row.spectrum_generated, label="generated")
        axes.set_title(f"{code}, {row.spectrum:.0%} apart", fontsize=8)
        axes.tick_params(labelsize=6)
        if place == 0:
            axes.legend(fontsize=7)
    figure.supxlabel("cycles a tile", fontsize=8)
    return figure
