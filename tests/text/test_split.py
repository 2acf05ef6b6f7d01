"""The split is decided by group, everywhere at once, and keeps one of equal texts."""

import numpy as np

from ahkio.text.split import Fate, Marks, fates, hash64


def marks(held_out: float, *documents: tuple[str, str]) -> Marks:
    texts, groups = ([hash64(part) for part in parts] for parts in zip(*documents, strict=True))
    return Marks(np.array(texts, np.uint64), np.array(groups, np.uint64), held_out)


def test_hashes_are_the_same_on_every_machine_and_differ_by_seed() -> None:
    assert hash64("sivu") == 8024086584795579470
    assert hash64("sivu", 1) != hash64("sivu")


def test_the_share_held_out_is_the_share_asked_for() -> None:
    (fate_D,) = fates([marks(0.1, *((str(i), str(i)) for i in range(20000)))])
    assert abs((fate_D == Fate.HELD_OUT).mean() - 0.1) < 0.01


def test_a_larger_share_holds_out_more_of_the_same() -> None:
    documents = [(str(i), str(i)) for i in range(500)]
    small, large = (fates([marks(share, *documents)])[0] == Fate.HELD_OUT for share in (0.1, 0.3))
    assert set(np.flatnonzero(small)) < set(np.flatnonzero(large))


def test_a_group_held_out_in_one_domain_is_held_out_in_all() -> None:
    fi, en = fates([marks(0.0, ("a", "sivu 1"), ("b", "sivu 2")), marks(1.0, ("c", "sivu 2"))])
    assert fi.tolist() == [Fate.TRAIN, Fate.HELD_OUT]
    assert en.tolist() == [Fate.HELD_OUT]


def test_of_equal_texts_the_first_stays() -> None:
    one, two = fates([marks(0.0, ("a", "1"), ("a", "2"), ("b", "3")), marks(0.0, ("b", "4"), ("c", "5"))])
    assert one.tolist() == [Fate.TRAIN, Fate.DUPLICATE, Fate.TRAIN]
    assert two.tolist() == [Fate.DUPLICATE, Fate.TRAIN]


def test_a_text_on_both_sides_leaves_the_held_out_side() -> None:
    measured, trained = fates([marks(1.0, ("a", "1"), ("c", "9"), ("c", "8")), marks(0.0, ("a", "2"))])
    assert measured.tolist() == [Fate.REPEATS_IN_TRAINING, Fate.HELD_OUT, Fate.DUPLICATE]
    assert trained.tolist() == [Fate.TRAIN]
