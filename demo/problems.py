"""Arithmetic word problems in four languages, drawn from a seed.

Knows the texts, the numbers and the four options of a problem; knows nothing of models or scores.

A problem cannot be solved from its options alone. The pair of numbers decides which two operations are
offered (`contrast`), each of the two is asked equally often on the same pairs, and only the text says which
one is meant. Numbers ending in 1 are left out: so no number word has to agree with its noun, but for the
Spanish hundreds.
"""

import hashlib
import importlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import cycle, islice, product
from typing import TypeVar

import numpy as np
from num2words import num2words

Item = TypeVar("Item")

PROMPT = "Question: {question}\nAnswer: "  # how every model is asked, in training and in the benchmark

LANGUAGES: tuple[str, ...] = ("en", "fr", "es", "it")
SPLITS: tuple[str, ...] = ("train", "search", "test")
OPERATIONS: tuple[str, ...] = ("+", "-", "*", "/")

SHARES = {"train": 0.5, "search": 0.3, "test": 0.2}  # of the pairs of numbers, and of the names
OWN = 2  # the last templates of each operation are kept for the test split
LOCALES = {"en": "en_US", "fr": "fr_FR", "es": "es_ES", "it": "it_IT"}

# What is counted, its gender; what it is kept in, its gender. French: none begins with a vowel or mute h.
THINGS: dict[str, tuple[tuple[str, str, str, str], ...]] = {
    "en": (
        ("apples", "", "crates", ""),
        ("books", "", "boxes", ""),
        ("marbles", "", "bags", ""),
        ("stamps", "", "envelopes", ""),
        ("pencils", "", "packets", ""),
        ("cookies", "", "jars", ""),
        ("oranges", "", "baskets", ""),
        ("buttons", "", "drawers", ""),
        ("candles", "", "cartons", ""),
        ("shells", "", "buckets", ""),
        ("notebooks", "", "parcels", ""),
        ("cups", "", "cases", ""),
    ),
    "fr": (
        ("pommes", "f", "caisses", "f"),
        ("livres", "m", "cartons", "m"),
        ("billes", "f", "sacs", "m"),
        ("timbres", "m", "pochettes", "f"),
        ("crayons", "m", "boîtes", "f"),
        ("biscuits", "m", "bocaux", "m"),
        ("poires", "f", "paniers", "m"),
        ("boutons", "m", "tiroirs", "m"),
        ("bougies", "f", "paquets", "m"),
        ("coquillages", "m", "seaux", "m"),
        ("cahiers", "m", "colis", "m"),
        ("tasses", "f", "cartons", "m"),
    ),
    "es": (
        ("manzanas", "f", "cajas", "f"),
        ("libros", "m", "cajas", "f"),
        ("canicas", "f", "bolsas", "f"),
        ("sellos", "m", "sobres", "m"),
        ("lápices", "m", "estuches", "m"),
        ("galletas", "f", "tarros", "m"),
        ("naranjas", "f", "cestas", "f"),
        ("botones", "m", "cajones", "m"),
        ("velas", "f", "paquetes", "m"),
        ("conchas", "f", "cubos", "m"),
        ("cuadernos", "m", "paquetes", "m"),
        ("tazas", "f", "cajas", "f"),
    ),
    "it": (
        ("mele", "f", "casse", "f"),
        ("libri", "m", "scatole", "f"),
        ("biglie", "f", "sacchetti", "m"),
        ("francobolli", "m", "buste", "f"),
        ("matite", "f", "astucci", "m"),
        ("biscotti", "m", "barattoli", "m"),
        ("arance", "f", "cesti", "m"),
        ("bottoni", "m", "cassetti", "m"),
        ("candele", "f", "pacchi", "m"),
        ("conchiglie", "f", "secchi", "m"),
        ("quaderni", "m", "pacchi", "m"),
        ("tazze", "f", "scatole", "f"),
    ),
}

