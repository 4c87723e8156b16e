"""The documentation: it builds without a warning, its links lead somewhere, its commands run, its figures are measured.

A code block says how it is held true, in a comment before it: `<!-- run -->` is run, line by line, in a small world;
`<!-- parse: why not -->` is understood by the parser that would read it. Blocks of `text` are no commands.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from html import escape
from html.parser import HTMLParser
from importlib.util import find_spec
from itertools import dropwhile, groupby
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pandas as pd
import pytest
import yaml

from flows import check
from merge3 import cli, items, mergefile, responses, run
from merge3.benchmark import with_share
from merge3.items import Item

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "recipes" / "README.md", ROOT / "data" / "README.md"]
PAGES += sorted((ROOT / "docs").glob("*.md"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"(?:^<!-- (run|parse: [^>]+) -->\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = [
    pytest.param(*match.groups(), id=f"{page.relative_to(ROOT)}:{page.read_text()[: match.start()].count(chr(10)) + 1}")
    for page in PAGES
    for match in BLOCK.finditer(page.read_text(encoding="utf-8"))
    if match[2] != "text"
]
RUN = list({block.values: block for block in BLOCKS if block.values[0] == "run"}.values())  # each once
PARSED = [block for block in BLOCKS if block.values[0] != "run"]
THEIRS = {".", "git", "pip", "llama.cpp/build/bin/llama-quantize"}  # whose options are not known here
COMMANDS = next(action for action in cli.parser()._actions if action.dest == "command").choices


# --- the site


class Page(HTMLParser):
    """What a page of the site links to, loads, and offers as anchors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links, self.loads, self.anchors = set[str](), set[str](), set[str]()
        self.pictures_without_words = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.anchors |= {given[name] or "" for name in ("id", "name") if name in given}
        if tag == "a" and given.get("href"):
            self.links.add(str(given["href"]))
        if tag in ("script", "img", "source", "iframe") and given.get("src"):
            self.loads.add(str(given["src"]))
        if tag == "link" and given.get("href") and given.get("rel") in ("stylesheet", "icon", "preload", "preconnect"):
            self.loads.add(str(given["href"]))
        self.pictures_without_words += tag == "img" and not given.get("alt")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Page]:
    """The built site: its pages, by file."""
    if find_spec("mkdocs") is None:
        pytest.skip("needs mkdocs-material")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=quiet)
    assert (built.returncode, built.stderr) == (0, "")
    return {path: Page(path.read_text(encoding="utf-8")) for path in sorted(out.rglob("*.html"))}


def test_every_link_of_the_site_leads_somewhere(site: dict[Path, Page]) -> None:
    assert len(site) > 60
    broken = [
        (file.name, link)
        for file, page in site.items()
        for link in page.links | page.loads
        if not found(file, link, {path: each.anchors for path, each in site.items()})
    ]
    assert broken == []


def found(file: Path, link: str, anchors: dict[Path, set[str]]) -> bool:
    """Whether a link of `file` leads to a file, and to an anchor of it where it names one."""
    parts = urlsplit(link)
    if parts.scheme in ("http", "https") or file.name == "404.html":
        return True
    target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
    if target.is_dir():
        target /= "index.html"
    return target.exists() and (target not in anchors or not parts.fragment or parts.fragment in anchors[target])


def test_the_site_is_read_without_a_network_and_its_pictures_have_words(site: dict[Path, Page]) -> None:
    for page in site.values():
        assert not [link for link in page.loads if urlsplit(link).netloc]
        assert page.pictures_without_words == 0


def test_the_page_of_results_has_every_figure_and_folds_those_without_a_target(site: dict[Path, Page]) -> None:
    text = next(path for path in site if path.name == "results.html").read_text(encoding="utf-8")
    folded = "".join(re.findall(r"<details.*?</details>", text, re.DOTALL))
    for name in re.findall(r"<!-- figures: (\w+) -->", (ROOT / "docs" / "results.md").read_text()):
        rows = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())
        free = [row["target"] is None for row in rows]
        for row, without in zip(rows, free, strict=True):
            cell = f"<td>{escape(row['figure'].replace('|', '/'), quote=False)}</td>"
            assert cell in text, (name, row["figure"])
            assert not without or all(free) or cell in folded, (name, row["figure"])


