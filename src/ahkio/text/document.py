"""A document: a text, where it comes from, and which documents must stay on the same side of the split."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Document:
    """One text of a corpus.

    `group` is what the split into training and held-out keeps together: the documents of one page in all languages.
    `fields` are further columns kept beside the text, such as both sides of a pair, and the `license` where known.
    """

    text: str
    id: str
    group: str
    fields: Mapping[str, str] = field(default_factory=dict)
