"""The page says what the tables say, to everyone, and nothing more."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from flows import report as stage
from merge3 import items
from merge3.report import (
    Results,
    count,
    fraction,
    headline,
    outcome,
    p_value,
    page,
    percent,
    points,
    ranked,
    short_genes,
)

EXPERTS = ["english_arithmetic", "french_language", "spanish_language", "italian_language"]
GROUPS = ["fr", "es", "it"]
GENES = [f"weight {expert} {group} 0" for group in ("attention", "mlp") for expert in EXPERTS]
ATTACK = "<script>alert(1)</script>"
VOID = {"meta", "br", "link", "img", "hr", "input"}


def scores_of(names):
    rng = np.random.default_rng(1)
    kinds = ["winner"] + ["standard merge"] * 3 + ["base"] + ["expert"] * (len(names) - 5)
    accuracy = np.array([0.613, 0.532, 0.547, 0.489, 0.121, 0.503, 0.341, 0.298, 0.317])[: len(names)]
    table = pd.DataFrame({"model": names, "kind": kinds, "accuracy": accuracy})
    table["low"], table["high"] = accuracy - 0.036, accuracy + 0.036
    table["lead"] = accuracy[0] - accuracy
    table["lead_low"], table["lead_high"] = table["lead"] - 0.031, table["lead"] + 0.031
    table["mcnemar_p"] = np.where(table["lead"] > 0.1, 1e-9, 0.0123)
    table.loc[0, ["lead", "lead_low", "lead_high", "mcnemar_p"]] = [0, 0, 0, 1]
    for group in [*(f"group {g}" for g in GROUPS), "form symbols", "form words"]:
        table[group] = np.clip(accuracy + rng.normal(0, 0.05, len(table)), 0, 1)
    return table


def history_of(genes, generations=16, population=12):
    rng = np.random.default_rng(2)
    rows = []
    for generation in range(generations):
        for candidate in range(population):
            estimate = 0.3 + 0.28 * (1 - np.exp(-generation / 4)) + rng.normal(0, 0.05)
            place = {"generation": generation, "candidate": candidate}
            place["phenotype"] = f"{generation:02d}{candidate:02d}".ljust(64, "e")
            place |= {
                "estimate": estimate,
                "low": estimate - 0.06,
                "high": estimate + 0.06,
                "margin": 0.5,
                "tokens": 1620,
            }
            rows.append(place | dict(zip(genes, rng.beta(2, 2, len(genes)), strict=True)))
    return pd.DataFrame(rows)


def asked(tokens):
    return {"tokens": tokens, "this_run": cost(tokens)}


def cost(tokens):
    return {"tokens": tokens, "flops": tokens * 2 * 10**8, "merging_seconds": 41.5, "answering_seconds": 612.0}


@pytest.fixture(scope="module")
def results():
    """A study as its stages write it: the winner leads the best expert by 11.0 points."""
    rng = np.random.default_rng(3)
    names = ["evolved merge", "uniform average", "task arithmetic", "TIES", "base", *EXPERTS]
    history = history_of(GENES)
    sample = history.iloc[::24][["generation", "candidate", "phenotype", "estimate", "low", "high"]].reset_index(
        drop=True
    )
    sample["truth"] = sample["estimate"] + rng.normal(0, 0.03, len(sample))
    scores = scores_of(names)
    weights = {g: {e: [round(float(rng.uniform(0, 1.2)), 2)] for e in EXPERTS} for g in ("attention", "mlp")}
    recipe = {"method": "task_arithmetic", "experts": EXPERTS, "weights": weights, "densities": {}, "mask_seed": 0}
    finalists = history.sort_values("estimate", ascending=False)[["phenotype", "estimate", "low", "high"]].head(5)
    fields = ["lead", "lead_low", "lead_high", "mcnemar_p"]
    by_model = scores.set_index("model")
    return Results(
        study="transfer",
        experts=EXPERTS,
        search_items=dict.fromkeys(GROUPS, 320),
        test_items=720,
        metrics={
            "study": "transfer",
            "winner": {**by_model.loc["evolved merge", ["accuracy", "low", "high"]].to_dict(), "estimate": 0.62},
            "best_expert": {"name": "english_arithmetic", "accuracy": 0.503},
            "over_best_expert": by_model.loc["english_arithmetic", fields].to_dict(),
            "over_uniform_average": by_model.loc["uniform average", fields].to_dict(),
            "estimates": {"candidates": 8, "mean_absolute_error": 0.0231, "spearman": 0.8571, "regret": 0.004},
        },
        scores=scores,
        sample=sample,
        history=history,
        finalists=finalists,
        winner={"study": "transfer", **finalists.iloc[0].to_dict(), "recipe": recipe},
        estimator="parent_aware",
        estimators=pd.DataFrame(
            {
                "estimator": ["mean", "gp_irt", "parent_aware"],
                "models": 8,
                "mean_absolute_error": [0.071, 0.043, 0.026],
                "bias": [0.012, -0.034, 0.002],
                "deviation": [0.08, 0.05, 0.03],
                "spearman": [0.55, 0.7, np.nan],
                "coverage": [np.nan, 0.875, 1.0],
            }
        ),
        subset=pd.DataFrame({"id": range(20), "group": ["fr"] * 7 + ["es"] * 7 + ["it"] * 6, "weight": 0.05}),
        ledgers={
            "population": asked(2_600_000),
            "respond": {"search": asked(430_000), "test": asked(310_000)},
            "evolve": {
                "search_tokens": 311_040,
                "finalists_tokens": 48_600,
                "all_items_tokens": 14_929_920,
                "candidates": 192,
                "distinct": 192,
                "this_run": cost(359_640),
            },
            "evaluate": asked(700_000),
        },
        commands=["dvc repro", "python -m flows.evolve"],
    )


@pytest.fixture(scope="module")
def html(results):
    return page(results)


class Reader(HTMLParser):
    """Refuses tags that do not balance and ids given twice; collects texts, tags and attributes."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.attributes, self.texts = [], [], [], []
        self.feed(html)
        self.close()
        assert self.open == []
        ids = [value for _, name, value in self.attributes if name == "id"]
        assert len(ids) == len(set(ids))

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.texts))