def test_the_reference_has_every_module_and_its_words(site: dict[Path, Page]) -> None:
    pages = {path.stem: path for path in site if path.parent.name == "reference"}
    assert {"merge3.extract", "merge3.cli", "flows.stage", "demo.base"} <= set(pages)
    assert "fit_items" in pages["merge3.irt"].read_text()


# --- the README


def test_the_readmes_links_lead_to_files() -> None:
    for text, link in re.findall(r"\[([^\]]*)\]\(([^)]+)\)", README):
        assert text
        assert urlsplit(link).scheme or (ROOT / link.split("#")[0]).exists(), link


def test_the_tree_lists_every_module_and_nothing_else() -> None:
    tree = README[README.index("## The tree") :]
    listed: dict[str, set[str]] = {}
    folder = ""
    for line in tree.splitlines():
        if found := re.match(r"(\w+)/", line):
            folder = found[1]
        names = re.findall(r"[\w<>]+\.py", line) + re.findall(r"\b(report_\w+)\b", line)
        listed.setdefault(folder, set()).update(name.removesuffix(".py") for name in names)
    for name in ("merge3", "flows", "demo"):
        there = {path.stem for path in (ROOT / name).glob("*.py") if path.stem != "__init__"}
        stages = {*check.STAGES} if name == "flows" else set[str]()
        assert there - stages == listed[name] - {"<stage>"}, name


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 240


# --- figures


def results(name: str) -> dict[str, float]:
    rows = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())
    return {row["figure"]: row["value"] for row in rows}


def test_the_tables_of_the_search_are_the_benchmarks() -> None:
    page = (ROOT / "docs" / "evolution.md").read_text().replace("**", "")
    for figure, value in results("evolution").items():
        if match := re.fullmatch(r"regret, (?:pooled, )?\w+, [\d,]+ answers (\[.*\])", figure):
            assert f"{value:.1f} {match[1]}" in page, figure


def test_the_table_of_merging_is_the_benchmarks() -> None:
    page = (ROOT / "docs" / "merging.md").read_text().partition("## Against mergekit")[2]
    measured = results("merging")
    for method in ("linear", "task_arithmetic", "slerp", "ties", "breadcrumbs", "model_stock", "breadcrumbs_ties"):
        time, together, faster, memory = (
            measured[f"{method}: {figure}"]
            for figure in (
                "time / floor",
                "time / floor, 12 together",
                "mergekit's time / ours",
                "peak memory / mergekit's",
            )
        )
        row = next(line for line in page.splitlines() if f"| {method} |" in line)
        told = [float(cell.strip().removesuffix(" x")) for cell in row.split("|")[2:6]]
        assert told == pytest.approx([time, together, faster, memory], abs=0.51, rel=0.03), method
        assert told[:2] == pytest.approx([time, together], abs=0.051), method


def test_the_result_that_the_readme_shows_is_the_one_in_git() -> None:
    command = ["git", "show", ":data/evaluate/metrics.json"]  # a run on another kind of processor replaces the file
    kept = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout)
    winner = kept["winner"]
    low, high = (f"{100 * winner[name]:.1f}" for name in ("low", "high"))
    assert f"| **evolved merge** | **{100 * winner['accuracy']:.1f}** | {low}-{high} |" in README
    groups = kept["over_best_standard"]["groups"].values()
    for lead in (kept["over_best_expert"], kept["over_uniform_average"], *groups):
        shown = [f"{100 * lead[key]:+.1f}" for key in ("lead", "lead_low", "lead_high")]
        assert f"{shown[0]} [{shown[1]}, {shown[2]}]" in README


