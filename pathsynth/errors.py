"""Errors whose text is meant for the person or the assistant that caused them.

Every message is one clear sentence that says what was wrong and what to do; callers print it as it is.
"""


class PathSynthError(Exception):
    """Base of every error that PathSynth raises on purpose."""


class DataError(PathSynthError):
    """A dataset is missing, damaged or not what it should be."""


class WeightsError(PathSynthError):
    """A weights folder is missing a file, or a file does not match its manifest."""


class ImageError(PathSynthError):
    """An image cannot be read, or is not something that can be classified."""


class RequestError(PathSynthError):
    """A request asks for something that cannot be done: an unknown tissue, a count out of range."""


class StoreError(PathSynthError):
    """The image store cannot be written or does not hold what was asked for."""


class OutOfTimeError(PathSynthError):
    """The time that a call may take is spent, and nothing can be answered yet."""


class TrainingError(PathSynthError):
    """A training run cannot start, go on, or be resumed."""
