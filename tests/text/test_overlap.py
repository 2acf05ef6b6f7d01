"""Runs of words are found wherever training repeats them, and the lines they cover are told from the others."""

import numpy as np

from ahkio.text.overlap import Repeats, grams_of

SIZE = 13


def words(start: int, count: int) -> str:
    return " ".join(f"sana{i}" for i in range(start, start + count))


def repeated(held_out: str, training: str, lines: bool = False) -> list[bool]:
    grams = grams_of(held_out, SIZE, lines)
    repeats = Repeats([grams], SIZE)
    repeats.see(training)
    return [bool(line) for line in repeats.repeated_lines(grams)]


def test_runs_are_the_same_whatever_case_and_punctuation() -> None:
    plain, other = words(0, 20), words(0, 20).upper().replace(" ", ", ")
    assert np.array_equal(grams_of(plain, SIZE, False).keys, grams_of(other, SIZE, False).keys)


def test_a_line_that_training_repeats_is_marked_and_its_neighbours_are_not() -> None:
    held_out = "\n".join([words(0, 15), words(100, 15), "", words(200, 15)])
    assert repeated(held_out, f"{words(500, 9)} {words(100, 15)}. {words(600, 9)}") == [False, True, False, False]


def test_a_run_one_word_short_is_no_repeat() -> None:
    assert repeated(words(0, 40), words(10, SIZE)) == [False]  # 13 of 40 words: less than half
    assert repeated(words(0, 20), words(0, SIZE)) == [True]
    assert repeated(words(0, 20), words(0, SIZE - 1)) == [False]


def test_a_run_across_line_ends_marks_both_lines() -> None:
    assert repeated(f"{words(0, 7)}\n{words(7, 7)}", words(0, 14)) == [True, True]


def test_short_lines_are_compared_whole_where_items_are() -> None:
    training = f"{words(50, 20)}\n{words(0, 6)}\n{words(70, 3)}"
    assert repeated(words(0, 6), training, lines=True) == [True]
    assert repeated(words(0, 6), training, lines=False) == [False]
    assert repeated(words(0, 7), training, lines=True) == [False]
    assert repeated(words(70, 3), training, lines=True) == [False]  # too common a phrase to tell anything


def test_texts_without_words_repeat_nothing() -> None:
    assert repeated("", words(0, 20), lines=True) == [False]
    assert repeated("...\n---", "", lines=True) == [False, False]
    assert repeated(words(0, 20), "") == [False]