def with_lead(results, lead, low, high, p):
    scores = results.scores.copy()
    scores.loc[scores["model"] == "english_arithmetic", ["lead", "lead_low", "lead_high", "mcnemar_p"]] = [
        lead,
        low,
        high,
        p,
    ]
    return replace(results, scores=scores)


def test_the_same_tables_give_the_same_bytes(results, html):
    assert page(results) == html


def test_the_page_is_whole_and_small(html):
    reader = Reader(html)
    assert html.startswith("<!DOCTYPE html>")
    assert reader.tags.count("html") == reader.tags.count("h1") == reader.tags.count("title") == 1
    assert len(html.encode()) < 300_000


def test_the_page_loads_and_runs_nothing(html):
    reader = Reader(html)
    assert not {"script", "link", "iframe", "img", "object", "base"} & set(reader.tags)
    for _, name, value in reader.attributes:
        assert not name.startswith("on")
        if name in {"src", "href", "xlink:href", "data", "action"}:
            assert value.startswith(("#", "data:image/png;base64,"))
    assert all(target.startswith("#") for target in re.findall(r"url\(['\"]?([^)]*)", html))
    assert "@import" not in html
    assert "@font-face" not in html


def test_every_reference_inside_a_plot_has_its_target(html):
    reader = Reader(html)
    ids = {value for _, name, value in reader.attributes if name == "id"}
    used = re.findall(r"url\(#([^)]*)\)", html)
    used += [value[1:] for _, name, value in reader.attributes if name == "xlink:href" and value[0] == "#"]
    assert used
    assert set(used) <= ids


def test_plots_say_what_they_show_and_take_the_colours_of_the_page(html):
    reader = Reader(html)
    pictures = [value for tag, name, value in reader.attributes if tag == "svg" and name == "role"]
    labels = [value for tag, name, value in reader.attributes if tag == "svg" and name == "aria-label"]
    assert pictures == ["img"] * 4
    assert len(labels) == 4
    assert all(len(label) > 20 for label in labels)
    assert "61.3%" in labels[0]
    assert "#000000" not in "".join(re.findall(r"<svg.*?</svg>", html, re.DOTALL))
    assert not re.search(r"#0[1-6]0[1-6]0[1-6]", html)


