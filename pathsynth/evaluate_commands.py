"""The commands `pathsynth evaluate`: what is measured, as tables, as JSON and as pictures."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from pathsynth import terminal
from pathsynth.errors import RequestError
from pathsynth.records import DetailReport, FullReport, Report, further_figures
from pathsynth.terminal import Json, Seed
from pathsynth.tissues import CODES

evaluate_app = typer.Typer(help="Measure the validator, the generator, or the loop.", no_args_is_help=True)


class HeldOut(StrEnum):
    """Splits that the validator is measured on."""

    VAL = "val"
    TEST = "test"


PerClass = Annotated[int, typer.Option(min=1, max=10_000, help="Tiles for each of the nine tissues.")]
Plots = Annotated[Path | None, typer.Option(help="Folder for the figures as pictures (PNG).")]


@evaluate_app.command("validator")
def evaluate_validator(
    split: Annotated[
        HeldOut, typer.Option(help="val: patients of training; test: other patients, another centre.")
    ] = HeldOut.VAL,
    full: Annotated[
        bool,
        typer.Option(
            "--full",
            help="Also what colour alone achieves, disturbed tiles, and images that are no such tiles.",
        ),
    ] = False,
    judge: Annotated[
        bool, typer.Option("--judge", help="Measure the judge in place of the validator.")
    ] = False,
    plots: Plots = None,
    as_json: Json = False,
) -> None:
    """Measure the validator on a whole split of PathMNIST."""
    if judge and full:
        raise typer.BadParameter("--full is of the validator; leave it out with --judge.")
    if plots is not None:
        terminal.make_folder(plots)
    with terminal.progress("Measuring the judge" if judge else "Measuring the validator") as show:
        studio = terminal.open_studio()
        if judge:
            report: Report = studio.evaluate_judge(split.value, show)
        else:
            measured = studio.study_validator if full else studio.evaluate_validator
            report = measured(split.value, show)
    _print_report(report, as_json)
    _write_plots(report, plots)


@evaluate_app.command("generator")
def evaluate_generator(
    per_class: PerClass = 50,
    seed: Seed = 0,
    judge: Annotated[
        bool, typer.Option("--judge", help="Have the independent judge name the tiles too.")
    ] = False,
    full: Annotated[
        bool,
        typer.Option(
            "--full",
            help="Also everything that compares the tiles with real ones: FID, KID, coverage, copies, "
            "texture, what they teach a classifier, whether they follow a description; takes long.",
        ),
    ] = False,
    tiles: Annotated[
        Path | None,
        typer.Option(help="File (.npz) to keep the tiles in, or to take them from when it is there already."),
    ] = None,
    earlier: Annotated[
        Path | None,
        typer.Option(
            help="Report (.json) of an earlier --full: what it compares with real tiles stays where neither "
            "the tiles nor the judge have changed since."
        ),
    ] = None,
    plots: Plots = None,
    as_json: Json = False,
) -> None:
    """Measure the first, unfiltered tiles of every tissue, as the validator names them."""
    if earlier is not None and not full:
        raise RequestError("--earlier belongs to --full; give both or neither.")
    known = None if earlier is None else _read_report(earlier)
    if not full and tiles is None and plots is None:
        with terminal.progress("Measuring first tiles") as show:
            report = terminal.open_studio().evaluate_generator(per_class, seed, show, judge=judge)
        _print_report(report, as_json)
        return
    for folder in (plots, tiles and tiles.parent):
        if folder is not None:
            terminal.make_folder(folder)
    with terminal.progress("Measuring first tiles") as show:
        studio = terminal.open_studio()
        if tiles is not None and tiles.exists():
            made = studio.kept_tiles(tiles, per_class, seed)
        else:
            made = studio.first_tiles(per_class, seed, show)
            if tiles is not None:
                made.save(tiles)
        report = (
            studio.study_generator(made, show, known) if full else studio.evaluate_tiles(made, judge, show)
        )
    _print_report(report, as_json)
    _write_plots(report, plots)
    if plots is not None:
        from pathsynth.plots import write_sheets

        write_sheets(made.images, made.asked, plots)


def _read_report(path: Path) -> FullReport:
    try:
        return FullReport.model_validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise RequestError(
            f"{path} is no report of `evaluate generator --full --json`; name another file or leave "
            "--earlier out."
        ) from error


@evaluate_app.command("loop")
def evaluate_loop(
    per_class: PerClass = 50, seed: Seed = 0, plots: Plots = None, as_json: Json = False
) -> None:
    """Measure what the loop accepted, as the independent judge names it."""
    if plots is not None:
        terminal.make_folder(plots)
    with terminal.progress("Measuring the loop") as show:
        report = terminal.open_studio().evaluate_loop(per_class, seed, show)
    _print_report(report, as_json)
    _write_plots(report, plots)


@evaluate_app.command("detail")
def evaluate_detail(
    most: Annotated[int, typer.Option(min=4, help="Held-out real tiles to compare with, at most.")] = 450,
    per_class: PerClass = 100,
    seed: Seed = 0,
    tiles: Annotated[
        Path | None,
        typer.Option(
            help="File (.npz) of `evaluate generator --tiles`: its tiles instead of those of PathMNIST val."
        ),
    ] = None,
    sheets: Annotated[
        Path | None, typer.Option(help="Folder for sheets to look at; they hold real tiles.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure the detail model against held-out real tiles (folder in PATHSYNTH_HIRES)."""
    if sheets is not None:
        terminal.make_folder(sheets)
    with terminal.progress("Measuring the detail") as show:
        studio = terminal.open_studio()
        made = None if tiles is None else studio.kept_tiles(tiles, per_class, seed)
        report = studio.evaluate_detail(most, per_class, seed, made, sheets, show)
    if as_json:
        terminal.print_json(report.model_dump(mode="json"))
    else:
        _print_detail_report(report)


