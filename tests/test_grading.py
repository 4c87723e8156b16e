from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from merge3 import grading
from merge3.grading import extract, grade
from merge3.items import FreeText, Item
from merge3.store import Answer, Failure, Reply


def item(expected: str = "17", **how: str) -> Item:
    return Item("i", "12 + 5?", expected=(expected,), free=FreeText(**how))


def no_vowel(answer: str, expected: str) -> bool:
    """A match of the user's own."""
    return not set(answer) & set("aeiou")


def strict(answer: str, expected: str) -> bool:
    """A match of the user's own that takes whole numbers alone."""
    return int(answer) == int(expected)


@pytest.mark.parametrize(
    ("how", "text", "found"),
    [
        ("text", " 17\n", " 17\n"),
        ("first_line", "\n 17 \nmore", " 17 "),
        ("first_line", " \n", None),
        ("first_number", "12 + 5 = 17.", "12"),
        ("last_number", "12 + 5 = 17.", "17"),
        ("last_number", "it costs $1,234.50 in all", "1,234.50"),
        ("last_number", "-3", "-3"),
        ("last_number", "it is \u22125", "-5"),
        ("last_number", "x=-5", "-5"),
        ("last_number", "10-5", "5"),
        ("last_number", "from 3-4 pm", "4"),
        ("last_number", "10%-20%", "20"),
        ("last_number", "(2)-7", "7"),
        ("last_number", "about .5", ".5"),
        ("first_number", "1.5", "1.5"),
        ("last_number", "a loss of -$3.50.", "-$3.50"),
        ("last_number", r"a loss of -\$3.50.", r"-\$3.50"),
        ("last_number", "none", None),
        (r"#### (\d+)", "so\n#### 42", "42"),
        (r"\d+ / \d+", "it is 96 / 4", "96 / 4"),
    ],
)
def test_answers_are_extracted(how: str, text: str, found: str | None) -> None:
    assert extract(text, how) == found


@pytest.mark.parametrize(
    ("match", "answer", "expected", "right"),
    [
        ("exact", " 17", "17", True),
        ("exact", "17.0", "17", False),
        ("exact", "caf\u00e9", "cafe\u0301", True),
        ("contains", "it is 17, of course", "17", True),
        ("numeric", "17.0", "17", True),
        ("numeric", "$1,234", "1234.", True),
        ("numeric", "seventeen", "17", False),
        ("numeric", "seventeen", "eighteen", False),
        ("numeric", "3,5", "3.5", True),
        ("numeric", "\u22125", "-5", True),
        ("numeric", "-5", "\u22125", True),
        ("numeric", "5", "\u22125", False),
        ("numeric", ".5", "0.5", True),
        ("numeric", "-$3.50", "-3.5", True),
        ("numeric", r"-\$3.50", "-3.5", True),
        ("numeric", r"50\%", "50", True),
        ("numeric", "0,125", "0.125", True),
        ("numeric", "-0,125", "-0.125", True),
        ("numeric", "10,125", "10125", True),
        ("numeric", "3,5", "35", False),
        ("numeric", "1,234,567.5", "1234567.5", True),
        ("numeric", "1,2345", "1.2345", True),
        ("numeric", "1.5,", "1.5", True),
        ("numeric", "inf", "inf", False),
        ("test_grading:no_vowel", "xyz", "17", True),
        ("test_grading:no_vowel", "abc", "17", False),
    ],
)
def test_answers_are_matched(
    match: str, answer: str, expected: str, right: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(grading.OWN, "mine,test_grading")
    score, reason = grade(item(expected, extract="text", match=match), Reply(answer, "stop", 1), ())
    assert (score, reason) == (float(right), "" if right else "another answer")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Failure("too long"), "too long"),
        (Reply("12 + 5 is", "length", 32), "truncated"),
        ((), "likelihoods are not finite"),
        ((float("nan"), -1.0), "likelihoods are not finite"),
    ],
)
def test_failures_are_not_scored(answer: Answer, reason: str) -> None:
    of = Item("i", "p", ("x", "y"), 0) if isinstance(answer, tuple) else item()
    score, why = grade(of, answer, (1, 1))
    assert (np.isnan(score), why) == (True, reason)
    assert grading.failures(np.array([score, 1.0]), [why, ""]) == {reason: 1}
    assert np.isnan(grading.margin(of, answer, (1, 1))) or isinstance(answer, tuple)


def test_an_option_leads_by_its_score_less_the_best_others() -> None:
    asked, answer = Item("i", "p", ("x", "yy", ""), 1), (-3.0, -4.0, -5.0)
    assert (grading.divisors(asked, "characters"), grading.divisors(asked, "sum")) == ((1, 2, 1), (1, 1, 1))
    assert [grading.margin(asked, answer, by) for by in ((1, 2, 1), (1, 1, 1))] == [1.0, -1.0]
    assert [grade(asked, answer, by) for by in ((1, 2, 1), (1, 1, 1))] == [(1.0, ""), (0.0, "another option")]
    assert grade(asked, (-2.0, -4.0, -5.0), (1, 2, 1)) == (0.0, "another option")  # a tie is no answer
    assert [grading.margin(item(), Reply(text, "stop", 1), ()) for text in ("17", "18")] == [1.0, -1.0]