def test_the_first_screen_says_who_won_by_how_much_how_sure_and_at_what_cost(html):
    first = Reader(html[: html.index("</header>")] + "</header></body></html>").text
    assert "The evolved merge beats the best expert, english_arithmetic, by 11.0 points" in first
    assert "+11.0 points [+7.9, +14.1] on 720 held-out items; exact McNemar p < 0.001" in first
    assert "better than the best standard merge, task arithmetic: lead +6.6 points [+3.5, +9.7]" in first
    for figure in ("61.3%", "[57.7%, 64.9%]", "50.3%", "53.2%", "12.1%"):
        assert figure in first
    assert "1/48 of a full search’s tokens; 1/4.4 with all preparation" in first


def test_every_figure_of_the_scores_is_on_the_page(results, html):
    text = Reader(html).text
    for row in results.scores.to_dict("records"):
        for name in ("accuracy", "low", "high", "group fr", "group es", "group it", "form symbols", "form words"):
            assert f"{row[name]:.1%}" in text
        if row["kind"] != "winner":
            assert points(row["lead"]) in text
            assert p_value(row["mcnemar_p"]) in text


def test_the_search_the_sample_and_the_estimators_are_on_the_page(results, html):
    text = Reader(html).text
    for figure in ("2.3 points", "0.86", "0.4 points", "parent_aware", "87.5%", "−3.4", "20 of 960 search items"):
        assert figure in text
    assert results.winner["phenotype"] in text
    for row in results.finalists.to_dict("records"):
        assert row["phenotype"][:12] in text
        assert f"{row['estimate']:.1%}" in text


def test_the_recipe_can_be_read_back(results, html):
    yaml = pytest.importorskip("yaml")
    text = "".join(Reader(html).texts)
    made = yaml.safe_load(text[text.index("method: ") :])
    assert made == json.loads(json.dumps(results.winner["recipe"]))


def test_the_ledger_adds_up(html):
    text = Reader(html).text
    assert "to find the winner 3.39 million 1/4.4" in text
    assert "in all, with the measurement 4.4 million 1/3.4" in text


@pytest.mark.parametrize(
    ("lead", "low", "high", "p", "ending", "words"),
    [
        (0.081, 0.05, 0.113, 0.0002, "better", "beats the best expert, english_arithmetic, by 8.1 points"),
        (0.012, -0.008, 0.031, 0.31, "undecided", "is not shown to be better than the best expert"),
        (0.030, 0.001, 0.060, 0.07, "undecided", "is not shown to be better than the best expert"),
        (0.0, 0.0, 0.0, 1.0, "undecided", "is not shown to be better than the best expert"),
        (-0.010, -0.030, 0.010, 0.4, "undecided", "is not shown to be better than the best expert"),
        (-0.040, -0.060, -0.020, 0.001, "worse", "is worse than the best expert, english_arithmetic, by 4.0 points"),
        (0.081, 0.05, 0.113, np.nan, "better", "beats the best expert"),
        (np.nan, np.nan, np.nan, np.nan, "undecided", "is not shown to be better than the best expert"),
    ],
)
def test_a_lead_is_claimed_only_where_interval_and_test_allow_it(results, lead, low, high, p, ending, words):
    ours = with_lead(results, lead, low, high, p)
    assert outcome(ours.best_expert) == ending
    assert words in headline(ours)


def test_a_lead_that_may_be_none_is_said_with_its_interval(results):
    text = Reader(page(with_lead(results, 0.012, -0.008, 0.031, 0.31))).text
    assert "is not shown to be better" in text
    assert "beats" not in text
    assert "+1.2 points [−0.8, +3.1] on 720 held-out items; exact McNemar p = 0.310" in text


