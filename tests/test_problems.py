import re
import subprocess
import sys
from collections import Counter, defaultdict
from fractions import Fraction
from functools import cache
from itertools import combinations, pairwise
from pathlib import Path

import pytest

from demo import problems
from demo.problems import LANGUAGES, OPERATIONS, SPLITS, Problem, contrast, generate

COUNT = 2000
LATER = {"de", "d'une", "que", "qu'", "di", "a", "e", "y"}  # words a name may not follow


@cache
def drawn(language: str, split: str) -> tuple[Problem, ...]:
    return tuple(generate(language, split, COUNT, seed=7))


def everything() -> list[Problem]:
    return [problem for language in LANGUAGES for split in SPLITS for problem in drawn(language, split)]


def parse(option: str) -> tuple[int, str, int, int]:
    first, operation, second, equals, result = option.split(" ")
    assert equals == "="
    return int(first), operation, int(second), int(result)


def exact(first: int, operation: str, second: int) -> Fraction:
    """An evaluation that shares no code with the module's."""
    a, b = Fraction(first), Fraction(second)
    return {"+": a + b, "-": a - b, "*": a * b, "/": a / b}[operation]


def share_right(choose) -> float:
    """The share of problems of all languages that a rule on the options alone solves."""
    solved = [choose(problem.options) == problem.answer for problem in everything()]
    return sum(solved) / len(solved)


def results(options):
    return [parse(option)[3] for option in options]


def test_a_problem_holds_what_its_fields_promise():
    for problem in everything():
        assert problem.language in LANGUAGES
        assert problem.split in SPLITS
        assert problem.id.startswith(f"{problem.language}-{problem.split}-")
        assert problem.template.startswith(problem.language + problem.operation)
        assert problem.expression == f"{problem.first} {problem.operation} {problem.second}"
        assert problem.name in problem.question
    assert len({problem.id for problem in everything()}) == len(everything())


def test_the_result_is_the_exact_value_of_the_expression():
    for problem in everything():
        assert problem.result == exact(problem.first, problem.operation, problem.second) > 0


