"""The mix: which row of which source stands at place i of a run, as a pure function of (plan, i).

Nothing here has a memory or grows with the corpus. A run is resumed by naming a row, and read by any number of ranks.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from hashlib import blake2b
from heapq import heappop, heappush
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ahkio.core.errors import UserError
from ahkio.core.stage import Stage

LONGEST_PERIOD = 65_536  # rows after which the order of the sources repeats; its table is held in memory
ROUNDS = 8  # of the Feistel network
ROWS_AT_ONCE = 256  # worked out together

Ints = NDArray[Any]


class Row(NamedTuple):
    """What stands at one place of a run: the source's `n`-th draw, which is row `row` of it in epoch `epoch`."""

    source: str
    n: int
    epoch: int
    row: int


@dataclass(frozen=True, kw_only=True)
class Share:
    """A source and its share of the rows of a segment. The name is the source's identity in all segments."""

    name: str
    tokens: Stage  # a Tokens stage
    weight: float  # against the segment's other weights: 30/30/30/10 and 0.3/0.3/0.3/0.1 are the same
    max_epochs: float = 4.0  # how often its text may have been read when the segment ends; more is refused

    def __post_init__(self) -> None:
        for field, value in (("weight", self.weight), ("max_epochs", self.max_epochs)):
            if not 0 < value < math.inf:
                raise UserError(f"Source {self.name!r} has a {field} of {value}; give it a number above 0.")
        if getattr(self.tokens, "side", "train") != "train":
            raise UserError(f"Source {self.name!r} is held-out text, which is never trained on; give it side='train'.")


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A stretch of `rows` rows in which the shares stay the same."""

    rows: int  # 0: to the end of the run
    shares: tuple[Share, ...]

    def __post_init__(self) -> None:
        if not self.shares or self.rows < 0:
            raise UserError(
                f"A segment has {self.rows} rows and {len(self.shares)} shares; it takes at least one share, and a "
                "number of rows or 0 for the rest of the run."
            )
        if len(set(self.names)) < len(self.names):
            raise UserError(f"A segment names a source twice: {', '.join(self.names)}; give each one share.")
        if sum(self.weights) > LONGEST_PERIOD:
            stated = ", ".join(f"{share.name} {share.weight}" for share in self.shares)
            raise UserError(
                f"The weights {stated} come out even only every {sum(self.weights):,} rows (at most "
                f"{LONGEST_PERIOD:,}); state weights in round figures, such as 30, 30, 40."
            )

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(share.name for share in self.shares)

    @cached_property
    def weights(self) -> tuple[int, ...]:
        """The exact weights as the smallest whole numbers."""
        exact = [Fraction(str(share.weight)) for share in self.shares]
        scale = math.lcm(*(weight.denominator for weight in exact))
        whole = [int(weight * scale) for weight in exact]
        return tuple(weight // math.gcd(*whole) for weight in whole)


@dataclass(frozen=True, kw_only=True)
class Mix:
    """Segments one after the other. To change a run under way, close the last one at a row ahead and append another:
    no row before it changes."""

    segments: tuple[Segment, ...]
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.segments:
            raise UserError("The mix has no segment; give it one, with a share for each source.")
        for number, segment in enumerate(self.segments[:-1]):
            if not segment.rows:
                raise UserError(f"Segment {number} of the mix is open and others follow it; state its rows.")
        for segment in self.segments:
            for share in segment.shares:
                if share.tokens != self.sources[share.name]:
                    raise UserError(f"Source {share.name!r} means other tokens in a later segment; give it a new name.")

    @cached_property
    def sources(self) -> dict[str, Stage]:
        """The tokens of each source, in the order of first mention."""
        sources: dict[str, Stage] = {}
        for segment in self.segments:
            for share in segment.shares:
                sources.setdefault(share.name, share.tokens)
        return sources

    @property
    def rows(self) -> int:
        """The rows of all segments; 0 when the last one is open."""
        return sum(segment.rows for segment in self.segments) if self.segments[-1].rows else 0


@dataclass(frozen=True)
class Epochs:
    """As long as a source is read at most so often."""

    source: str
    times: float

    def __post_init__(self) -> None:
        if not 0 < self.times < math.inf:
            raise UserError(f"{self.times} epochs of source {self.source!r} are no budget; give a number above 0.")

    def __str__(self) -> str:
        return f"{self.times:g} epoch{'s' * (self.times != 1)} of {self.source}"


def epochs(source: str, times: float = 1.0) -> Epochs:
    """The budget of a run that reads `source` so often: Train(steps=epochs("finnish", 1))."""
    return Epochs(source, float(times))


@dataclass(frozen=True)
class Plan:
    """A mix and what there is to draw from."""

    mix: Mix
    available: Mapping[str, int]  # whole rows of each source
    length: int  # tokens in a row

    def row(self, i: int) -> Row:
        """What stands at place `i` of the run."""
        if i < 0 or 0 < self.mix.rows <= i:
            raise IndexError(f"row {i} of a mix of {self.mix.rows or 'endless'} rows")
        block, place = divmod(i, ROWS_AT_ONCE)
        return self._block(block)[place]

    @cached_property
    def _block(self) -> Callable[[int], list[Row]]:
        """The rows from ROWS_AT_ONCE x `block` on, of which the last few blocks are kept: neighbours come cheaply."""
        return lru_cache(maxsize=4)(self._rows)

    def _rows(self, block: int) -> list[Row]:
        first = block * ROWS_AT_ONCE
        sources, n_N = self._draws(first, min(first + ROWS_AT_ONCE, self.mix.rows or first + ROWS_AT_ONCE))
        rows_N = np.array([max(1, self.available[source]) for source in sources])  # a source without rows is refused
        epoch_N, k_N = np.divmod(n_N, rows_N)
        epochs = epoch_N.tolist()
        keys_NR = [_keys(self.mix.seed, *draw) for draw in zip(sources, epochs, strict=True)]
        row_N = shuffled(k_N, rows_N, np.array(keys_NR, np.uint64).T)
        return [Row(*row) for row in zip(sources, n_N.tolist(), epochs, row_N.tolist(), strict=True)]

    def _draws(self, first: int, stop: int) -> tuple[list[str], Ints]:
        """The source of each row, and how many rows it gave before."""
        sources, n = [], []
        while first < stop:
            at = bisect_right(self._starts, first)
            end = min([stop, *self._starts[at : at + 1]])
            names, n_N = self._spans[at - 1].draws(first, end)
            sources += names
            n.append(n_N)
            first = end
        return sources, np.concatenate(n)

    def counts(self, rows: int) -> dict[str, int]:
        """How many of the first `rows` rows come from each source."""
        return self._span(rows).counts(rows)

    def epochs(self, rows: int) -> dict[str, float]:
        """How often the first `rows` rows go through each source."""
        return {name: count / self.available[name] if count else 0.0 for name, count in self.counts(rows).items()}

    def rows_within(self, budget: Epochs) -> int:
        """The most rows that keep within `budget`."""
        name, limit = budget.source, int(Fraction(str(budget.times)) * self.available[budget.source])
        last = self._spans[-1]
        if name not in last.names and last.before[name] <= limit:
            raise UserError(
                f"The mix never reads more than {budget}: its last segment leaves that source out; state the steps."
            )
        high = 1
        while self.counts(high)[name] <= limit:
            high *= 2
        return bisect_right(range(high), limit, key=lambda rows: self.counts(rows)[name]) - 1

    def check(self, rows: int) -> None:
        """Refuse a run of `rows` rows that this mix and these sources can't give."""
        for name in self.mix.sources:
            if not self.available[name]:
                raise UserError(
                    f"Source {name!r} has fewer than the {self.length + 1:,} tokens that one row takes; give it more "
                    "text, make rows shorter, or leave it out."
                )
        if 0 < self.mix.rows < rows:
            raise UserError(
                f"The run takes {rows:,} rows and the mix ends after {self.mix.rows:,}; append a segment, or let the "
                "last one be open (rows=0)."
            )
        self._check_repetition(rows)

    def _check_repetition(self, rows: int) -> None:
        end = 0
        for segment in self.mix.segments:
            end = min(rows, end + segment.rows) if segment.rows else rows
            counts = self.counts(end)
            for share in segment.shares:
                self._check_share(share, counts[share.name], end)
            if end == rows:
                return

    def _check_share(self, share: Share, count: int, end: int) -> None:
        rows = self.available[share.name]
        if count > share.max_epochs * rows:
            raise UserError(
                f"Source {share.name!r} has {rows:,} rows ({rows * self.length:,} tokens) and by row {end:,} the mix "
                f"needs {count:,} of them: {count / rows:.2f} epochs, above its max_epochs of {share.max_epochs:g}. "
                "Lower its weight, give it more text, make the run shorter, or raise max_epochs."
            )

    def _span(self, i: int) -> "Span":
        return self._spans[bisect_right(self._starts, i) - 1]

    @cached_property
    def _spans(self) -> list["Span"]:
        return spans_of(self.mix)

    @cached_property
    def _starts(self) -> list[int]:
        return [span.start for span in self._spans]