def test_a_missing_p_and_an_undefined_correlation_are_said_so(results):
    metrics = results.metrics | {"estimates": results.metrics["estimates"] | {"spearman": None}}
    text = Reader(page(replace(with_lead(results, 0.081, 0.05, 0.113, np.nan), metrics=metrics))).text
    assert "exact McNemar p not available" in text
    assert "(Spearman) not defined" in text
    assert not re.search(r"\bnan\b|\bNone\b", text)


def test_names_and_groups_come_out_escaped(results):
    scores = results.scores.replace({"model": {"TIES": ATTACK, "english_arithmetic": f"{ATTACK}$x^2$"}})
    recipe = results.winner["recipe"] | {"weights": {ATTACK: {f'"{ATTACK}': [0.5]}}, "experts": [f'"{ATTACK}']}
    html = page(
        replace(
            results,
            study=ATTACK,
            experts=[ATTACK, *EXPERTS],
            search_items={ATTACK: 320},
            scores=scores.rename(columns={"group fr": f"group {ATTACK}"}),
            history=results.history.rename(columns={GENES[0]: f"weight {ATTACK} mlp 0"}),
            metrics=results.metrics | {"best_expert": {"name": f"{ATTACK}$x^2$"}},
            winner=dict(results.winner) | {"recipe": recipe, "phenotype": ATTACK},
            commands=[ATTACK],
        )
    )
    assert "script" not in Reader(html).tags
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html


def test_names_of_any_script_are_drawn(results):
    scores = results.scores.replace({"model": {"TIES": "日本語モデル", "task arithmetic": "x" * 300}})
    assert "日本語モデル" in page(replace(results, scores=scores))


def test_one_gene_is_enough(results):
    history = results.history[[name for name in results.history if name not in GENES[1:]]]
    Reader(page(replace(results, history=history)))


def test_one_generation_is_enough(results):
    Reader(page(replace(results, history=history_of(GENES, generations=1, population=4))))


def test_a_candidate_that_failed_is_counted_and_not_drawn(results, html):
    history = results.history.copy()
    history.loc[[0, 5], ["estimate", "low", "high"]] = np.nan
    made = page(replace(results, history=history))
    assert "2 failed and have no estimate" in made
    assert "failed" not in html
    assert made.count("<use") == html.count("<use") - 2


def test_a_long_search_stays_a_small_page(results):
    many = [f"weight expert_{i} mlp 0" for i in range(120)]
    made = page(replace(results, history=history_of(many, generations=100, population=60)))
    Reader(made)
    assert len(made.encode()) < 300_000


def test_densities_and_values_along_depth_are_shown(results):
    values = {"mlp": {"french_language": [0.2, 0.9], "english_arithmetic": [0.5, 0.5]}}
    recipe = results.winner["recipe"] | {"method": "ties", "weights": values, "densities": values}
    text = Reader(page(replace(results, winner=dict(results.winner) | {"recipe": recipe}))).text
    assert text.count("0.20 → 0.90") == 2


def test_a_recipe_of_zeros_is_shown(results):
    recipe = results.winner["recipe"] | {"weights": {"mlp": {"french_language": [0.0]}}}
    Reader(page(replace(results, winner=dict(results.winner) | {"recipe": recipe})))


def test_a_table_of_another_version_is_refused(results):
    with pytest.raises(ValueError, match=r"sample has no column 'truth'.*run its stage again"):
        replace(results, sample=results.sample.drop(columns="truth"))
    with pytest.raises(ValueError, match="one model of kind 'winner', got 0"):
        replace(results, scores=results.scores.iloc[1:])
    with pytest.raises(ValueError, match="name the best expert 'nobody'"):
        replace(results, metrics=results.metrics | {"best_expert": {"name": "nobody"}})


def test_models_are_ranked_and_the_tables_left_as_they_were(results):
    before = results.scores.copy()
    assert [row["accuracy"] for row in ranked(results.scores)] == sorted(before["accuracy"], reverse=True)
    page(results)
    pd.testing.assert_frame_equal(results.scores, before)


