"""Sentences for the client."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field, ValidationError

from tools.wording import argument_problems, without_folders


class Arguments(BaseModel):
    count: Annotated[int, Field(ge=1, le=9)]
    split: Literal["val", "test"] = "val"
    description: Annotated[str, Field(max_length=5)] = ""


def problems(arguments: dict[str, object]) -> str:
    with pytest.raises(ValidationError) as caught:
        Arguments.model_validate(arguments)
    return argument_problems(caught.value)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, "Wrong arguments: `count` is missing."),
        ({"count": 10}, "Wrong arguments: `count` must be less than or equal to 9 (got 10)."),
        ({"count": 10**30}, "Wrong arguments: `count` must be less than or equal to 9."),
        ({"count": 1, "split": "train"}, "Wrong arguments: `split` must be 'val' or 'test'."),
        (
            {"count": 1, "description": "sixsix"},
            "Wrong arguments: `description` must have at most 5 characters.",
        ),
        (
            {"count": "x", "split": 3},
            (
                "Wrong arguments: `count` must be a valid integer, unable to parse string as an integer; "
                "`split` must be 'val' or 'test' (got 3)."
            ),
        ),
    ],
)
def test_bad_arguments_become_one_sentence(arguments: dict[str, object], sentence: str) -> None:
    assert problems(arguments) == sentence


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("/srv/data/pathmnist.npz is damaged.", "pathmnist.npz is damaged."),
        ("Cannot write to /var/lib/pathsynth/: read-only.", "Cannot write to pathsynth: read-only."),
        ("'/srv/a/b.png' is missing.", "'b.png' is missing."),
        (f"{Path.home()}/.local/share/x.png is missing.", "x.png is missing."),
        (r"C:\Users\ada\tile.png is no image.", "tile.png is no image."),
        ("Found in /a/b, /c/d.", "Found in b, d."),
        ("Choose ADI and/or MUS at 28/64 px; image/png.", "Choose ADI and/or MUS at 28/64 px; image/png."),
        ("See pathsynth://images/0123456789abcdef now.", "See pathsynth://images/0123456789abcdef now."),
        ("Run `pathsynth data fetch --size 28`.", "Run `pathsynth data fetch --size 28`."),
    ],
)
def test_folders_are_cut_and_nothing_else(before: str, after: str) -> None:
    assert without_folders(before) == after


def test_a_home_folder_with_a_space_in_its_name_is_cut_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: Path("/Users/Ada Lovelace"))

    assert without_folders("/Users/Ada Lovelace/tiles/a.png is missing.") == "a.png is missing."
