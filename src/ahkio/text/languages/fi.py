"""Finnish, as in FineWeb2: the filters of its fineweb-2-pipeline.py in its order, with the thresholds and stop words of
its configs/fin_Latn.yml (huggingface/fineweb-2, arXiv 2506.20920).

FineWeb2 tuned them on the web: verse and lists do not pass, and few texts of under 50 words. It asks GlotLID for the
language, at 0.764. Ours: 0.65 where fastText's lid.176 is asked, which is FineWeb's; `max_characters`, which spares the
filters texts that are far beyond Gopher's 100,000 words; and the masks of what is personal in Finland.
"""

import re

from ahkio.text.rules import FineWeb, Mask, Quality, Repetition, Rules

CHECK = "0123456789ABCDEFHJKLMNPRSTUVWXY"


def is_personal_id(text: str) -> bool:
    """Whether the check character of a personal identity code (DDMMYY, century, number, check) is right.

    Individual numbers from 900 on are given to nobody, and used in examples.
    """
    day_month_year, number, check = text[:6], text[7:10], text[10]
    return "002" <= number < "900" and CHECK[int(day_month_year + number) % 31] == check


def is_iban(text: str) -> bool:
    """Whether the check digits of an account number are right (ISO 13616: the rearranged number modulo 97 is 1)."""
    compact = re.sub(r"\s", "", text)
    return int("".join(str(int(sign, 36)) for sign in compact[4:] + compact[:4])) % 97 == 1


MASKS = (
    Mask(
        "personal_id",
        r"\b(?:0[1-9]|[12]\d|3[01])(?:0[1-9]|1[0-2])\d\d[-+A-FU-Y]\d{3}[0-9A-FHJ-NPR-Y]\b",
        "010101-900R",  # for examples only, by its number
        is_personal_id,
    ),
    Mask("iban", r"\bFI\d\d(?: ?\d{4}){3} ?\d\d\b", "FI00 0000 0000 0000 00", is_iban),
    Mask(  # all numbers written with the country's code, and mobile numbers
        "phone",
        r"(?<![\w+])(?:(?:\+|00)358[ -]?(?:\(0\)[ -]?)?[1-9]\d?|0(?:4\d|50))(?:[ -]?\d){5,8}(?![\w-])",
        "+358 00 000 0000",
    ),
)

WORDS = (
    *("ja", "on", "oli", "hän", "vuonna", "myös", "joka", "se", "ei", "sen", "ovat", "sekä", "mutta", "että", "tai"),
    *("vuoden", "kanssa", "hänen", "s.", "jälkeen", "the"),
)

RULES = Rules(
    language="fi",
    scores=(("fi", 0.65), ("fin_Latn", 0.764)),
    max_characters=2_000_000,
    filters=(
        Repetition(
            dup_line_frac=0.333,
            dup_para_frac=0,
            dup_line_char_frac=0,
            dup_para_char_frac=0,
            top_n_grams=((2, 0.101), (3, 0.132), (4, 0.163)),
            dup_n_grams=((5, 0.171), (6, 0.149), (7, 0.131), (8, 0.119), (9, 0.106), (10, 0.094)),
        ),
        FineWeb(line_punct_thr=0.25, short_line_thr=999, char_duplicates_ratio=0.1, new_line_ratio=0.219),
        Quality(
            stop_words=WORDS,
            min_avg_word_length=4,
            max_avg_word_length=13,
            max_non_alpha_words_ratio=0.755,
        ),
    ),
    masks=MASKS,
)