def _print_detail_report(report: DetailReport) -> None:
    output = Console()
    table = Table(
        "figure",
        "detailed",
        "Lanczos",
        "autoencoder",
        "real",
        title=f"detail: n = {report.n}, model {report.model}",
    )
    for each in report.spaces:
        sets = (each.detailed, each.lanczos, each.autoencoder, each.real_vs_real)
        table.add_row(f"KID, {each.space}", *(f"{one.kid:.4f}" for one in sets))
        table.add_row(f"FID, {each.space}", *(f"{one.fid:.2f}" for one in sets))
    columns = ("detailed", "lanczos", "autoencoder")
    table.add_row("power spectrum off", *(f"{report.spectrum[name]:.3f}" for name in columns), "")
    table.add_row("gradients off", *(f"{report.gradients[name]:.2f}" for name in columns), "")
    for code, row in report.nuclei.items():
        table.add_row(
            f"nuclei, {code}, n = {row.n}", f"{row.detailed:.1f}", f"{row.lanczos:.1f}", "", f"{row.real:.1f}"
        )
    output.print(table)
    rmse = "-" if report.rmse_max is None else f"{report.rmse_max:.2f} at most"
    output.print(
        f"autoencoder: PSNR {report.psnr:.2f} dB, SSIM {report.ssim:.3f}. {report.layouts} layout tiles "
        f"({report.layouts_of}): tissue unchanged in {report.class_unchanged:.2%}, resizing off by {rmse}, "
        f"{report.failed} without a picture, {report.seconds_per_tile:.2f} s a tile.",
        markup=False,
    )


def _write_plots(report: Report, folder: Path | None) -> None:
    """Write the pictures of a report and say where they are."""
    if folder is None:
        return
    from pathsynth.plots import write_plots

    for path in write_plots(report, folder):
        print(path, file=sys.stderr)


def _print_report(report: Report, as_json: bool) -> None:
    if as_json:
        terminal.print_json(report.model_dump(mode="json"))
        return
    output = Console()
    of_what = f"{report.what}, {report.split} split" if report.split else report.what
    figures = Table(
        "tissue", "precision", "recall", "F1", "n", title=f"{of_what}: n = {report.n}, model {report.model}"
    )
    for code, row in report.per_class.items():
        figures.add_row(code, f"{row.precision:.3f}", f"{row.recall:.3f}", f"{row.f1:.3f}", str(row.support))
    figures.add_section()
    figures.add_row(
        "macro", f"{report.precision:.3f}", f"{report.recall:.3f}", f"{report.macro_f1:.3f}", str(report.n)
    )
    output.print(figures)
    confusion = Table(
        "true" if report.split else "asked", *CODES, title="Confusion: rows true or asked, columns named"
    )
    for code, counts in zip(CODES, report.confusion, strict=True):
        confusion.add_row(code, *(str(count) for count in counts))
    output.print(confusion)
    extra = {
        "accuracy": report.accuracy,
        "macro F1 of the judge": report.macro_f1_judge,
        "calibration error (ECE)": report.ece,
        "mean attempts": report.mean_attempts,
        **{f"baseline, {name}": value for name, value in (report.baselines or {}).items()},
        **further_figures(report),
    }
    for name, value in extra.items():
        if value is not None:
            output.print(f"{name}: {value:.4f}", markup=False)
    low, high = report.ci95
    output.print(
        f"95 % interval of {report.headline}: {low:.4f} to {high:.4f}; {report.source}", markup=False
    )
