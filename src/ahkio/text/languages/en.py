"""English, as in FineWeb: the filters of datatrove's examples/fineweb.py in its order, with its thresholds.

Ours: `max_characters`, which spares the filters texts that are far beyond Gopher's 100,000 words; and GlotLID's 0.65,
for FineWeb asked fastText's lid.176 only. FineWeb's URL filter and HTML extraction come before there is text.
"""

from ahkio.text.rules import C4, FineWeb, Quality, Repetition, Rules

RULES = Rules(
    language="en",
    scores=(("en", 0.65), ("eng_Latn", 0.65)),
    max_characters=2_000_000,
    filters=(
        Repetition(),
        Quality(stop_words=("the", "be", "to", "of", "and", "that", "have", "with")),
        C4(),
        FineWeb(),
    ),
)
