"""Captions of training batches as text contexts, with a cache, since a few thousand captions make up most of
a run.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch

from pathsynth.text import TextContext, TextEncoder

_CACHE_SIZE = 50_000


class CaptionEncoder:
    """Encodes captions, keeping the most recent ones in half precision (49 kB each)."""

    def __init__(self, encoder: TextEncoder) -> None:
        self._encoder = encoder
        self._cache: OrderedDict[str, tuple[torch.Tensor, torch.Tensor]] = OrderedDict()

    def __call__(self, captions: Sequence[str]) -> TextContext:
        """Contexts of a batch of captions."""
        missing = sorted({text for text in captions if text not in self._cache}, key=len)
        for start in range(0, len(missing), 32):
            chunk = missing[start : start + 32]
            context = self._encoder.encode(chunk)
            for i, text in enumerate(chunk):
                self._cache[text] = (context.states[i].half(), context.mask[i])
        for text in captions:
            self._cache.move_to_end(text)
        states, masks = zip(*(self._cache[text] for text in captions), strict=True)
        while len(self._cache) > _CACHE_SIZE:
            self._cache.popitem(last=False)
        return TextContext(torch.stack(states).float(), torch.stack(masks))