def test_one_of_the_expected_texts_is_enough() -> None:
    asked = Item("i", "p", expected=("16", "17"), free=FreeText())
    assert [grade(asked, Reply(text, "stop", 1), ())[0] for text in ("16", "17", "18")] == [1, 1, 0]


def test_a_reply_cut_off_after_its_answer_was_certain_is_graded() -> None:
    assert grade(item(extract="first_number"), Reply("17 is what", "length", 32), ()) == (1.0, "")
    assert np.isnan(grade(item(extract="first_number"), Reply("1", "length", 1), ())[0])  # it might have been 17
    assert np.isnan(grade(item(extract="last_number"), Reply("17 is", "length", 32), ())[0])


@example("\n1", "7")
@given(st.text("0123456789,. \na-", max_size=12), st.text("0123456789,. \na-", max_size=6))
def test_what_follows_an_end_cannot_change_the_answer(text: str, more: str) -> None:
    for how in ("first_line", "first_number"):
        if grading.ended(text, how):
            assert extract(text, how) == extract(text + more, how)


def test_items_run_no_code_that_was_not_allowed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'os:popen' is code, and items may come from others: set MERGE3_MATCHES=os"):
        grade(item("r", extract="text", match="os:popen"), Reply(f"touch {tmp_path}/ran", "stop", 1), ())
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv(grading.OWN, "other")
    with pytest.raises(ValueError, match="to allow that package"):
        grading.check(item(match="os.path:exists"))


def test_a_match_that_fails_is_said_with_its_item_and_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(grading.OWN, "test_grading")
    asked = item(match="test_grading:strict")
    assert grade(asked, Reply("17", "stop", 1), ()) == (1.0, "")
    with pytest.raises(ValueError, match=r"^item 'i': match 'test_grading:strict' fails on 'seventeen': ValueError"):
        grade(asked, Reply("seventeen", "stop", 1), ())


def test_a_decimal_comma_is_of_the_number() -> None:
    assert extract("Das sind 3,5 Liter", "last_number") == "3,5"
    assert extract("1,234.5 and 7", "first_number") == "1,234.5"


@pytest.mark.parametrize(("how", "value"), [("extract", "("), ("match", "nearly"), ("match", "no.such:thing")])
def test_settings_that_cannot_grade_are_refused(how: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(grading.OWN, "no")
    with pytest.raises(ValueError, match=rf"^item 'i': {how} must be one of"):
        grading.check(item(**{how: value}))


@pytest.mark.parametrize("how", ["last-number", "lastnumber", "number", "first_word"])
def test_a_word_that_is_nearly_an_extractor_is_refused(how: str) -> None:
    with pytest.raises(ValueError, match=f"extract '{how}' is no extractor; is '.*(number|line)' meant"):
        grading.check(item(extract=how))
    grading.check(item(extract="yes"))
    grading.check(item(extract=f"({how})"))


def test_what_is_expected_as_a_number_is_one() -> None:
    for expected in ("17 apples", "So 3 * 6 = 18.\n#### 18", ""):
        with pytest.raises(ValueError, match="is no number: no reply could be right; give"):
            grading.check(item(expected, match="numeric"))
    grading.check(item("-1,234.50", match="numeric"))
    grading.check(Item("i", "p", expected=("1/2", "0.5"), free=FreeText(match="numeric")))  # one of them may be right
    grading.check(item("17 apples", match="exact"))
    grading.check(Item("i", "p", ("x", "y"), 0))


def test_right_counts_in_the_language_alone() -> None:
    pytest.importorskip("py3langid")
    french = "La réponse est 17, parce que douze et cinq font dix-sept."
    english = "The answer is 17, because twelve and five make seventeen."
    asked = item(language="fr", extract="first_number", match="numeric")
    assert grade(asked, Reply(french, "stop", 9), ()) == (1.0, "")
    assert grade(asked, Reply(english, "stop", 9), ()) == (0.0, "right, but in language en")
    assert grade(asked, Reply("17 = 12 + 5 = 5 + 12 = 5 + 5 + 7", "stop", 1), ()) == (1.0, "")  # numbers are of none
    with pytest.raises(ValueError, match=r"^item 'i': language must be an ISO 639-1 code"):
        grading.check(item(language="klingon"))


def test_a_language_is_told_from_twenty_letters_on() -> None:
    pytest.importorskip("py3langid")
    text = "The answer, because twelve"
    letters = [place for place, letter in enumerate(text, 1) if letter.isalpha()]
    assert grading.language_of(text[: letters[grading.WRITTEN - 2]], "en") is None
    assert grading.language_of(text[: letters[grading.WRITTEN - 1]], "en") == "en"


def test_failures_that_differ_in_their_numbers_are_counted_together() -> None:
    reasons = ["2,055 tokens of at most 2048", "3000 tokens of at most 2048", "truncated", "truncated", "", "wrong"]
    found = grading.failures(np.array([np.nan] * 4 + [1.0, 0.0]), reasons)
    assert found == {f"{reasons[0]} (the first; others have other numbers)": 2, "truncated": 2}
