"""PathSynth: verified synthetic colorectal histopathology tiles from a textual description."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("pathsynth")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"