# Endings that agree with a gender, by the slot they fill: in small letters for the things, in capitals for
# what they are kept in (Italian "quant{i} {things}", "ciascun{O}").
ENDINGS: dict[str, dict[str, dict[str, str]]] = {
    "en": {"": {}},
    "fr": {"m": {"e": ""}, "f": {"e": "e"}},
    "es": {"m": {"o": "o"}, "f": {"o": "a"}},
    "it": {"m": {"o": "o", "i": "i"}, "f": {"o": "a", "i": "e"}},
}

# {a} is the first operand, {b} the second. A number never opens a text, a name never follows a word that
# would be elided before a vowel. Template 3 of "fr" and "+" is the same idea as template 3 of "it" and "+".
TEXTS: dict[str, dict[str, tuple[str, ...]]] = {
    "en": {
        "+": (
            "{name} has {a} {things} and buys {b} more. How many {things} does {name} have now?",
            "{name} has {a} {things} and a friend has {b} more than that. How many does the friend have?",
            "{name} gives away {b} {things} and keeps {a}. How many {things} were there at first?",
            "{name} has {a} {things}, {b} fewer than a friend. How many {things} does the friend have?",
            "We add {b} {things} to the {a} that {name} already has. How many {things} are there now?",
            "{name} sells {b} {things} in the morning and {a} in the afternoon. How many {things} is that?",
            "{name} lost {b} {things} yesterday and {a} today. How many {things} are missing?",
        ),
        "-": (
            "{name} has {a} {things} and gives away {b}. How many {things} are left?",
            "{name} takes {b} {things} out of a box of {a}. How many {things} remain in the box?",
            "{name} has {a} {things}, {b} more than a friend. How many {things} does the friend have?",
            "{name} has {b} {things} and needs {a} in total. How many {things} are missing?",
            "{name} gets {b} more {things} and now has {a}. How many {things} were there before?",
            "{name} wants to sell {a} {things} and has already sold {b}. How many {things} remain?",
            "{name} collects {a} {things} in two days, {b} of them on the first. How many on the second?",
        ),
        "*": (
            "{name} has {a} {boxes} with {b} {things} in each. How many {things} are there?",
            "{name} puts {b} {things} into each of {a} {boxes}. How many {things} does it take?",
            "{name} buys {b} {things} a day for {a} days. How many {things} is that?",
            "{name} has {a} {things} and a friend has {b} times as many. How many does the friend have?",
            "{name} shares out some {things}: {a} friends get {b} each. How many {things} were there?",
            "{name} opens {a} {boxes} and takes {b} {things} out of each. How many {things} is that?",
            "{name} places {b} {things} on each of {a} tables. How many {things} does it take?",
        ),
        "/": (
            "{name} shares {a} {things} equally among {b} friends. How many {things} does each friend get?",
            "{name} fills {b} {boxes} equally with {a} {things}. How many {things} go into each?",
            "{name} packs {a} {things} into {boxes} of {b}. How many {boxes} are filled?",
            "{name} has {a} {things}, {b} times as many as a friend. How many does the friend have?",
            "{name} sells {b} {things} a day. How many days does it take to sell {a}?",
            "{name} buys {a} {things} in {b} equal {boxes}. How many {things} are in each?",
            "{name} lays out {a} {things} in {b} equal rows. How many {things} are in each row?",
        ),
    },
    "fr": {
        "+": (
            "{name} a {a} {things} et en achète encore {b}. Combien de {things} cela fait-il ?",
            "{name} a {a} {things} et sa sœur en a {b} de plus. Combien de {things} a sa sœur ?",
            "{name} donne {b} {things} et en garde {a}. Combien de {things} y avait-il au départ ?",
            "{name} a {a} {things}, soit {b} de moins que sa sœur. Combien de {things} a sa sœur ?",
            "On ajoute {b} {things} aux {a} que possède {name}. Combien de {things} cela fait-il ?",
            "{name} vend {b} {things} le matin et {a} l'après-midi. Combien de {things} cela fait-il ?",
            "{name} a perdu {b} {things} hier et {a} aujourd'hui. Combien de {things} manque-t-il en tout ?",
        ),
        "-": (
            "{name} a {a} {things} et en donne {b}. Combien de {things} reste-t-il ?",
            "{name} retire {b} {things} d'une boîte qui en contient {a}. Combien de {things} y reste-t-il ?",
            "{name} a {a} {things}, soit {b} de plus que sa sœur. Combien de {things} a sa sœur ?",
            "{name} a {b} {things} et en veut {a} en tout. Combien de {things} faut-il encore ?",
            "{name} reçoit encore {b} {things} et en a désormais {a}. Combien y en avait-il avant ?",
            "{name} veut vendre {a} {things} et en a déjà vendu {b}. Combien en reste-t-il à vendre ?",
            "{name} réunit {a} {things} en deux jours, dont {b} le premier. Combien le second jour ?",
        ),
        "*": (
            "{name} a {a} {boxes} de {b} {things}. Combien de {things} cela fait-il ?",
            "{name} met {b} {things} dans chacun{E} des {a} {boxes}. Combien de {things} faut-il ?",
            "{name} achète {b} {things} par jour pendant {a} jours. Combien de {things} cela fait-il ?",
            "{name} a {a} {things} et sa sœur en a {b} fois plus. Combien de {things} a sa sœur ?",
            "{name} partage des {things} : {a} amis en reçoivent {b} chacun. Combien de {things} en tout ?",
            "{name} ouvre {a} {boxes} et sort {b} {things} de chacun{E}. Combien de {things} cela fait-il ?",
            "{name} pose {b} {things} sur chacune des {a} tables. Combien de {things} faut-il ?",
        ),
        "/": (
            "{name} partage à parts égales {a} {things} entre {b} amis. Combien en reçoit chaque ami ?",
            "Dans {b} {boxes}, {name} répartit à parts égales {a} {things}. Combien en contient chacun{E} ?",
            "{name} range {a} {things} dans des {boxes} de {b}. Combien de {boxes} faut-il ?",
            "{name} a {a} {things}, soit {b} fois plus que sa sœur. Combien de {things} a sa sœur ?",
            "{name} vend {b} {things} par jour. Combien de jours faut-il pour en vendre {a} ?",
            "{name} achète {a} {things} en {b} {boxes} identiques. Combien en contient chacun{E} ?",
            "{name} dispose {a} {things} en {b} rangées égales. Combien de {things} y a-t-il par rangée ?",
        ),
    },
    "es": {
        "+": (
            "{name} tiene {a} {things} y compra {b} más. ¿Cuánt{o}s {things} tiene ahora?",
            "{name} tiene {a} {things} y su hermana tiene {b} más. ¿Cuánt{o}s {things} tiene su hermana?",
            "{name} regala {b} {things} y se queda con {a}. ¿Cuánt{o}s {things} tenía al principio?",
            "{name} tiene {a} {things}, {b} menos que su hermana. ¿Cuánt{o}s {things} tiene su hermana?",
            "Se añaden {b} {things} a l{o}s {a} que ya tiene {name}. ¿Cuánt{o}s {things} hay ahora?",
            "{name} vende {b} {things} por la mañana y {a} por la tarde. ¿Cuánt{o}s {things} vende?",
            "{name} perdió {b} {things} ayer y {a} hoy. ¿Cuánt{o}s {things} faltan?",
        ),
        "-": (
            "{name} tiene {a} {things} y regala {b}. ¿Cuánt{o}s {things} quedan?",
            "{name} saca {b} {things} de una caja con {a}. ¿Cuánt{o}s {things} quedan en la caja?",
            "{name} tiene {a} {things}, {b} más que su hermana. ¿Cuánt{o}s {things} tiene su hermana?",
            "{name} tiene {b} {things} y necesita {a} en total. ¿Cuánt{o}s {things} faltan?",
            "{name} recibe {b} {things} más y ahora tiene {a}. ¿Cuánt{o}s {things} tenía antes?",
            "{name} quiere vender {a} {things} y ya ha vendido {b}. ¿Cuánt{o}s {things} quedan por vender?",
            "{name} reúne {a} {things} en dos días, {b} el primero. ¿Cuánt{o}s {things} reúne el segundo?",
        ),
        "*": (
            "{name} tiene {a} {boxes} con {b} {things} cada un{O}. ¿Cuánt{o}s {things} hay?",
            "{name} mete {b} {things} en cada un{O} de l{O}s {a} {boxes}. ¿Cuánt{o}s {things} mete?",
            "{name} compra {b} {things} al día durante {a} días. ¿Cuánt{o}s {things} compra?",
            "{name} tiene {a} {things} y su hermana, {b} veces esa cantidad. ¿Cuánt{o}s tiene su hermana?",
            "{name} reparte {things}: {a} amigos reciben {b} cada uno. ¿Cuánt{o}s {things} había?",
            "{name} abre {a} {boxes} y saca {b} {things} de cada un{O}. ¿Cuánt{o}s {things} saca?",
            "{name} coloca {b} {things} en cada una de las {a} mesas. ¿Cuánt{o}s {things} coloca?",
        ),
        "/": (
            "{name} reparte {a} {things} por igual entre {b} amigos. ¿Cuánt{o}s {things} recibe cada amigo?",
            "En {b} {boxes}, {name} reparte por igual {a} {things}. ¿Cuánt{o}s hay en cada un{O}?",
            "{name} guarda {a} {things} en {boxes} de {b}. ¿Cuánt{O}s {boxes} llena?",
            "{name} tiene {a} {things}, {b} veces lo que tiene su hermana. ¿Cuánt{o}s tiene su hermana?",
            "{name} vende {b} {things} al día. ¿Cuántos días tarda en vender {a}?",
            "{name} compra {a} {things} en {b} {boxes} iguales. ¿Cuánt{o}s hay en cada un{O}?",
            "{name} coloca {a} {things} en {b} filas iguales. ¿Cuánt{o}s {things} hay en cada fila?",
        ),
    },
    "it": {
        "+": (
            "{name} ha {a} {things} e ne compra altr{i} {b}. Quant{i} {things} ha adesso?",
            "{name} ha {a} {things} e sua sorella ne ha {b} in più. Quant{i} {things} ha la sorella?",
            "{name} regala {b} {things} e ne tiene {a}. Quant{i} {things} aveva all'inizio?",
            "{name} ha {a} {things}, {b} in meno di sua sorella. Quant{i} {things} ha la sorella?",
            "Arrivano {b} {things}; {name} ne aveva già {a}. Quant{i} {things} ci sono adesso?",
            "{name} vende {b} {things} al mattino e {a} al pomeriggio. Quant{i} {things} vende?",
            "{name} ha perso {b} {things} ieri e {a} oggi. Quant{i} {things} mancano?",
        ),
        "-": (
            "{name} ha {a} {things} e ne regala {b}. Quant{i} {things} restano?",
            "{name} toglie {b} {things} da una scatola che ne contiene {a}. Quant{i} {things} vi restano?",
            "{name} ha {a} {things}, {b} in più di sua sorella. Quant{i} {things} ha la sorella?",
            "{name} ha {b} {things} e ne vuole {a} in tutto. Quant{i} {things} mancano?",
            "{name} riceve altr{i} {b} {things} e ora ne ha {a}. Quant{i} {things} aveva prima?",
            "{name} vuole vendere {a} {things} e ne ha già vendut{i} {b}. Quant{i} restano da vendere?",
            "{name} raccoglie {a} {things} in due giorni, di cui {b} il primo. Quant{i} il secondo?",
        ),
        "*": (
            "{name} ha {a} {boxes} con {b} {things} ciascun{O}. Quant{i} {things} ci sono?",
            "{name} mette {b} {things} in ciascun{O} di {a} {boxes}. Quant{i} {things} servono?",
            "{name} compra {b} {things} al giorno per {a} giorni. Quant{i} {things} compra?",
            "{name} ha {a} {things} e sua sorella ne ha {b} volte tant{i}. Quant{i} {things} ha la sorella?",
            "{name} distribuisce {things}: {a} amici ne ricevono {b} ciascuno. Quant{i} {things} c'erano?",
            "{name} apre {a} {boxes} e toglie {b} {things} da ciascun{O}. Quant{i} {things} toglie?",
            "{name} mette {b} {things} su ciascuno di {a} tavoli. Quant{i} {things} servono?",
        ),
        "/": (
            "{name} divide {a} {things} in parti uguali fra {b} amici. Quant{i} {things} riceve ogni amico?",
            "In {b} {boxes} {name} distribuisce equamente {a} {things}. Quant{i} ce ne sono in ciascun{O}?",
            "{name} mette {a} {things} in {boxes} da {b}. Quant{I} {boxes} riempie?",
            "{name} ha {a} {things}, {b} volte quell{i} di sua sorella. Quant{i} {things} ha la sorella?",
            "{name} vende {b} {things} al giorno. Quanti giorni servono per venderne {a}?",
            "{name} compra {a} {things} in {b} {boxes} uguali. Quant{i} ce ne sono in ciascun{O}?",
            "{name} dispone {a} {things} in {b} file uguali. Quant{i} {things} ci sono in ogni fila?",
        ),
    },
}


