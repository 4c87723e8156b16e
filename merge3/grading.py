"""Grading: from a raw answer to right, wrong, or not scored and why.

Knows the answers of `merge3.store` and what an item expects. Does not know models: what is kept can be graded again,
by other rules, without asking.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from importlib import import_module

import numpy as np
from jaxtyping import Float

from merge3.items import FreeText, Item
from merge3.store import Answer, Failure, Reply

TRUNCATED = "truncated"
BROKEN_REASON = "likelihoods are not finite"
WRITTEN = 20  # letters from which on a text's language can be told

SIGN = r"(?:(?<![\w)%])[-+](?:\\?[$€£])?)?"  # a minus between two numbers is none
NUMBER = re.compile(
    SIGN + r"(?:(?:\d{1,3}(?:[,\u00a0\u202f ]\d{3})+(?!\d)|\d+)(?:[.,]\d+)?|(?<![\w.])\.\d+)",
)
MARKS = re.compile(r"[\u00a0\u202f ]|\\?[$€£%]")  # TeX escapes some
THOUSANDS = re.compile(r"(?<!^0),(?=\d{3}(?!\d))")
MINUS = "\u2212"  # as typeset
WORD = re.compile(r"[a-z]+(?:[_-][a-z]+)*")
OWN = "MERGE3_MATCHES"  # packages whose functions an item may name, with commas between


def _number(text: str) -> float | None:
    """The value of a text that is one number, thousands grouped or not; None where it is none.

    A comma is one of decimals where no three digits follow, or a lone 0 stands before it.
    """
    plain = MARKS.sub("", text.replace(MINUS, "-").strip()).rstrip(".,")
    sign, plain = ("-", plain[1:]) if plain[:1] == "-" else ("", plain.removeprefix("+"))
    plain = sign + THOUSANDS.sub("", plain)
    try:
        value = float(plain if "." in plain else plain.replace(",", ".", 1))
    except ValueError:
        return None
    return value if np.isfinite(value) else None


def _plain(text: str) -> str:
    """A text in one form: Unicode NFC, no white space around it."""
    return unicodedata.normalize("NFC", text).strip()


def _numbers(text: str) -> list[str]:
    return NUMBER.findall(text.replace(MINUS, "-"))


def _last(found: Sequence[str]) -> str | None:
    return found[-1] if found else None


EXTRACTORS: Mapping[str, Callable[[str], str | None]] = {
    "text": lambda text: text,
    "first_line": lambda text: next((line for line in text.splitlines() if line.strip()), None),
    "first_number": lambda text: _last(_numbers(text)[:1]),
    "last_number": lambda text: _last(_numbers(text)),
}

MATCHES: Mapping[str, Callable[[str, str], bool]] = {
    "exact": lambda answer, expected: _plain(answer) == _plain(expected),
    "contains": lambda answer, expected: _plain(expected) in _plain(answer),
    "numeric": lambda answer, expected: _number(answer) is not None and _number(answer) == _number(expected),
}


def extract(text: str, how: str) -> str | None:
    """The answer within a reply, by the extractor's name or a regular expression; None where there is none."""
    if how in EXTRACTORS:
        return EXTRACTORS[how](text)
    found = _expression(how).search(text)
    if found is None:
        return None
    return found.group(1) if found.re.groups else found.group()


def ended(text: str, how: str) -> bool:
    """Whether more of the reply cannot change what `extract` finds, so that writing may stop."""
    if how == "first_line":
        return bool(text.strip()) and "\n" in text.lstrip()
    if how == "first_number":
        found = NUMBER.search(text.replace(MINUS, "-"))
        return found is not None and bool(re.search(r"[^\d.,\u00a0\u202f ]", text[found.end() :]))
    return False


def check(item: Item) -> None:
    """Refuse a free-text item whose settings cannot grade, before anything is asked.

    Raises:
        ValueError: no such extractor or match, no detector of that language, or what is expected is no number; the
            item is named.
    """
    if item.free is None:
        return
    try:
        _check(item.free, item.expected)
    except ValueError as error:
        raise ValueError(f"item {item.id!r}: {error}") from error


def _check(free: FreeText, expected: Sequence[str]) -> None:
    if free.extract not in EXTRACTORS:
        _expression(free.extract)
        if WORD.fullmatch(free.extract) and (meant := get_close_matches(free.extract.replace("-", "_"), EXTRACTORS)):
            raise ValueError(
                f"extract {free.extract!r} is no extractor; is {meant[0]!r} meant? As a regular expression it would "
                f"be written ({free.extract})"
            )
    _match(free.match)
    if free.match == "numeric" and all(_number(text) is None for text in expected):
        raise ValueError(
            f"match is numeric, and {expected[0][-60:]!r} is no number: no reply could be right; give the number "
            "alone, or another match"
        )
    if free.language:
        language_of(" ", free.language)


@cache
def _expression(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"extract must be one of {sorted(EXTRACTORS)} or a regular expression, got {pattern!r}: {error}"
        ) from error