def test_figures_are_written_as_people_read_them():
    assert [points(x) for x in (0.0812, -0.008, 0.0, -0.0001, np.nan)] == ["+8.1", "−0.8", "0.0", "0.0", "–"]
    assert [p_value(x) for x in (0.5, 0.0123, 0.00001, np.nan)] == [
        "p = 0.500",
        "p = 0.012",
        "p < 0.001",
        "p not available",
    ]
    assert [fraction(*x) for x in ((1, 40), (10, 34), (3, 2), (0, 5), (1, 0))] == ["1/40", "1/3.4", "150%", "0", "–"]
    assert [count(x) for x in (950, 12_345_678, 2.5e9)] == ["950", "12.3 million", "2.5 billion"]
    assert percent(None) == "–"


def test_names_of_genes_lose_what_all_share():
    assert short_genes(["weight fr mlp 0", "weight es mlp 0"]) == ["fr mlp", "es mlp"]
    assert short_genes(["weight fr mlp 0", "density fr mlp 1"]) == ["weight fr mlp 0", "density fr mlp 1"]
    assert short_genes(["one"]) == ["one"]


@pytest.fixture
def folder(results, tmp_path, monkeypatch):
    """A working directory in which all stages before the report have written."""
    monkeypatch.chdir(tmp_path)
    for path in stage.INPUTS:
        path.parent.mkdir(parents=True, exist_ok=True)
    for split, size in (("search", 320), ("test", 240)):
        found = [items.Item(f"{split}-{g}-{i}", "?", ("a", "b"), 0, g) for g in (*GROUPS, "en") for i in range(size)]
        items.write(stage.PREPARE / f"{split}.parquet", found)
    results.subset.to_parquet(stage.EXTRACT / "subset.parquet", index=False)
    for name in ("scores", "sample"):
        getattr(results, name).to_csv(stage.EVALUATE / f"{name}.csv", index=False)
    for name in ("history", "finalists"):
        getattr(results, name).to_csv(stage.EVOLVE / f"{name}.csv", index=False)
    results.estimators.to_csv(stage.ESTIMATE / "estimators.csv", index=False)
    contents = {
        stage.ESTIMATE / "calibration.json": {"estimator": "parent_aware"},
        stage.EVOLVE / "winner.json": results.winner,
        stage.EVALUATE / "metrics.json": results.metrics,
    } | {stage.DATA / name / "ledger.json": ledger for name, ledger in results.ledgers.items()}
    for path, content in contents.items():
        path.write_text(json.dumps(content), encoding="utf-8")
    return tmp_path


STUDIES = {"transfer": {"experts": EXPERTS, "groups": GROUPS}, "other": {"experts": EXPERTS, "groups": GROUPS}}


def test_the_stage_writes_the_page_of_its_files_and_ends_with_the_result(results, html, folder, capsys):
    stage.report.fn("transfer", STUDIES)
    ours = (folder / "data/report/index.html").read_text(encoding="utf-8")
    assert ours == page(replace(results, commands=stage.COMMANDS))
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == "report: data/report/index.html"
    assert "The evolved merge beats the best expert, english_arithmetic, by 11.0 points:" in said
    (line,) = [line for line in said if line.startswith("uniform average")]
    assert re.split(" {2,}", line) == ["uniform average", "53.2%", "[49.6%, 56.8%]", "+8.1 [+5.0, +11.2]"]
    assert sorted(path.name for path in (folder / "data/report").iterdir()) == ["index.html", "result.txt"]


def test_the_stage_reads_every_input_it_lists_and_names_one_that_is_missing(folder):
    for path in stage.INPUTS:
        path.rename(folder / "aside")
        with pytest.raises(FileNotFoundError, match=f"{path} is missing: run the stage {path.parent.name} first"):
            stage.report.fn("transfer", STUDIES)
        (folder / "aside").rename(path)


def test_the_stage_refuses_the_files_of_another_study(folder):
    with pytest.raises(ValueError, match="data/evolve holds study 'transfer', asked for 'other': run evolve first"):
        stage.report.fn("other", STUDIES)


def test_a_name_is_not_read_as_terminal_markup(results, capsys):
    stage.show(replace(results, scores=results.scores.replace({"model": {"TIES": "[red]TIES[/red]"}})))
    assert "[red]TIES[/red]" in capsys.readouterr().err