@dataclass(frozen=True)
class Problem:
    """A question on two numbers with four options; one has both the operation and the result right."""

    id: str  # "fr-search-0012"
    language: str
    split: str
    operation: str  # "+", "-", "*" or "/"
    template: str  # "fr+3"
    form: str  # "known": a template of every split; "own": one of the test split only
    first: int  # left operand
    second: int  # right operand
    name: str  # the person in the text
    question: str
    expression: str  # "12 + 5"
    result: int
    options: tuple[str, ...]  # four of "12 + 5 = 17"
    answer: int  # index of the right option


@dataclass(frozen=True)
class Template:
    """One wording of one operation in one language."""

    id: str
    language: str
    operation: str
    form: str
    text: str


def generate(language: str, split: str, count: int, seed: int) -> list[Problem]:
    """Returns `count` problems, no two with the same question; the same arguments give the same problems.

    The four operations, the templates and the wrong operations take turns, then the order is shuffled. Every
    fourth problem writes its numbers in digits; in the test split every fourth has a template of its own.

    Raises:
        ValueError: if language or split is unknown, or count is negative or above the distinct questions.
    """
    _check_known("language", language, LANGUAGES)
    _check_known("split", split, SPLITS)
    if count < 0:
        raise ValueError(f"count must not be negative, but is {count}")
    entropy = [seed, LANGUAGES.index(language), SPLITS.index(split), count]
    rng = np.random.default_rng(np.random.SeedSequence(entropy))
    cells = [
        (template, wrong, *cell)
        for (template, wrong), wanted in _demand(language, split, count).items()
        for cell in _draw(_cells(template, wrong, split), wanted, rng)
    ]
    cells = _draw(cells, count, rng)
    in_digits = rng.permutation(count) % 4 == 0
    return [
        _problem(f"{language}-{split}-{index:04d}", split, *cell, bool(digits), rng)
        for index, (cell, digits) in enumerate(zip(cells, in_digits, strict=True))
    ]


