"""The nine tissues of PathMNIST: the one place that spells a tissue.

Order, codes and labels are those of PathMNIST (Kather et al., 2018; Yang et al., *MedMNIST v2*, 2023) and
never change: the index is the class the validator is trained on. The domain prompts condition the layout
model; the glossary is written for a student who looks at a colorectal H&E tile of about 112 um edge (224 px
at 0.5 um per px).
"""

from dataclasses import dataclass

from pathsynth.errors import RequestError


@dataclass(frozen=True)
class Confusion:
    """A tissue that this one is mistaken for, and what tells the two apart."""

    code: str
    difference: str


@dataclass(frozen=True)
class Glossary:
    """What one sees in a tile of the tissue, and the tissues it is confused with, the likeliest first."""

    seen: str
    confused_with: tuple[Confusion, ...]


@dataclass(frozen=True)
class Tissue:
    """One class of PathMNIST. `prompt` is its domain prompt, at most 30 word pieces of all-MiniLM-L6-v2."""

    index: int
    code: str
    label: str
    synonyms: tuple[str, ...]
    prompt: str
    glossary: Glossary


TISSUES: tuple[Tissue, ...] = (
    Tissue(
        index=0,
        code="ADI",
        label="adipose",
        synonyms=(
            "adipose tissue",
            "fat",
            "fatty tissue",
            "fat cells",
            "adipocytes",
            "pericolic fat",
            "mesenteric fat",
            "submucosal fat",
            "adipose layer",
            "fatty layer",
            "lipid-filled cells",
            "fat vacuoles",
            "round empty cells like bubbles",
        ),
        prompt=(
            "adipose tissue: large empty white rounded fat cells in a honeycomb, separated by very thin "
            "pink walls"
        ),
        glossary=Glossary(
            seen=(
                "Large, round to polygonal, optically empty cells in a honeycomb. The single fat droplet "
                "that filled each cell was dissolved during processing, so only a thin pink rim of "
                "cytoplasm and membrane is left, with a flat dark nucleus pressed against it here and "
                "there. Capillaries run in the thin septa."
            ),
            confused_with=(
                Confusion(
                    "BACK",
                    "Background has no walls at all: look for thin pink septa and flattened nuclei, which "
                    "prove that the white spaces are cells.",
                ),
                Confusion(
                    "MUC",
                    "Mucus is a bluish-grey, streaky substance that fills its space, while a fat cell is "
                    "empty and has a sharp, rounded outline.",
                ),
            ),
        ),
    ),
    Tissue(
        index=1,
        code="BACK",
        label="background",
        synonyms=(
            "empty slide",
            "bare glass",
            "blank background",
            "slide background",
            "no tissue",
            "empty glass without tissue",
            "glass slide",
            "blank area",
            "area outside the tissue",
        ),
        prompt=(
            "empty slide background: blank flat uniform purple or pale glass, no tissue, no cells, no texture"
        ),
        glossary=Glossary(
            seen=(
                "Bare glass beside the section: a flat, even field without cells or fibres, at most with "
                "dust, a loose fleck of tissue or a mounting artefact. On a slide it is near white. In this "
                "collection most of it is an even, deep purple, an artefact of the colour normalisation, "
                "and the rest pale lilac: go by the missing structure, not by the colour."
            ),
            confused_with=(
                Confusion(
                    "ADI",
                    "Fat shows thin pink cell walls that meet in a net; the background has no structure "
                    "that repeats.",
                ),
                Confusion(
                    "MUC",
                    "Pale mucus still has wisps, streaks and a few floating cells; the background is flat.",
                ),
                Confusion(
                    "DEB",
                    "Faint debris is granular and holds specks of nuclear dust; the background is smooth.",
                ),
            ),
        ),
    ),
    Tissue(
        index=2,
        code="DEB",
        label="debris",
        synonyms=(
            "necrosis",
            "necrotic debris",
            "dirty necrosis",
            "cell debris",
            "tumour necrosis",
            "tumor necrosis",
            "haemorrhage and dead cells",
            "dead cells",
            "ghost cells",
            "dead tumour cells",
            "necrotic material",
            "nuclear dust",
            "amorphous dead material",
            "pyknotic and karyorrhectic fragments",
        ),
        prompt=(
            "necrotic debris: smudged granular pink violet dead material, blurred ghost cells and dark "
            "nuclear dust"
        ),
        glossary=Glossary(
            seen=(
                "Dead material without architecture: smudged, granular, pink to violet matter in which cell "
                "borders are lost. Shrunken (pyknotic) and fragmented (karyorrhectic) nuclei lie in it as "
                "dark dust, together with ghost outlines of cells, neutrophils and sometimes blood or "
                "mucus. In the lumina of tumour glands it is called dirty necrosis, a hint at colorectal "
                "origin."
            ),
            confused_with=(
                Confusion(
                    "MUC",
                    "Mucus is smooth, bluish and streams in sheets; debris is granular, dirtier and full of "
                    "nuclear fragments.",
                ),
                Confusion(
                    "LYM",
                    "Lymphocytes are whole, round nuclei of even size; the dark specks in debris differ in "
                    "size and shape and are broken.",
                ),
                Confusion(
                    "STR",
                    "Stroma keeps fibres that run in a direction and intact spindle nuclei; debris has "
                    "neither.",
                ),
                Confusion(
                    "TUM",
                    "Viable tumour keeps sharp nuclei in glands or sheets; where the nuclei fade and the "
                    "borders dissolve, it is debris.",
                ),
            ),
        ),
    ),
    Tissue(
        index=3,
        code="LYM",
        label="lymphocytes",
        synonyms=(
            "lymphocyte",
            "lymphoid tissue",
            "lymphoid follicle",
            "lymphoid aggregate",
            "lymphocytic infiltrate",
            "Crohn-like lymphoid reaction",
            "inflammatory infiltrate of lymphocytes",
            "tumour-infiltrating lymphocytes",
            "immune cells",
            "B cells and T cells",
            "germinal centre",
            "chronic inflammation",
            "lymphatic tissue",
        ),
        prompt=(
            "lymphocytes: dense carpet of small dark blue round nuclei, evenly dotted, hardly any cytoplasm"
        ),
        glossary=Glossary(
            seen=(
                "A dense carpet of small, round, dark blue nuclei of about 7 um, barely larger than a red "
                "blood cell, each with a scanty rim of cytoplasm. They lie singly, without glands or fibres "
                "between them. A paler zone of larger cells may mark a germinal centre."
            ),
            confused_with=(
                Confusion(
                    "TUM",
                    "Tumour nuclei are two to four times larger, oval, vary in size and touch one another "
                    "in glands or sheets with visible cytoplasm; lymphocytes are small, round, alike and "
                    "separate.",
                ),
                Confusion(
                    "DEB",
                    "In debris the dark dots are broken and of all sizes on a granular ground; lymphocyte "
                    "nuclei are whole.",
                ),
                Confusion(
                    "NORM",
                    "The lamina propria also holds lymphocytes, but between round crypts with goblet cells; "
                    "a LYM tile shows none or only the edge of one.",
                ),
            ),
        ),
    ),
    Tissue(
        index=4,
        code="MUC",
        label="mucus",
        synonyms=(
            "mucin",
            "mucin pool",
            "mucin lake",
            "extracellular mucin",
            "mucinous material",
            "pool of mucus",
            "slime",
            "slimy material",
            "mucous secretion",
        ),
        prompt="mucus pool: pale bluish grey wispy flowing streaks and swirls, almost no cells",
        glossary=Glossary(
            seen=(
                "Extracellular mucin: a pale, bluish-grey to lilac substance that streams in wisps and "
                "sheets, nearly free of cells. A few floating epithelial cells, inflammatory cells or "
                "macrophages may lie in it. Large pools belong to mucinous carcinoma (mucin in more than "
                "half of the tumour), smaller ones to gland lumina."
            ),
            confused_with=(
                Confusion(
                    "DEB",
                    "Debris is granular and dotted with nuclear fragments; mucus is smooth, bluish and "
                    "streaky.",
                ),
                Confusion(
                    "STR",
                    "Loose or myxoid stroma still has pink collagen fibres and regularly spread spindle "
                    "nuclei; mucus has wisps but no fibres.",
                ),
                Confusion(
                    "ADI",
                    "Fat is empty within sharp, round cell walls; mucus has substance and no walls.",
                ),
                Confusion(
                    "BACK",
                    "Background is flat; in mucus faint streaks run through the field.",
                ),
            ),
        ),
    ),
    Tissue(
        index=5,
        code="MUS",
        label="smooth muscle",
        synonyms=(
            "muscle",
            "muscularis propria",
            "muscle layer",
            "muscular wall of the colon",
            "smooth muscle bundles",
            "muscularis mucosae",
            "smooth muscle cells",
            "leiomyocytes",
            "muscular tissue",
            "muscle coat",
            "muscle fibres",
        ),
        prompt=(
            "smooth muscle: deep pink tightly packed parallel bundles with slender cigar-shaped nuclei "
            "along the fibres"
        ),
        glossary=Glossary(
            seen=(
                "Tightly packed, deeply pink spindle cells in parallel bundles that cross one another at "
                "angles in the two layers of the muscularis propria. The nuclei are slender with blunt ends "
                "(cigar-shaped) and lie along the fibre in its middle; cut across, the cells are pink "
                "polygons of different size, some with a round nucleus in the centre. Little lies between "
                "the cells."
            ),
            confused_with=(
                Confusion(
                    "STR",
                    "Stroma is paler and looser: wavy collagen with gaps, nuclei that are thin with pointed "
                    "ends or plump and irregular, often with inflammatory cells. Muscle is denser, deeper "
                    "pink and even, its nuclei blunt. This is the commonest confusion of all nine.",
                ),
                Confusion(
                    "DEB",
                    "Muscle keeps whole nuclei and one direction of fibres; debris is granular and has "
                    "neither.",
                ),
            ),
        ),
    ),
    Tissue(
        index=6,
        code="NORM",
        label="normal colon mucosa",
        synonyms=(
            "normal mucosa",
            "normal colonic mucosa",
            "healthy colon mucosa",
            "benign colonic glands",
            "normal crypts",
            "colonic crypts with goblet cells",
            "healthy bowel lining",
            "mucosa",
            "normal colonic epithelium",
            "goblet cells",
            "crypts of Lieberkühn",
            "regular tubular glands",
        ),
        prompt=(
            "normal colon mucosa: regular round crypts, pale foamy goblet cells, small basal nuclei, purple "
            "lamina propria"
        ),
        glossary=Glossary(
            seen=(
                "Straight tubular crypts, evenly spaced and of equal size, like test tubes in a rack; cut "
                "across they are round rings. Their lining is a single layer of columnar cells and goblet "
                "cells with a pale drop of mucin, with small nuclei in one row at the base. The lamina "
                "propria between the crypts holds plasma cells, lymphocytes and a few eosinophils."
            ),
            confused_with=(
                Confusion(
                    "TUM",
                    "Tumour glands are irregular, crowded and fused; their nuclei are large, dark, stacked "
                    "in several layers, and goblet cells are few. Normal crypts are round, evenly spaced "
                    "and have one row of basal nuclei.",
                ),
                Confusion(
                    "LYM",
                    "When the lamina propria is full of lymphocytes, look for the pale rings of crypts with "
                    "goblet cells.",
                ),
                Confusion(
                    "MUC",
                    "The mucin of goblet cells sits in small round drops inside a gland; a mucus pool is a "
                    "continuous field.",
                ),
            ),
        ),
    ),
    Tissue(
        index=7,
        code="STR",
        label="cancer-associated stroma",
        synonyms=(
            "stroma",
            "tumour stroma",
            "tumor stroma",
            "desmoplastic stroma",
            "desmoplasia",
            "fibrous connective tissue around the tumour",
            "collagen and fibroblasts",
            "fibroblasts",
            "collagen fibres",
            "fibrous tissue",
            "connective tissue",
        ),
        prompt=(
            "cancer-associated stroma: loose wavy pale pink collagen fibres with gaps, scattered spindle "
            "fibroblasts"
        ),
        glossary=Glossary(
            seen=(
                "The connective tissue that a carcinoma provokes (desmoplasia): wavy, pale pink collagen in "
                "bundles of changing direction, with spindle-shaped to plump fibroblasts whose nuclei are "
                "thin with pointed ends or oval. Small vessels, clefts, oedema and scattered lymphocytes "
                "lie between the fibres."
            ),
            confused_with=(
                Confusion(
                    "MUS",
                    "Muscle is deeper pink, dense and parallel, with blunt, cigar-shaped nuclei inside the "
                    "fibres; stroma is paler, wavy and loose, with pointed or plump nuclei between the "
                    "fibres.",
                ),
                Confusion(
                    "DEB",
                    "Debris has lost its fibres and its whole nuclei; stroma keeps both.",
                ),
                Confusion(
                    "LYM",
                    "Inflamed stroma holds many lymphocytes, but pink fibres stay visible between them.",
                ),
                Confusion(
                    "MUC",
                    "Myxoid stroma is bluish too, yet has fibres and fibroblasts at regular distance; mucus "
                    "has hardly any cells.",
                ),
            ),
        ),
    ),
    Tissue(
        index=8,
        code="TUM",
        label="colorectal adenocarcinoma epithelium",
        synonyms=(
            "tumour",
            "tumor",
            "cancer",
            "carcinoma",
            "adenocarcinoma",
            "colorectal cancer",
            "malignant glands",
            "tumour epithelium",
            "tumor epithelium",
            "cribriform tumour glands",
            "tumour cells",
            "cancer cells",
            "malignant epithelium",
            "poorly or moderately differentiated carcinoma",
            "neoplastic glands",
        ),
        prompt=(
            "adenocarcinoma epithelium: crowded irregular fused glands, large dark purple stacked nuclei, "
            "no goblet cells"
        ),
        glossary=Glossary(
            seen=(
                "Crowded, irregular glands that fuse, branch or form sieve-like (cribriform) patterns, or "
                "solid sheets in poorly differentiated tumours. The nuclei are large, elongated and dark, "
                "vary in size, and are stacked in several layers instead of lying at the base; mitoses are "
                "frequent and goblet cells few or absent. Lumina may hold dirty necrosis."
            ),
            confused_with=(
                Confusion(
                    "NORM",
                    "Normal crypts are round, of equal size and distance, with goblet cells and one row of "
                    "small basal nuclei; tumour glands are uneven, with large stacked nuclei.",
                ),
                Confusion(
                    "LYM",
                    "Lymphocyte nuclei are small, round, alike and separate; tumour nuclei are larger, "
                    "oval, uneven and joined in an epithelium with visible cytoplasm.",
                ),
                Confusion(
                    "DEB",
                    "Necrotic tumour loses its nuclei and borders; where whole nuclei line a gland it is "
                    "viable tumour.",
                ),
                Confusion(
                    "STR",
                    "Single tumour cells or buds in stroma are larger, rounder and cohesive, while "
                    "fibroblasts are slender and lie along the fibres.",
                ),
            ),
        ),
    ),
)

CODES: tuple[str, ...] = tuple(tissue.code for tissue in TISSUES)

_BY_CODE: dict[str, Tissue] = {tissue.code: tissue for tissue in TISSUES}


def by_code(code: str) -> Tissue:
    """The tissue with this code; capitals and surrounding spaces do not matter.

    Raises:
        RequestError: no tissue has this code; the message lists the nine.
    """
    tissue = _BY_CODE.get(code.strip().upper())
    if tissue is None:
        shown = code.strip() if len(code.strip()) <= 20 else code.strip()[:20] + "..."
        raise RequestError(f"There is no tissue with the code {shown!r}; choose one of {', '.join(CODES)}.")
    return tissue


def named_tissue(description: str) -> Tissue | None:
    """The tissue whose code, label, synonym or prompt the description is, letter for letter but for case."""
    wanted = description.strip().casefold()
    for tissue in TISSUES:
        if wanted in {
            name.casefold() for name in (tissue.code, tissue.label, *tissue.synonyms, tissue.prompt)
        }:
            return tissue
    return None