def test_operands_stay_in_their_ranges_and_never_end_in_1():
    for problem in everything():
        first, second = problem.first, problem.second
        assert first % 10 != 1
        assert second % 10 != 1
        if problem.operation == "/":
            assert 3 <= second <= 9
            assert 12 <= problem.result <= 49
        if problem.operation == "*":
            assert 3 <= min(first, second) <= 9
            assert 12 <= max(first, second) < 100


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("language", LANGUAGES)
def test_operations_are_equally_frequent_and_shuffled(language, split):
    operations = [problem.operation for problem in drawn(language, split)]
    assert Counter(operations) == dict.fromkeys(OPERATIONS, COUNT // 4)
    repeats = sum(a == b for a, b in pairwise(operations))
    assert 0.2 < repeats / COUNT < 0.3


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("language", LANGUAGES)
def test_no_two_questions_are_the_same(language, split):
    assert len({problem.question for problem in drawn(language, split)}) == COUNT


def test_a_pair_of_numbers_belongs_to_one_split_over_all_languages_and_operations():
    splits = defaultdict(set)
    for problem in everything():
        splits[frozenset((problem.first, problem.second))].add(problem.split)
    assert all(len(of_pair) == 1 for of_pair in splits.values())


def test_a_name_belongs_to_one_split_over_all_languages():
    splits = defaultdict(set)
    for language in LANGUAGES:
        for split in SPLITS:
            for name in problems.names(language, split):
                assert name.isalpha()
                splits[name].add(split)
    assert all(len(of_name) == 1 for of_name in splits.values())
    assert all(p.name in problems.names(p.language, p.split) for p in everything())


def test_pairs_and_names_are_shared_out_as_promised():
    keys = Counter(problems.split_of(f"key {n}") for n in range(20_000))
    for split, share in problems.SHARES.items():
        assert keys[split] / 20_000 == pytest.approx(share, abs=0.02)


def test_own_templates_are_one_in_four_in_the_test_split_and_nowhere_else():
    forms = defaultdict(set)
    for language in LANGUAGES:
        for split in SPLITS:
            own = sum(problem.form == "own" for problem in drawn(language, split))
            assert own == (COUNT // 4 if split == "test" else 0)
            for problem in drawn(language, split):
                forms[problem.template].add(problem.form)
    assert all(len(of_template) == 1 for of_template in forms.values())


@pytest.mark.parametrize("count", [1, 2, 6, 7, 41, 103])
def test_own_templates_are_a_quarter_of_a_short_test_split_too(count):
    own = sum(problem.form == "own" for problem in generate("it", "test", count, seed=0))
    assert abs(own - count / 4) < 1


@pytest.mark.parametrize("language", LANGUAGES)
def test_each_operation_has_five_known_templates_and_two_own_and_twelve_things(language):
    for operation in OPERATIONS:
        assert len(problems.templates(language, operation, "known")) >= 5
        assert len(problems.templates(language, operation, "own")) >= 2
    assert len({things for things, *_ in problems.THINGS[language]}) >= 12


def test_about_half_of_the_templates_reverse_the_operands():
    for language in LANGUAGES:
        texts = [text for operation in OPERATIONS for text in problems.TEXTS[language][operation]]
        reverse = sum(text.index("{b}") < text.index("{a}") for text in texts)
        assert 0.35 < reverse / len(texts) < 0.65


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("language", LANGUAGES)
def test_a_quarter_of_the_problems_write_both_numbers_in_digits(language, split):
    numbers = [re.findall(r"\d+", problem.question) for problem in drawn(language, split)]
    assert Counter(map(len, numbers)) == {2: COUNT // 4, 0: COUNT - COUNT // 4}
    for found, problem in zip(numbers, drawn(language, split), strict=True):
        assert not found or sorted(map(int, found)) == sorted((problem.first, problem.second))


def test_questions_are_short_complete_and_name_no_operation():
    for problem in everything():
        question = problem.question
        assert len(question.split()) <= 22
        assert question.endswith("?")
        assert not re.search(r"[{}+*/=×÷−]|\s-\s|\s\s", question)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_name_never_follows_a_word_that_would_be_elided(language):
    for operation in OPERATIONS:
        for text in problems.TEXTS[language][operation]:
            before = text.split("{name}")[0].split()
            assert not before or before[-1].lower() not in LATER


def test_french_things_begin_with_a_consonant():
    assert not any(re.match("[aeiouyhéèêœ]", things) for things, *_ in problems.THINGS["fr"])


def test_spanish_hundreds_agree_with_the_thing():
    gender = {things: gender for things, gender, *_ in problems.THINGS["es"]}
    for problem in (p for split in SPLITS for p in drawn("es", split)):
        hundreds = re.search(r"cient([oa])s", problem.question)
        thing = next(word for word in re.findall(r"\w+", problem.question) if word in gender)
        assert not hundreds or hundreds[1] == {"f": "a", "m": "o"}[gender[thing]]
    assert problems._in_words(432, "es", "f") == "cuatrocientas treinta y dos"
    assert problems._in_words(180, "es", "f") == "ciento ochenta"


def test_italian_numbers_above_three_that_end_in_tre_are_stressed():
    assert [problems._in_words(n, "it", "f") for n in (3, 23, 273)] == [
        "tre",
        "ventitré",
        "duecentosettantatré",
    ]
    assert not any(re.search(r"(ta|ti|to)tre\b", p.question.lower()) for s in SPLITS for p in drawn("it", s))


def test_options_cross_two_operations_with_a_true_and_a_false_result():
    for problem in everything():
        options = [parse(option) for option in problem.options]
        assert len(set(problem.options)) == 4
        assert all(option[:1] + option[2:3] == (problem.first, problem.second) for option in options)
        true = [o for o in options if exact(*o[:3]) == o[3]]
        assert sorted(Counter(o[1] for o in options).values()) == [2, 2]
        assert len({o[1] for o in true}) == len(true) == 2
        assert options[problem.answer] == (problem.first, problem.operation, problem.second, problem.result)
        assert all(o[3] > 0 for o in options)


def test_false_results_are_near_the_truth_and_of_one_kind_in_a_problem():
    for problem in everything():
        steps = []
        for first, operation, second, result in map(parse, problem.options):
            truth = int(exact(first, operation, second))
            if result != truth:
                steps.append(result - truth)
                assert abs(steps[-1]) in (1, 2, 10) or sorted(str(result)) == sorted(str(truth))
        assert steps[0] * steps[1] > 0


def test_false_results_are_above_and_below_the_truth_equally_often():
    above = [
        next(r for f, o, s, r in map(parse, p.options) if o == p.operation and r != p.result) > p.result
        for p in everything()
    ]
    assert sum(above) / len(above) == pytest.approx(0.5, abs=0.02)


def test_the_answer_is_at_each_place_equally_often():
    places = Counter(problem.answer for problem in everything())
    assert all(places[place] / len(everything()) == pytest.approx(0.25, abs=0.02) for place in range(4))


@pytest.mark.parametrize("pick", [min, max])
@pytest.mark.parametrize("measure", [lambda o: list(map(len, o)), results])
def test_no_extreme_option_is_the_answer_more_often_than_by_chance(pick, measure):
    assert share_right(lambda o: measure(o).index(pick(measure(o)))) < 0.3


@pytest.mark.parametrize("rarest", [False, True])
@pytest.mark.parametrize("trait", [lambda r: r % 10, lambda r: r, lambda r: len(str(r)), lambda r: r % 2])
def test_neither_the_most_nor_the_least_frequent_trait_of_the_results_is_the_answer(trait, rarest):
    def choose(options):
        traits = [trait(result) for result in results(options)]
        counts = [traits.count(t) * (-1 if rarest else 1) for t in traits]
        return counts.index(max(counts))

    assert share_right(choose) < 0.3


def test_the_result_nearest_to_the_others_is_not_the_answer():
    def choose(options):
        distances = [sum(abs(a - b) for b in results(options)) for a in results(options)]
        return distances.index(min(distances))

    assert share_right(choose) < 0.3


def test_the_numbers_do_not_tell_which_of_the_two_operations_is_meant():
    asked = Counter()
    for problem in everything():
        offered = "".join(o for o in OPERATIONS if any(f" {o} " in option for option in problem.options))
        assert contrast(problem.first, problem.second) == offered
        asked[offered, problem.operation] += 1
    offers = ["".join(pair) for pair in combinations(OPERATIONS, 2)]
    assert {offered for offered, _ in asked} == set(offers)
    for offered in offers:
        one, other = (asked[offered, operation] for operation in offered)
        assert one / (one + other) == pytest.approx(0.5, abs=0.02)


def test_a_rule_learned_on_the_numbers_of_two_splits_does_not_solve_the_third():
    def shape(problem):
        operations = frozenset(parse(option)[1] for option in problem.options)
        return operations, len(str(problem.first)), len(str(problem.second)), problem.first // 20

    learned = defaultdict(Counter)
    for problem in everything():
        if problem.split != "test":
            learned[shape(problem)][problem.operation] += 1
    tested = [problem for problem in everything() if problem.split == "test"]
    guessed = [bool(learned[shape(p)]) and learned[shape(p)].most_common(1)[0][0] for p in tested]
    solved = sum(guess == p.operation for guess, p in zip(guessed, tested, strict=True))
    assert solved / len(tested) < 0.54


def test_the_same_arguments_give_the_same_problems_in_another_process():
    code = "from demo.problems import generate; print(generate('fr', 'search', 60, seed=3), end='')"
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(problems.__file__).parents[1],
        env={"PYTHONHASHSEED": "99", "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        check=True,
        encoding="utf-8",
    )
    assert run.stdout == str(generate("fr", "search", 60, seed=3))


def test_another_seed_gives_other_problems():
    assert generate("es", "train", 40, seed=1) != generate("es", "train", 40, seed=2)


def test_no_problem_asked_is_no_problem_given():
    assert generate("en", "train", 0, seed=0) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("de", "train", 4, 0), "language must be one of en, fr, es, it, not 'de'"),
        (("en", "dev", 4, 0), "split must be one of train, search, test, not 'dev'"),
        (("en", "train", -1, 0), "count must not be negative, but is -1"),
    ],
)
def test_arguments_out_of_range_are_refused_in_words(arguments, message):
    with pytest.raises(ValueError, match=message):
        generate(*arguments)


def test_a_request_for_more_than_there_is_says_how_many_there_are():
    with pytest.raises(ValueError, match="distinct questions") as refusal:
        generate("it", "test", 10**9, seed=0)
    there_are = int(re.search(r"has (\d+) distinct", str(refusal.value))[1])
    full = generate("it", "test", there_are, seed=0)
    assert len({problem.question for problem in full}) == there_are
    with pytest.raises(ValueError, match=f"has {there_are} distinct"):
        generate("it", "test", there_are + 1, seed=0)
