"""ARC-Challenge in four languages as items: `python recipes/multilingual_arc/questions.py arc.parquet`. Needs a hub."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from merge3 import items
from merge3.benchmark import Form, rows, to_items
from merge3.items import Item

SOURCE = "openGPT-X/arcx"  # one configuration a language: challenge_IT, ...
WORDS = {
    "de": ("Frage", "Antwort"),
    "en": ("Question", "Answer"),
    "it": ("Domanda", "Risposta"),
    "nl": ("Vraag", "Antwoord"),
}


def questions(language: str, table: Iterable[Mapping[str, Any]]) -> list[Item]:
    """The items of one language."""
    ask, reply = WORDS[language]
    form = Form(
        prompt=f"{ask}: {{{{question}}}}\n{reply}:",
        options="choices.text",
        answer="answerKey",
        labels="choices.label",
        id="id",
    )
    made = to_items([dict(row) for row in table], form, [], SOURCE)
    return [replace(item, id=f"{language}:{item.id}", group=language) for item in made]


if __name__ == "__main__":
    found = [
        item
        for language in WORDS
        for item in questions(language, rows(SOURCE, f"challenge_{language.upper()}", "test"))
    ]
    items.write(Path(sys.argv[1]), found)
