"""Rules: what a document must be like to stay, and what is masked in it. `languages/` holds those of each language.

The filters are datatrove's; the fields of a filter's value are the parameters of datatrove's class, under its names.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar


@dataclass(frozen=True, kw_only=True)
class Repetition:
    """GopherRepetitionFilter: shares of repeated lines, paragraphs and word n-grams; 0 leaves a test out.

    The defaults are those of FineWeb, from table A1 of Gopher (arXiv 2112.11446).
    """

    name: ClassVar[str] = "gopher_repetition"
    dup_line_frac: float = 0.3
    dup_para_frac: float = 0.3
    dup_line_char_frac: float = 0.2
    dup_para_char_frac: float = 0.2
    top_n_grams: tuple[tuple[int, float], ...] = ((2, 0.2), (3, 0.18), (4, 0.16))
    dup_n_grams: tuple[tuple[int, float], ...] = ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.1))

    def build(self, language: str, exclusion_writer: Any) -> Any:
        from datatrove.pipeline.filters import GopherRepetitionFilter

        return GopherRepetitionFilter(language=language, exclusion_writer=exclusion_writer, **asdict(self))


@dataclass(frozen=True, kw_only=True)
class Quality:
    """GopherQualityFilter: numbers and lengths of words, symbols, bullets and stop words; 0 leaves a test out.

    The defaults are those of FineWeb, from Gopher (arXiv 2112.11446, section A1.1). The stop words are to be given.
    """

    name: ClassVar[str] = "gopher_quality"
    stop_words: tuple[str, ...]
    min_doc_words: int = 50
    max_doc_words: int = 100_000
    min_avg_word_length: int = 3
    max_avg_word_length: int = 10
    max_symbol_word_ratio: float = 0.1
    max_bullet_lines_ratio: float = 0.9
    max_ellipsis_lines_ratio: float = 0.3
    max_non_alpha_words_ratio: float = 0.8
    min_stop_words: int = 2

    def build(self, language: str, exclusion_writer: Any) -> Any:
        from datatrove.pipeline.filters import GopherQualityFilter

        return GopherQualityFilter(language=language, exclusion_writer=exclusion_writer, **asdict(self))


@dataclass(frozen=True, kw_only=True)
class C4:
    """C4QualityFilter: drops pages of few sentences, and cuts lines of boilerplate out of those that stay.

    The defaults are those of FineWeb: C4's (arXiv 1910.10683), but lines without a full stop stay.
    """

    name: ClassVar[str] = "c4_quality"
    remove_citations: bool = True
    filter_no_terminal_punct: bool = False
    min_num_sentences: int = 5
    min_words_per_line: int = 3
    max_word_length: int = 1000
    filter_lorem_ipsum: bool = True
    filter_javascript: bool = True
    filter_curly_bracket: bool = True
    filter_policy: bool = True

    def build(self, language: str, exclusion_writer: Any) -> Any:
        from datatrove.pipeline.filters import C4QualityFilter

        return C4QualityFilter(language=language, exclusion_writer=exclusion_writer, **asdict(self))


@dataclass(frozen=True, kw_only=True)
class FineWeb:
    """FineWebQualityFilter: how lines end, how short they are and how many repeat. The defaults are FineWeb's own."""

    name: ClassVar[str] = "fineweb_quality"
    line_punct_thr: float = 0.12
    short_line_thr: float = 0.67
    short_line_length: int = 30
    char_duplicates_ratio: float = 0.01
    new_line_ratio: float = 0.3

    def build(self, language: str, exclusion_writer: Any) -> Any:
        from datatrove.pipeline.filters import FineWebQualityFilter

        return FineWebQualityFilter(language=language, exclusion_writer=exclusion_writer, **asdict(self))


Filter = Repetition | Quality | C4 | FineWeb


@dataclass(frozen=True)
class Mask:
    """Something personal: matches of `pattern` for which `valid` holds are written over with `replacement`.

    A pattern must match within bounded length, so that no text takes long; and not its own replacement.
    """

    kind: str
    pattern: str
    replacement: str
    valid: Callable[[str], bool] | None = None


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What becomes of the documents of a domain, in this order: length, language, filters, masks.

    `language`: the code that datatrove splits words by. `scores`: pairs of a label of the language model and the least
    score at which a document stays; none: the language is not asked. `max_characters`: longer documents go unread; 0:
    none. `emails`, `public_ips`: masked as datatrove does; `masks`: what else is.
    """

    language: str = "en"
    scores: tuple[tuple[str, float], ...] = ()
    max_characters: int = 0
    filters: tuple[Filter, ...] = ()
    emails: bool = True
    public_ips: bool = True
    masks: tuple[Mask, ...] = ()