def contrast(first: int, second: int) -> str:
    """Returns the two operations offered on this pair of numbers, "" if the pair is in no problem.

    A quotient is exact and in 12..49, a product has a factor in 3..9, a difference is 3 at least; no number
    ends in 1. As the pair alone decides, it does not tell which of the two operations the text asks for.
    """
    if first % 10 == 1 or second % 10 == 1:
        return ""
    quotient, rest = divmod(first, second)
    if 3 <= second <= 9 and rest == 0 and 12 <= quotient <= 49:
        return "*/" if first < 100 else "+/" if quotient % 2 else "-/"
    if 3 <= second <= 9 and 12 <= first <= 49:
        return "-*"
    if 3 <= first <= 9 and 12 <= second <= 49:
        return "+*"
    if 12 <= second <= first - 3 and first <= 99:
        return "+-"
    return ""


def evaluate(first: int, operation: str, second: int) -> int:
    """Returns the result of an operation; a division is taken to be exact."""
    results = {"+": first + second, "-": first - second, "*": first * second, "/": first // second}
    return results[operation]


def split_of(key: str) -> str:
    """Returns the split that a name or a pair of numbers belongs to, in every language and process."""
    digest = hashlib.sha256(key.encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    if place < SHARES["train"]:
        return "train"
    return "search" if place < SHARES["train"] + SHARES["search"] else "test"


@cache
def names(language: str, split: str) -> tuple[str, ...]:
    """Returns the first names of a language that belong to a split: one word, letters only, sorted."""
    provider = importlib.import_module(f"faker.providers.person.{LOCALES[language]}").Provider
    return tuple(sorted(n for n in set(provider.first_names) if n.isalpha() and split_of(n) == split))


@cache
def pairs(split: str, operations: str) -> tuple[tuple[int, int], ...]:
    """Returns the pairs of numbers of a split on which these two operations are offered."""
    return tuple(
        (first, second)
        for first, second in product(range(3, 442), range(3, 100))
        if contrast(first, second) == operations and split_of(f"{sorted((first, second))}") == split
    )


@cache
def templates(language: str, operation: str, form: str) -> tuple[Template, ...]:
    """Returns the templates of an operation, "known" or "own"."""
    texts = TEXTS[language][operation]
    numbered = list(enumerate(texts, start=1))
    chosen = numbered[-OWN:] if form == "own" else numbered[:-OWN]
    return tuple(Template(f"{language}{operation}{n}", language, operation, form, t) for n, t in chosen)


def _check_known(what: str, given: str, known: tuple[str, ...]) -> None:
    if given not in known:
        raise ValueError(f"{what} must be one of {', '.join(known)}, not {given!r}")


def _demand(language: str, split: str, count: int) -> Counter[tuple[Template, str]]:
    """Counts how many problems each template gives with each wrong operation."""
    demand: Counter[tuple[Template, str]] = Counter()
    for given, (template, wrong) in enumerate(islice(_turns(language, split), count)):
        demand[template, wrong] += 1
        if demand[template, wrong] > len(_cells(template, wrong, split)):
            raise ValueError(
                f"{count} problems asked, but {language!r} has {given} distinct questions for {split!r}: "
                "ask for no more, or add templates or things"
            )
    return demand


def _turns(language: str, split: str) -> Iterator[tuple[Template, str]]:
    """Yields templates and wrong operations without end, the operations in turn."""
    turns = {
        (operation, form): cycle(_round(templates(language, operation, form), _others(operation)))
        for operation in OPERATIONS
        for form in ("known", "own")
    }
    for index in cycle(range(16)):
        own = split == "test" and (index + index // 4) % 4 == 3  # each operation once in 16
        yield next(turns[OPERATIONS[index % 4], "own" if own else "known"])


def _round(known: tuple[Template, ...], others: tuple[str, ...]) -> list[tuple[Template, str]]:
    """Pairs each template with each other operation once; a short request has most of both."""
    shifts, turns = range(len(others)), list(enumerate(known))
    return [(template, others[(turn + shift) % len(others)]) for shift in shifts for turn, template in turns]


def _others(operation: str) -> tuple[str, ...]:
    return tuple(other for other in OPERATIONS if other != operation)


@cache
def _cells(template: Template, wrong: str, split: str) -> tuple[tuple[tuple[str, ...], tuple[int, int]], ...]:
    """Returns all that a template can be filled with, short of names: things and a pair of numbers."""
    operations = "".join(o for o in OPERATIONS if o in (template.operation, wrong))
    return tuple(product(THINGS[template.language], pairs(split, operations)))


def _draw(items: Sequence[Item], count: int, rng: np.random.Generator) -> list[Item]:
    """Draws `count` of the items without replacement, in random order."""
    return [items[i] for i in rng.permutation(len(items))[:count]]


def _problem(
    identifier: str,
    split: str,
    template: Template,
    wrong: str,
    thing: tuple[str, ...],
    pair: tuple[int, int],
    in_digits: bool,
    rng: np.random.Generator,
) -> Problem:
    known_names = names(template.language, split)
    name = known_names[rng.integers(len(known_names))]
    options, answer = _options(*pair, template.operation, wrong, rng)
    return Problem(
        id=identifier,
        language=template.language,
        split=split,
        operation=template.operation,
        template=template.id,
        form=template.form,
        first=pair[0],
        second=pair[1],
        name=name,
        question=_question(template, thing, pair, name, in_digits),
        expression=f"{pair[0]} {template.operation} {pair[1]}",
        result=evaluate(pair[0], template.operation, pair[1]),
        options=options,
        answer=answer,
    )


def _question(template: Template, thing: tuple[str, ...], pair: tuple[int, int], name: str, in_digits: bool) -> str:
    things, gender, boxes, gender_of_boxes = thing
    endings = ENDINGS[template.language]
    a, b = (str(n) if in_digits else _in_words(n, template.language, gender) for n in pair)
    slots = endings[gender] | {slot.upper(): end for slot, end in endings[gender_of_boxes].items()}
    return template.text.format(name=name, a=a, b=b, things=things, boxes=boxes, **slots)


@cache
def _in_words(number: int, language: str, gender: str) -> str:
    """Writes a number as it stands before a noun, which the Spanish hundreds agree with."""
    words = str(num2words(number, lang=language))
    if (language, gender) == ("es", "f"):
        return words.replace("cientos", "cientas")
    if language == "it" and number > 3:
        return re.sub("tre$", "tré", words)  # num2words 0.5.14 forgets the accent above 200
    return words


def _options(first: int, second: int, right: str, wrong: str, rng: np.random.Generator) -> tuple[tuple[str, ...], int]:
    """Crosses the right and the wrong operation with their true and false results, in random order."""
    truths = [evaluate(first, operation, second) for operation in (right, wrong)]
    falsehoods = _mistake(truths, rng)
    crossed = [
        f"{first} {operation} {second} = {result}"
        for operation, results in zip((right, wrong), zip(truths, falsehoods, strict=True), strict=True)
        for result in results
    ]
    order = rng.permutation(4).tolist()
    return tuple(crossed[i] for i in order), order.index(0)


def _mistake(truths: list[int], rng: np.random.Generator) -> list[int]:
    """Makes one mistake in all the results: off by 1, 2 or 10 or two digits swapped; as often up as down."""
    sign = int(rng.choice((-1, 1)))
    steps = [step for step in (1, 2, 10) if step < min(truths)]
    mistakes = [[truth + sign * step for truth in truths] for step in steps]
    swapped = [_swap(truth) for truth in truths]
    if all(sign * (swap - truth) > 0 for swap, truth in zip(swapped, truths, strict=True)):
        mistakes.append(swapped)
    return mistakes[rng.integers(len(mistakes))]


def _swap(number: int) -> int:
    """Swaps the last two digits; a number with fewer, or that would begin with 0, stays as it is."""
    hundreds, (tens, units) = number // 100, divmod(number % 100, 10)
    if hundreds == 0 and (tens == 0 or units == 0):
        return number
    return 100 * hundreds + 10 * units + tens
