"""A weights folder of toy models, so that thousands of calls take minutes: `python -m tests.conformance.toy
FOLDER`. The code that runs on them is the real one."""

import shutil
import sys
from pathlib import Path

from pathsynth.text import TextEncoder
from tests.tiny import write_weights

REPORTS = Path(__file__).resolve().parents[2] / "weights" / "reports"


def main(folder: Path) -> None:
    """Write the folder, with the committed reports."""
    folder.mkdir(parents=True)
    shutil.copytree(REPORTS, folder / "reports")
    write_weights(folder, TextEncoder())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