@cache
def _match(name: str) -> Callable[[str, str], bool]:
    if name in MATCHES:
        return MATCHES[name]
    module, _, function = name.partition(":")
    if function and module.split(".")[0] not in os.environ.get(OWN, "").split(","):
        raise ValueError(
            f"match {name!r} is code, and items may come from others: set {OWN}={module.split('.')[0]} to allow that "
            f"package, or take one of {sorted(MATCHES)}"
        )
    try:
        found: Callable[[str, str], bool] = getattr(import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"match must be one of {sorted(MATCHES)} or package.module:function, got {name!r}") from error
    return found


def language_of(text: str, wanted: str) -> str | None:
    """The language of a text (ISO 639-1), by py3langid; None where it has too few letters to tell.

    Raises:
        ValueError: py3langid is not installed, or does not know the wanted language.
    """
    identifier = _identifier()
    if wanted not in identifier.labels:
        raise ValueError(f"language must be an ISO 639-1 code that py3langid knows, got {wanted!r}")
    if sum(letter.isalpha() for letter in text) < WRITTEN:
        return None
    return str(identifier.classify(text)[0])


@cache
def _identifier():  # type: ignore[no-untyped-def]
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier  # the model is in the package, and no pickle
    except ImportError as error:
        raise ValueError("items with a language need py3langid: pip install py3langid") from error
    return LanguageIdentifier.from_model_file(MODEL_FILE)


def grade_reply(item: Item, reply: Reply) -> tuple[float, str]:
    """1 or 0, or NaN where the reply was cut off before its answer was certain; and why it is not 1.

    Raises:
        ValueError: the item has options, or its own match fails.
    """
    free = item.free
    if free is None:
        raise ValueError(f"item {item.id!r} has options; a reply cannot be graded")
    if reply.end == "length" and not ended(reply.text, free.extract):
        return np.nan, TRUNCATED
    answer = extract(reply.text, free.extract)
    if answer is None:
        return 0.0, f"no {free.extract} in the reply"
    match = _match(free.match)
    try:
        right = any(match(answer, expected) for expected in item.expected)
    except Exception as error:  # of a function that is not ours
        raise ValueError(f"item {item.id!r}: match {free.match!r} fails on {answer[:60]!r}: {error!r}") from error
    if not right:
        return 0.0, "another answer"
    if free.language:
        found = language_of(reply.text, free.language)
        if found not in (free.language, None):
            return 0.0, f"right, but in language {found}"
    return 1.0, ""


def grade(item: Item, answer: Answer, divisors: Sequence[int]) -> tuple[float, str]:
    """1 right, 0 wrong, NaN not scored; and why it is not 1.

    `divisors` are what the options' log-likelihoods are divided by, see `answering.divisors`; a tie is not an answer.
    """
    if isinstance(answer, Failure):
        return np.nan, answer.reason
    if isinstance(answer, Reply):
        return grade_reply(item, answer)
    if not answer or not np.isfinite(answer).all():
        return np.nan, BROKEN_REASON
    right = margin(item, answer, divisors) > 0
    return float(right), "" if right else "another option"


def margin(item: Item, answer: Answer, divisors: Sequence[int]) -> float:
    """Score of the right option less that of the best other, in nats; each over its divisor.

    For replies, which have none, 1 for right and -1 for wrong; NaN where it is not scored.
    """
    if not isinstance(answer, tuple):
        return 2 * grade(item, answer, divisors)[0] - 1
    if not answer:
        return np.nan
    scores = [value / length for value, length in zip(answer, divisors, strict=True)]
    return scores[item.answer] - max(value for option, value in enumerate(scores) if option != item.answer)


def divisors(item: Item, scoring: str) -> tuple[int, ...]:
    """What each option's log-likelihood is divided by, by the scorings that its text tells: 1, or its `characters`."""
    return tuple(max(1, len(option)) if scoring == "characters" else 1 for option in item.options)


def margins(
    items: Sequence[Item], answers: Sequence[Answer], divisors: Sequence[Sequence[int]]
) -> Float[np.ndarray, " items"]:
    """`margin` of every item."""
    return np.array([margin(*three) for three in zip(items, answers, divisors, strict=True)], dtype=float)


def grades(
    items: Sequence[Item], answers: Sequence[Answer], divisors: Sequence[Sequence[int]]
) -> tuple[Float[np.ndarray, " items"], list[str]]:
    """`grade` of every item."""
    found = [grade(*three) for three in zip(items, answers, divisors, strict=True)]
    return np.array([score for score, _ in found], dtype=float), [reason for _, reason in found]


def failures(scores: Float[np.ndarray, " items"], reasons: Sequence[str]) -> dict[str, int]:
    """How many items are not scored, by reason; reasons that differ in their numbers alone count as the first."""
    kinds: dict[str, list[str]] = {}
    for score, reason in zip(scores, reasons, strict=True):
        if np.isnan(score):
            kinds.setdefault(re.sub(r"\d[\d,]*", "#", reason), []).append(reason)
    return {
        same[0] if len(set(same)) == 1 else f"{same[0]} (the first; others have other numbers)": len(same)
        for same in kinds.values()
    }
