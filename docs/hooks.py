"""What the site makes of the code: a page for each module, tables of benchmarks/results, and READMEs from elsewhere.

Modules are read, not imported: the site builds without torch.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import indent
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
READMES = {"data.md": ROOT / "data" / "README.md", "recipes.md": ROOT / "recipes" / "README.md"}
SECTIONS = ("Args:", "Returns:", "Raises:", "Yields:", "Attributes:")  # of a docstring
WIDTH = 100  # of a signature on one line
TABLE = re.compile(r"<!-- figures: (\w+) -->")
PART = re.compile(r"<!-- readme: (.+) -->")


def on_config(config: Any) -> None:
    """Put the pages that are made here into the navigation."""
    config["nav"] += [
        {
            "Reference": [
                {"What the stages write": "data.md"},
                {"Recipes": "recipes.md"},
                {"The Python interface": "reference.md"},
                {"Modules": [{name: page(name)} for name in modules()]},
            ]
        }
    ]


def on_files(files: Files, config: Any) -> Files:
    """Make the pages of the modules, and take READMEs as pages."""
    for name, source in READMES.items():
        files.append(File.generated(config, name, content=source.read_text(encoding="utf-8")))
    found = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in modules().items()}
    rows = [f"| [`{name}`]({page(name)}) | {_first(tree)} |" for name, tree in found.items()]
    files.append(File.generated(config, "reference.md", content="\n".join([INTERFACE, *rows, ""])))
    for name, tree in found.items():
        files.append(File.generated(config, page(name), content="\n\n".join(described(name, tree)) + "\n"))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put a benchmark's figures, or a part of the README, where a page asks for them."""
    return PART.sub(lambda match: readme(match[1]), TABLE.sub(lambda match: figures(match[1]), markdown))


INTERFACE = """# The Python interface

All of it in one call:

```python
from merge3.run import run

result = run("org/base", {"maths": "org/maths-tune", "german": "./german"}, "questions.jsonl", "merged")
```

Every module's docstring says what it knows and what it does not. Names that begin with `_` are left out.

| module | |
|---|---|"""


def modules() -> dict[str, Path]:
    """Every module with something to document, by its dotted name."""
    found = {}
    for package in ("merge3", "flows", "demo"):
        for path in sorted((ROOT / package).rglob("*.py")):
            if path.name not in ("__main__.py",) and path.read_text(encoding="utf-8").strip().count("\n"):
                parts = path.relative_to(ROOT).with_suffix("").parts
                found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def page(module: str) -> str:
    """The page of a module."""
    return f"reference/{module}.md"


def described(name: str, tree: ast.Module) -> Iterator[str]:
    """A module's page: its docstring, and its public classes and functions."""
    yield f"# {name}"
    yield prose(ast.get_docstring(tree) or "")
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield f"## `{node.name}`"
            yield f"```python\n{signature(node)}\n```"
            yield prose(ast.get_docstring(node) or "")
            if isinstance(node, ast.ClassDef):
                yield from methods(node)


def methods(node: ast.ClassDef) -> Iterator[str]:
    """The public methods of a class."""
    for inner in node.body:
        if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef) and not inner.name.startswith("_"):
            yield f"### `{node.name}.{inner.name}`"
            yield f"```python\n{signature(inner)}\n```"
            yield prose(ast.get_docstring(inner) or "")


def signature(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> str:
    """How a function is called, with types; of a class its fields."""
    marks = [f"@{ast.unparse(each)}" for each in node.decorator_list]
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(map(ast.unparse, node.bases))
        fields = [f"    {ast.unparse(each)}" for each in node.body if isinstance(each, ast.AnnAssign)]
        starts = [each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == "__init__"]
        made = [f"    {line}" for each in starts for line in signature(each).splitlines()]
        return "\n".join([*marks, f"class {node.name}({bases}):" if bases else f"class {node.name}:", *fields, *made])
    given, back = ast.unparse(node.args), f" -> {ast.unparse(node.returns)}" if node.returns else ""
    if len(node.name) + len(given) + len(back) > WIDTH:
        given = "\n" + "".join(f"    {each},\n" for each in _apart(given))
    return "\n".join([*marks, f"def {node.name}({given}){back}"])


def prose(docstring: str) -> str:
    """A docstring of Google's form as Markdown: its sections as bold words with lists."""
    lines, inside = [], False
    for line in docstring.splitlines():
        if line.strip() in SECTIONS:
            lines += ["", f"**{line.strip().rstrip(':')}**", ""]
            inside = True
        elif inside and line.startswith("    ") and not line.startswith("     "):
            lines.append("- " + _escaped(line.strip()))
        elif inside and line.startswith("     "):
            lines.append("  " + _escaped(line.strip()))
        else:
            inside = inside and not line.strip()
            lines.append(_escaped(line))
    return "\n".join(lines)


def figures(name: str) -> str:
    """A benchmark's figures, and the command and machine that made them: those with a target, the others folded."""
    rows = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))
    made = f"`{rows[0]['command']}` on {rows[0]['machine']}"
    aimed, others = ([row for row in rows if (row["target"] is None) == free] for free in (False, True))
    if not aimed:
        return f"{made}:\n\n{_table(others)}"
    met = sum(row["holds"] for row in aimed)
    shown = f"{made}; {met} of {len(aimed)} targets are met:\n\n{_table(aimed)}"
    if not others:
        return shown
    return f'{shown}\n\n??? note "{len(others)} figures without a target"\n\n{indent(_table(others), "    ")}'


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Figures as a table, with their targets where they have any."""
    aimed = rows[0]["target"] is not None
    lines = ["| figure | value | target | |", "|---|---|---|---|"] if aimed else ["| figure | value |", "|---|---|"]
    for row in rows:
        target = f" {row['target']:g} | {'met' if row['holds'] else '**missed**'} |" if aimed else ""
        lines.append(f"| {row['figure'].replace('|', '/')} | {row['value']:g} {row['unit']} |{target}")
    return "\n".join(lines)


def readme(heading: str) -> str:
    """The part of the README under a heading, and the heading."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(rf"^#+ {re.escape(heading)}\n.*?(?=^#)", text, re.DOTALL | re.MULTILINE)
    if found is None:
        raise ValueError(f"README.md has no heading {heading!r}")
    return found[0]


def _first(tree: ast.Module) -> str:
    return _escaped((ast.get_docstring(tree) or "").split("\n\n")[0].replace("\n", " ")).replace("|", "\\|")


def _escaped(line: str) -> str:
    """No HTML and no links out of a docstring, but for what stands between backticks."""
    parts = re.split(r"(`[^`]*`)", line)
    kept = [part if part.startswith("`") else re.sub(r"([<\[\]*_])", r"\\\1", part) for part in parts]
    return "".join(kept)


def _apart(arguments: str) -> Iterator[str]:
    """Arguments, parted at the commas that no bracket or quotation holds."""
    depth, quoted, last = 0, False, 0
    for place, letter in enumerate(arguments):
        quoted ^= letter == "'"
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth and not quoted:
            yield arguments[last:place].strip()
            last = place + 1
    yield arguments[last:].strip()