def test_the_tables_of_seeds_are_the_benchmarks() -> None:
    page = (ROOT / "docs" / "evolution.md").read_text()
    for study, groups in (("transfer", ("all", "fr", "es", "it")), ("multilingual", ("all", "en", "es", "fr", "it"))):
        for row in pd.read_csv(ROOT / "benchmarks" / "results" / f"seeds_{study}.csv").to_dict("records"):
            leads = [
                f"{100 * row[f'{group} lead']:+.1f} [{100 * row[f'{group} lead_low']:+.1f}, "
                f"{100 * row[f'{group} lead_high']:+.1f}]"
                for group in groups
            ]
            joins = "after every fourth generation" if row["join"] else "never"
            first = f"| {joins} " if study == "transfer" else ""
            shown = f"{first}| {row['seed']} | {100 * row['accuracy']:.1f} | {' | '.join(leads)} |"
            assert shown in page, shown


def test_the_multilingual_table_is_of_the_scores_in_git() -> None:
    scores = pd.read_csv(ROOT / "benchmarks" / "results" / "multilingual.csv")
    assert len(scores) == 9
    for row in scores.to_dict("records"):
        groups = " | ".join(f"{100 * row[f'group {group}']:.0f}" for group in ("en", "es", "fr", "it"))
        lead, low, high = (f"{100 * row[name]:+.1f}" for name in ("lead", "lead_low", "lead_high"))
        shown = "" if row["kind"] == "winner" else f"{lead} [{low}, {high}]"
        accuracy = f"{'**' * (not shown)}{100 * row['accuracy']:.1f}{'**' * (not shown)}"
        interval = f"{100 * row['low']:.1f}-{100 * row['high']:.1f}"
        assert f" | {accuracy} | {interval} | {groups} | {shown} |" in README, row["model"]
    seeds = json.loads((ROOT / "benchmarks" / "results" / "seeds_multilingual.json").read_text())
    mean, low, high = (figure["value"] for figure in seeds[3:6])
    assert f"in the mean by {mean:.1f} points [{low:+.1f}, {high:+.1f}]".replace("0.", ".") in README


# --- commands


def test_every_block_says_how_it_is_held_true() -> None:
    assert len(RUN) >= 6
    assert [block.id for block in PARSED if not block.values[0]] == []