# ---------------------------------------------------------------------------------------------------------------------
# Whose turn it is


class Order(NamedTuple):
    """One period of a segment: the source at each place, how many rows it gave before in the period, and its places."""

    sources: Ints
    ranks: Ints
    places: list[list[int]]


@lru_cache(maxsize=64)
def order_of(weights: tuple[int, ...]) -> Order:
    """The order in which sources of whole `weights` take turns over one period of sum(weights) rows.

    A source's k-th row may come once more than k - 1 rows are its due and has to come before k are overdue; of the
    rows that may come, the most pressing does. Some order keeps all these limits (shares sum to one), so earliest
    deadline first does: every prefix holds each source within one row of its share (R. Tijdeman, "The chairman
    assignment problem", 1980).
    """
    period = sum(weights)
    turns = sorted(
        (k * period // weight, -(-(k + 1) * period // weight), source)  # first place, end of the last, whose
        for source, weight in enumerate(weights)
        for k in range(weight)
    )
    sources, ranks, places = [], [], [list[int]() for _ in weights]
    waiting, coming = list[tuple[int, int]](), 0
    for place in range(period):
        while coming < period and turns[coming][0] <= place:
            heappush(waiting, turns[coming][1:])
            coming += 1
        _, source = heappop(waiting)
        sources.append(source)
        ranks.append(len(places[source]))
        places[source].append(place)
    return Order(np.array(sources), np.array(ranks), places)


@dataclass(frozen=True)
class Span:
    """Rows from `start` on in one periodic order; `before` counts what each source gave until then."""

    start: int
    names: tuple[str, ...]
    weights: tuple[int, ...]
    before: Mapping[str, int]

    def draws(self, first: int, stop: int) -> tuple[list[str], Ints]:
        """The source of each row, and how many rows it gave before."""
        order = order_of(self.weights)
        periods_N, place_N = np.divmod(np.arange(first - self.start, stop - self.start), len(order.sources))
        source_N = order.sources[place_N]
        before_S = np.array([self.before[name] for name in self.names])
        n_N = before_S[source_N] + periods_N * np.array(self.weights)[source_N] + order.ranks[place_N]
        return [self.names[source] for source in source_N.tolist()], n_N

    def counts(self, i: int) -> dict[str, int]:
        """How many rows each source gave before row `i`."""
        periods, place = divmod(i - self.start, sum(self.weights))
        given = zip(self.names, self.weights, order_of(self.weights).places, strict=True)
        return {
            **self.before,
            **{
                name: self.before[name] + periods * weight + bisect_left(places, place)
                for name, weight, places in given
            },
        }


def spans_of(mix: Mix) -> list[Span]:
    """The segments as spans; one that goes on with the same shares goes on in the same period, so that a run made
    longer equals one that was planned so long."""
    spans = [Span(0, mix.segments[0].names, mix.segments[0].weights, dict.fromkeys(mix.sources, 0))]
    end = mix.segments[0].rows
    for segment in mix.segments[1:]:
        if (segment.names, segment.weights) != (spans[-1].names, spans[-1].weights):
            spans.append(Span(end, segment.names, segment.weights, spans[-1].counts(end)))
        end += segment.rows
    return spans


# ---------------------------------------------------------------------------------------------------------------------
# Which of its rows


def shuffled(k_N: Ints, rows_N: Ints, keys_RN: Ints) -> Ints:
    """The `k`-th of `rows` rows in the order of `keys`, for each n: a bijection of range(rows), without a table.

    A Feistel network over pairs of numbers below the root of `rows`, rounded up, walked until it lands inside, which
    is nearly always at once.
    """
    side_of = {rows: math.isqrt(rows - 1) + 1 if rows > 1 else 1 for rows in np.unique(rows_N).tolist()}
    side_N = np.array([side_of[rows] for rows in rows_N.tolist()], np.uint64)
    found_N, outside = k_N.astype(np.uint64), np.arange(len(k_N))
    while len(outside):
        found_N[outside] = _network(found_N[outside], side_N[outside], keys_RN[:, outside])
        outside = outside[found_N[outside] >= rows_N[outside].astype(np.uint64)]
    return found_N.astype(np.int64)


def _network(k_N: Ints, side_N: Ints, keys_RN: Ints) -> Ints:
    left_N, right_N = np.divmod(k_N, side_N)
    for key_N in keys_RN:
        left_N, right_N = right_N, (left_N + _hash(right_N ^ key_N) % side_N) % side_N
    return left_N * side_N + right_N


def _hash(x_N: Ints) -> Ints:
    """The finishing steps of splitmix64 (G. Steele, D. Lea, C. Flood, 2014)."""
    x_N = x_N + np.uint64(0x9E3779B97F4A7C15)
    x_N = (x_N ^ (x_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x_N = (x_N ^ (x_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x_N ^ (x_N >> np.uint64(31))


@lru_cache(maxsize=256)
def _keys(seed: int, source: str, epoch: int) -> tuple[int, ...]:
    digest = blake2b(f"{seed}/{epoch}/{source}".encode(), digest_size=8 * ROUNDS).digest()
    return tuple(int.from_bytes(digest[at : at + 8], "little") for at in range(0, len(digest), 8))