def test_the_table_of_commands_is_the_parsers() -> None:
    page = (ROOT / "docs" / "command-line.md").read_text()
    rows = re.findall(r"^\| `merge3 (\w+)` \| .+ \| .+ \|$", page, re.MULTILINE)
    assert sorted(rows) == sorted(COMMANDS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_a_sentence_exist_with_their_options(page: Path) -> None:
    for said in re.findall(r"`merge3 ((?!-)[^`]+)`", BLOCK.sub("", page.read_text())):
        name = said.split()[0]
        if name == "COMMAND":
            continue
        known = {option for action in COMMANDS[name]._actions for option in action.option_strings}
        assert set(re.findall(r"--[\w-]+", said)) <= known, said


@pytest.fixture(scope="module")
def small(saved: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that the commands name: models, questions, a merge file, tables, answers."""
    folder = tmp_path_factory.mktemp("small")
    copies = {"base": ("base", "org/base"), "first": ("a", "org/a", "org/maths-tune"), "second": ("b", "german")}
    for source, names in copies.items():
        for name in names:
            shutil.copytree(saved[source], folder / name)
    asked = [Item(f"q{n}", f"Say {n}: ", (f"{n}a", f"{n + 1}b"), n % 2, "xy"[n % 2]) for n in range(40)]
    rows = [
        {"id": item.id, "prompt": item.prompt, "options": item.options, "answer": item.answer, "group": item.group}
        for item in asked
    ]
    for name in ("questions.jsonl", "items.jsonl"):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "data" / "prepare").mkdir(parents=True)
    (folder / "data" / "evolve").mkdir()
    items.write(folder / "data" / "prepare" / "search.parquet", asked)
    merge = {"base": str(folder / "base"), "experts": {"a": str(folder / "a"), "b": str(folder / "b")}}
    merge |= {"method": "ties", "weights": {"a": 0.5, "b": 0.4}, "densities": {"a": 0.4}}
    for name in ("merge.yaml", "data/evolve/winner.yaml"):
        (folder / name).write_text(yaml.safe_dump(merge))
    answers = np.random.default_rng(0).integers(0, 2, (6, 40)).astype(float)
    table = responses.table([f"model-{n}" for n in range(6)], [item.id for item in asked], answers)
    table.to_csv(folder / "matrix.csv")
    asking = ["respond", "--model", str(folder / "a"), "--items", str(folder / "items.jsonl")]
    assert cli.main([*asking, "--out", str(folder / "t.parquet"), "--store", str(folder / "data/evolve/answers")]) == 0
    return folder


@pytest.mark.parametrize(("mark", "language", "body"), RUN)
def test_a_block_runs(
    mark: str, language: str, body: str, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    shutil.copytree(small, here, copy_function=os.link)
    monkeypatch.chdir(here)
    if language == "python":
        monkeypatch.setattr(run, "run", partial(run.run, budget=12))  # candidates: enough to see it run
        exec(compile(body, "block", "exec"), {})
        return
    for words in lines(body):
        assert words[0] == "merge3", "only our own commands are run here: mark others with `parse`"
        if {"--help", "--print-completion"} & {*words}:
            with pytest.raises(SystemExit, match="0"):
                cli.main(words[1:])
        else:
            assert cli.main([*words[1:], *(["--budget", "12"] if words[1] == "run" else [])]) == 0


@pytest.mark.parametrize(("mark", "language", "body"), PARSED)
def test_a_block_is_understood(mark: str, language: str, body: str) -> None:
    if language == "yaml":
        values = yaml.safe_load(body)
        if "method" in values:
            mergefile.from_dict(values)
        else:
            whole = yaml.safe_load((ROOT / "params.yaml").read_text())
            if "source" in values:  # a file for --items
                values = {"prepare": {"benchmark": with_share(values, None, "block"), "problems": None}}
            benchmark = values.get("prepare", {})
            assert [*check.stages(whole | values), *check.values(whole | values)] == []
            assert benchmark
        return
    assert language == ""
    for words in lines(body):
        understand(words)


def lines(body: str) -> Iterator[list[str]]:
    """The commands of a block, without comments and variables before them."""
    for line in body.replace("\\\n", " ").splitlines():
        told = shlex.split(line.split("|")[0], comments=True)
        for _, part in groupby(told, lambda word: word == "&&"):
            if words := list(dropwhile(lambda word: re.fullmatch(r"\w+=\S+", word) is not None, part)):
                yield words


def understand(words: list[str]) -> None:
    """Have a command read by the parser that would read it."""
    name, given = words[0], words[1:]
    if name == "merge3":
        cli.parser().parse_args(given)
    elif name == "make":
        subprocess.run(["make", "--dry-run", "--silent", *given], cwd=ROOT, check=True, capture_output=True)
    elif name == "dvc":
        from dvc.cli import parse_args

        parse_args(given)
    elif name == "dask":
        from distributed.cli import dask_scheduler, dask_worker

        command: Any = {"scheduler": dask_scheduler, "worker": dask_worker}[given[0]].main
        command.make_context(given[0], given[1:])
    elif name == "python" and given[0] == "-m":
        assert (ROOT / given[1].replace(".", "/")).with_suffix(".py").exists()
    elif name == "python":
        assert given[0].startswith("llama.cpp/") or (ROOT / given[0]).exists()
    elif name == "cp":
        assert (ROOT / given[0]).exists()
    elif name != "&&":
        assert name in THEIRS, f"{name}: no parser known"
