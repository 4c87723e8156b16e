"""The page says what the tables say, to everyone, and nothing more."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import findings
import numpy as np
import pandas as pd
import pytest
from findings import EXPERTS, GENES, GROUPS, LEDGERS

from flows import report as stage
from merge3 import items, responses
from merge3.irt import ItemParameters
from merge3.items import FreeText, Item
from merge3.report import headline, page, verdict
from merge3.report_plots import short_genes
from merge3.report_tables import outcome, ranked, tables
from merge3.report_text import count, fraction, minutes, p_value, percent, points
from merge3.store import Reply, Store

ATTACK = "<script>alert(1)</script>"
VOID = {"wbr", "meta", "br", "link", "img", "hr", "input"}


@pytest.fixture(scope="module")
def results():
    return findings.results()


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
        if self.tags and self.tags[-1] == "wbr":
            self.texts[-1] += data
            self.tags.pop()
        else:
            self.texts.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.texts))


def with_lead(results, lead, low, high, p):
    scores = results.scores.copy()
    scores.loc[scores["model"] == "english_arithmetic", ["lead", "lead_low", "lead_high", "holm_p"]] = [
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
    assert len(html.encode()) < 400_000


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
    assert pictures == ["img"] * 6
    assert len(labels) == 6
    assert all(len(label) > 20 for label in labels)
    assert "61.3%" in labels[0]
    drawn = "".join(re.findall(r"<svg.*?</svg>", html, re.DOTALL))
    assert "var(--blue)" in drawn
    assert not re.search(r"#[0-9a-f]{6}\b", drawn)


def test_the_first_screen_says_what_was_merged_who_won_how_sure_and_at_what_cost(html):
    first = Reader(html[: html.index("<nav")] + "</main></body></html>").text
    assert "english_arithmetic, french_language, spanish_language and italian_language were merged" in first
    assert "The evolved merge beats the best expert, english_arithmetic, by 11.0 points" in first
    assert "Against the best expert +11.0 points [+7.9, +14.1] english_arithmetic: 50.3%" in first
    assert "Is it real? Yes Better than all 8 rivals the best expert: p < 0.001" in first
    assert "guessing: 25%" in first
    assert "1/34 of asking every item; 1/4.2 with all preparation" in first
    assert "task arithmetic standard 54.7% [51.1%, 58.3%] +6.6 [+3.5, +9.7] p = 0.025 ✓" in first
    assert "base 12.1% [8.5%, 15.7%]" in first


def test_every_figure_of_the_scores_is_on_the_page(results, html):
    text = Reader(html).text
    for row in results.scores.to_dict("records"):
        for name in ("accuracy", "low", "high", "group fr", "group es", "group it", "form symbols", "form words"):
            assert f"{row[name]:.1%}" in text
        if row["kind"] != "winner":
            assert points(row["lead"]) in text
            assert p_value(row["holm_p"]) in text


def test_of_how_many_items_figures_are_is_said_where_some_were_not_scored(results, html):
    assert "scored answer to" not in html
    responses = results.responses.astype(float)
    rival, other = results.best_expert["model"], results.rivals[-1]["model"]
    responses.loc[rival, responses.columns[:9]] = np.nan
    uneven = replace(results, responses=responses)
    every, of = responses.shape[1], f"on {responses.shape[1] - 9:,} held-out items; exact McNemar"
    for text in (page(uneven), " ".join(stage.plain(uneven).split())):
        assert f"{rival} {every - 9}" in text
        assert f"{other} {every}" in text
    assert of in " ".join(stage.plain(uneven).split())


def test_the_search_the_sample_and_the_estimators_are_on_the_page(results, html):
    text = Reader(html).text
    for figure in ("2.3 points", "0.86", "0.4 points", "parent_aware", "−3.4", "20 of 960 search items"):
        assert figure in text
    assert results.winner["phenotype"] in text
    for row in results.finalists.to_dict("records"):
        assert row["phenotype"][:12] in text
        assert f"{row['estimate']:.1%}" in text


def test_what_a_form_is_is_said(results, html):
    assert "form of the items. The form is how an item is put." in Reader(html).text
    ours = results.scores.rename(columns={"form symbols": "form known", "form words": "form own"})
    text = Reader(page(replace(results, scores=ours))).text
    assert "how an item is put: known, worded as search items are, or own, as none of them is." in text
    plain = results.scores.drop(columns=["form symbols", "form words"])
    assert "how an item is put" not in page(replace(results, scores=plain))


def test_the_leads_by_group_are_on_the_page(results, html):
    text = Reader(html).text
    for group, row in results.by_group["groups"].items():
        assert f"{group} {points(row['lead'])} [{points(row['lead_low'])}, {points(row['lead_high'])}]" in text


def test_the_recipe_can_be_read_back(results, html):
    yaml = pytest.importorskip("yaml")
    text = "".join(Reader(html).texts)
    made = yaml.safe_load(text[text.index("method: ") : text.index("Make it again", text.index("method: "))])
    assert made == json.loads(json.dumps(results.winner["recipe"]))


def test_the_ledger_adds_up(html):
    text = Reader(html).text
    assert "to find the winner 3.51 million 1/4.2" in text
    assert "in all, with the measurement 4.52 million 1/3.3" in text


@pytest.mark.parametrize(
    ("lead", "low", "high", "p", "ending", "words"),
    [
        (0.081, 0.05, 0.113, 0.0002, "better", "beats the best expert, english_arithmetic, by 8.1 points"),
        (0.012, -0.008, 0.031, 0.31, "undecided", "is not shown to be better than the best expert"),
        (0.030, 0.001, 0.060, 0.051, "undecided", "is not shown to be better than the best expert"),
        (0.0, 0.0, 0.0, 1.0, "undecided", "is not shown to be better than the best expert"),
        (0.030, 0.0, 0.060, 0.01, "undecided", "is not shown to be better than the best expert"),
        (-0.030, -0.060, 0.0, 0.01, "undecided", "is not shown to be better than the best expert"),
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
    assert "Is it real? Not shown Better than 7 of 8 rivals; not shown to be better than english_arithmetic" in text
    assert "+1.2 points [−0.8, +3.1]" in text
    assert "the best expert: p = 0.310" in text


def test_a_rival_that_beats_the_winner_is_named_in_the_headline(results):
    scores = results.scores.copy()
    scores.loc[scores["model"] == "TIES", ["lead", "lead_low", "lead_high"]] = [-0.02, -0.03, -0.01]
    ours = replace(results, scores=scores)
    assert headline(ours).endswith("by 11.0 points, but not TIES")
    assert verdict(ours) == "Better than 7 of 8 rivals; worse than TIES"


def test_a_standard_merge_that_won_is_named(results):
    ours = renamed(results, {"evolved merge": "plain TIES"})
    text = Reader(page(replace(ours, winner=results.winner | {"merge": "plain TIES"}))).text
    assert "The plain TIES, which the search found nothing better than, beats the best expert, english_arith" in text
    assert "better than the plain TIES, which was then measured on 720 items, questions that it had never seen" in text
    assert "The plain TIES 61.3%" in text
    assert "the best other standard merge, by group" in text
    assert "evolved merge" not in text


def test_an_expert_that_won_is_named_without_an_article(results):
    scores = results.scores.replace({"model": {"evolved merge": "french_language", "french_language": "evolved merge"}})
    answers = results.responses.rename(index={"evolved merge": "french_language", "french_language": "evolved merge"})
    ours = replace(results, scores=scores, responses=answers, winner=results.winner | {"merge": "french_language"})
    text = Reader(page(ours)).text
    assert "french_language, which the search found nothing better than, beats the best expert, english_" in text
    assert "the french_language" not in text
    assert "the best standard merge, by group" in text


def test_items_without_a_group_beside_others_are_of_none(results):
    search = [replace(item, group="" if item.group == "fr" else item.group) for item in results.search]
    leads = {"" if group == "fr" else group: row for group, row in results.by_group["groups"].items()}
    ours = replace(
        results,
        search=search,
        scores=results.scores.rename(columns={"group fr": "group "}),
        by_group=results.by_group | {"groups": leads},
    )
    text = Reader(page(ours)).text
    assert re.search(r"Model none es it symbols words", text)
    assert "the best standard merge, by group: none +4.3" in text
    assert re.search(r"Group Items Asked Weight none 320 \d", text)
    alone = replace(results, search=[replace(item, group="") for item in search])
    assert re.search(r"Group Items Asked Weight all 960 20", Reader(page(alone)).text)


def test_a_single_expert_is_merged_with_its_base(results):
    others = EXPERTS[1:]
    ours = replace(
        results,
        experts=EXPERTS[:1],
        scores=results.scores[~results.scores["model"].isin(others)],
        responses=results.responses.drop(index=others),
        abilities=results.abilities.iloc[:1],
        parents=results.parents[:1],
    )
    text = Reader(page(ours)).text
    assert "evolutionary merge of a fine-tune and its base" in text
    assert "english_arithmetic was merged with its base into one model of the same size." in text
    assert "A search chose how much of it; the result was then measured" in text


def test_a_base_that_won_is_no_standard_merge(results):
    keep = results.scores["model"] != "base"
    ours = replace(results, scores=results.scores[keep], responses=results.responses.drop(index="base"))
    ours = renamed(ours, {"evolved merge": "base"})
    text = Reader(page(replace(ours, winner=results.winner | {"merge": "base"}))).text
    assert "The base, which the search found nothing better than, beats the best expert" in text
    assert "Over uniform average, the best standard merge, by group" in text


def test_without_candidates_answered_in_full_the_page_says_what_the_estimator_is_worth(results, html):
    nobody = results.sample.iloc[:0]
    one = results.estimators[results.estimators["estimator"] == "parent_aware"].assign(estimator="margin_irt")
    ours = replace(results, sample=nobody, estimates=None, estimators=one, estimator="margin_irt")
    made = page(ours)
    text = Reader(made).text
    assert 'class="sample"' not in made
    assert 'class="sample"' in html
    assert "Mean absolute error" not in text
    assert "it guesses it from 20 answers. The winner has an estimated" in text
    assert "margin_irt: 8 merges, each left out of what it knew. The estimator" in text
    assert "estimates , " not in text
    assert "estimates" not in tables(ours)


def test_a_missing_p_and_an_undefined_correlation_are_said_so(results):
    ours = with_lead(results, 0.081, 0.05, 0.113, np.nan)
    text = Reader(page(replace(ours, estimates=results.estimates | {"spearman": None}))).text
    assert "the best expert: p not available" in text
    assert "(Spearman) not defined" in text
    assert not re.search(r"\bnan\b|\bNone\b", text)


def renamed(results, names):
    """The same study, whose models are called otherwise."""
    return replace(
        results,
        scores=results.scores.replace({"model": names}),
        responses=results.responses.rename(index=names),
        raw={names.get(model, model): answers for model, answers in results.raw.items()},
    )


@pytest.mark.parametrize("groups", [["fr", "es"], GROUPS])
def test_a_front_has_its_plot_its_leaders_and_its_hypervolume(results, html, groups):
    ours = findings.with_front(results, groups)
    made = page(ours)
    reader = Reader(made)
    assert ("section", "id", "front") in reader.attributes
    assert ("a", "href", "#front") in reader.attributes
    assert 'id="front"' not in html
    assert "knee" not in html
    (label,) = re.findall('<svg class="front" role="img" aria-label="(.*?)"', made)
    assert label.startswith(f"9 leaders by their scores in {len(groups)} groups, {ours.front['front'].sum()} of them")
    assert drawn(made, "front") >= len(groups) * 2
    text = reader.text
    part = text[text.index("Leaders with 90 % intervals") : text.index("Where in coefficient space")]
    for row in ours.front.to_dict("records"):
        kind = "the knee" if row["knee"] else "on the front" if row["front"] else "behind it"
        cells = [f"{row[f'score {g}']:.1%} [{row[f'low {g}']:.1%}, {row[f'high {g}']:.1%}]" for g in groups]
        assert f"{row['phenotype'][:12]} {kind} {' '.join(cells)}" in part
    (knee,) = ours.front[ours.front["knee"]].to_dict("records")
    assert all(f"{knee[f'score {g}']:.1%} in {g}" in label for g in groups)
    assert f'<tr class="chosen"><th scope="row" class="fig"><code>{knee["phenotype"][:12]}</code>' in made
    assert f"hypervolume is {ours.winner['hypervolume']:.3f} :" in text
    assert "the better half twice as many" in html
    assert "the better half twice as many" not in made


@pytest.mark.parametrize(
    ("objective", "told"),
    [
        ("worst", "the score of the worst group"),
        ("gain", "the gain over the uniform average in the group that gains least"),
        ({"fr": 1}, "a weighted mean of the groups"),
    ],
)
def test_what_was_searched_for_is_said(results, html, objective, told):
    made = page(replace(results, winner=results.winner | {"objective": objective}))
    assert f"what the search was for is {told}." in Reader(made).text
    assert "what the search was for" not in html


def test_where_leaders_answered_every_item_the_best_of_these_wins(results, html):
    everything = len(results.search)
    finalists = results.finalists.copy()
    score = finalists["estimate"].iloc[0]
    finalists.loc[finalists.index[0], ["items", "low", "high"]] = [everything, score, score]
    won = results.winner | {"items": everything, "objective": "worst"}
    text = Reader(page(replace(results, winner=won, finalists=finalists))).text
    assert f"answered all {everything} search items; the winner (marked) is the best of these by the score" in text
    assert f"{finalists['phenotype'].iloc[0][:12]} {everything} {100 * won['estimate']:.1f}% exact" in text
    assert f"The winner has {100 * won['estimate']:.1f}% of all search items" in text
    assert "best by the search and the fresh items together" in Reader(html).text


def test_a_front_of_one_leader_is_shown(results):
    ours = findings.with_front(results, ["fr", "es"])
    made = page(replace(ours, front=ours.front[ours.front["knee"]]))
    assert "1 of 1 leaders are on the front" in Reader(made).text


def test_a_front_of_many_groups_and_experts_is_drawn(results):
    groups = [f"a group with the number {n}" for n in range(9)]
    search = [replace(item, group=groups[n % 9]) for n, item in enumerate(results.search)]
    experts, answers = [f"expert {n}" for n in range(12)], np.tile(results.parents, (3, 1))
    made = page(findings.with_front(replace(results, search=search, experts=experts, parents=answers), groups))
    assert "expert 11" in made[made.index('<svg class="front"') :]


def test_what_comes_from_data_comes_out_escaped(results):
    ours = renamed(results, {"TIES": ATTACK, "english_arithmetic": f"{ATTACK}$x^2$"})
    recipe = results.winner["recipe"] | {"weights": {f'"{ATTACK}': {ATTACK: [0.5]}}, "experts": [f'"{ATTACK}']}
    search = [replace(results.search[0], group=ATTACK, id=ATTACK), *results.search[1:]]
    tests = [replace(item, prompt=ATTACK, options=(ATTACK, "b"), group=ATTACK, form=ATTACK) for item in results.tests]
    fronted = findings.with_front(results, [ATTACK, "es"])
    parents = np.ones((len(EXPERTS) + 1, len(search)))
    html = page(
        replace(
            ours,
            front=fronted.front.replace({"phenotype": {fronted.winner["phenotype"]: ATTACK}}),
            parents=parents,
            study=ATTACK,
            experts=[ATTACK, *EXPERTS],
            search=search,
            tests=[replace(item, answer=1) for item in tests],
            raw={},
            scores=ours.scores.rename(columns={"group fr": f"group {ATTACK}"}),
            history=results.history.rename(columns={GENES[0]: f"weight {ATTACK} mlp 0"}),
            winner=dict(results.winner) | {"recipe": recipe, "phenotype": ATTACK, "hypervolume": 0.1},
            identity={ATTACK: ATTACK},
            commands=[ATTACK],
        )
    )
    assert "script" not in Reader(html).tags
    assert "<script" not in html
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 50


def written(results, texts):
    """The same study with free-text test items, to which models wrote `texts`, right and wrong."""
    tests = [Item(i.id, i.prompt, group=i.group, expected=("42",), free=FreeText()) for i in results.tests]
    raw = {
        model: {name: Reply(texts[int(right)], "stop", 3) for name, right in row.items()}
        for model, row in results.responses.iterrows()
    }
    return replace(results, tests=tests, raw=raw)


def test_replies_are_shown_as_they_are_and_escaped(results):
    html = page(written(results, ("Because </td>" + ATTACK, "42")))
    text = Reader(html).text
    assert "<script" not in html
    assert f"expected 42 evolved merge ✓ 42 base Because </td>{ATTACK}" in text
    assert "guessing" not in text


def test_the_clearest_items_won_and_lost_against_each_parent_are_shown_with_the_answers(results, html):
    ours, theirs = (results.responses.loc[name] for name in ("evolved merge", "base"))
    won, lost = int((ours > theirs).sum()), int((ours < theirs).sum())
    text = Reader(html).text
    assert f"Against base : {won} won, {lost} lost" in text
    part = text[text.index("The merge is right, base is not") : text.index("base is right, the merge is not")]
    shown = [item for item in results.tests if f" {item.id} " in part]
    assert len(shown) == 4
    assert all(ours[item.id] > theirs[item.id] for item in shown)
    first = min(shown, key=lambda item: part.index(f" {item.id} "))
    leads = {}
    for model in ("evolved merge", "base"):
        answers = results.raw[model][first.id]
        leads[model] = answers[1] - max(answers[:1] + answers[2:])
        for value in answers:
            assert f"{value:.2f}".replace("-", "−") in part
    best = max(
        m[1] - max(m[:1] + m[2:]) - (b[1] - max(b[:1] + b[2:]))
        for item in results.tests
        for m, b in [(results.raw["evolved merge"][item.id], results.raw["base"][item.id])]
        if ours[item.id] > theirs[item.id]
    )
    assert leads["evolved merge"] - leads["base"] == pytest.approx(best)


def test_the_pick_of_each_model_is_marked(results):
    (item,) = [item for item in results.tests if item.id == "fr-test-0"]
    raw = {"evolved merge": {item.id: (-3.0, -1.0, -2.0, -4.0)}, "base": {item.id: (-3.0, -9.0, -2.0, -4.0)}}
    answers = results.responses.copy()
    answers[:] = 1.0
    answers.loc["base", item.id] = 0.0
    html = page(replace(results, raw=raw, responses=answers))
    cells = r'<th scope="row">(one|two|three|four).*?</th><td class="(.*?)">.*?</td><td class="(.*?)">'
    rows = re.findall(cells, html)
    picked = {word: (ours.endswith("pick"), theirs.endswith("pick")) for word, ours, theirs in rows}
    assert picked == {"one": (False, False), "two": (True, False), "three": (False, True), "four": (False, False)}


def test_an_answer_that_was_not_kept_is_a_dash(results):
    text = Reader(page(replace(results, raw={}))).text
    assert "one – two ✓ – three – four –" in text
    assert "to read some of each, with the answers that were kept." in text
    assert "clearest" not in text


def test_where_the_parents_answers_were_not_kept_items_come_by_the_merges_lead_without_a_column_of_dashes(
    results, html
):
    ours = replace(results, raw={"evolved merge": results.raw["evolved merge"]})
    text = Reader(page(ours)).text
    assert "to read some of each, with the answers that were kept." in text
    assert "lost; the clearest by the merge’s lead" in text
    assert "Option, log-likelihood merge one" in text
    part = text[text.index("The merge is right, base is not") : text.index("base is right, the merge is not")]
    right, theirs = (results.responses.loc[name] for name in ("evolved merge", "base"))
    leads = {
        item.id: m[1] - max(m[:1] + m[2:])
        for item in results.tests
        for m in [results.raw["evolved merge"][item.id]]
        if right[item.id] > theirs[item.id]
    }
    shown = sorted(leads, key=lambda name: -leads[name])[:4]
    places = [part.index(f" {name} ") for name in shown]
    assert places == sorted(places)
    before = Reader(html).text
    assert "the clearest of each, with what both models answered." in before
    assert "Option, log-likelihood merge rival one" in before


def test_a_long_prompt_is_shown_by_its_end(results):
    tests = [
        replace(item, prompt="its first words " + "x " * 2000 + f"the question {item.id}") for item in results.tests
    ]
    made = page(replace(results, tests=tests))
    assert "its first words" not in made
    assert "the question" in made


def test_names_of_any_script_are_drawn(results):
    assert "日本語モデル" in page(renamed(results, {"TIES": "日本語モデル", "task arithmetic": "x" * 300}))


def test_one_gene_is_enough_and_none_is_not_drawn(results):
    for kept in (1, 0):
        history = results.history[[name for name in results.history if name not in GENES[kept:]]]
        reader = Reader(page(replace(results, history=history)))
        drawn = {value for tag, name, value in reader.attributes if tag == "svg" and name == "class"}
        assert drawn == {"search", "sample", "items", "information", *["genes"] * kept}


def test_places_along_depth_are_explained_where_there_are_several(results, html):
    deep = [f"weight expert_{i} mlp {knot}" for i in range(2) for knot in range(2)]
    history = findings.history_of(deep, generations=2, population=4)
    made = page(replace(results, history=history, recipes=findings.recipes_of(history, deep)))
    explained = "is a place along depth, 0 the first layer"
    assert explained in made
    assert explained not in html


def test_one_generation_is_enough(results):
    Reader(page(replace(results, history=findings.history_of(GENES, generations=1, population=4))))


def test_abilities_of_several_dimensions_have_no_curve(results):
    two = ItemParameters(np.hstack([results.parameters.discrimination] * 2), results.parameters.difficulty)
    html = page(replace(results, parameters=two, abilities=results.abilities.assign(ability_2=0.0)))
    assert 'class="items"' in html
    assert 'class="information"' not in html


def test_a_candidate_that_failed_is_counted_and_not_drawn(results, html):
    history = results.history.copy()
    history.loc[[0, 5], ["estimate", "low", "high"]] = np.nan
    made = page(replace(results, history=history))
    assert "2 failed and have no estimate" in made
    assert "failed" not in html
    assert drawn(made, "search") == drawn(html, "search") - 2


def drawn(html, plot):
    """How many marks a plot has."""
    (found,) = re.findall(rf'<svg class="{plot}".*?</svg>', html, re.DOTALL)
    return found.count("<use")


def test_a_long_search_of_many_genes_stays_a_small_page(results):
    many = [f"weight expert_{i} mlp 0" for i in range(120)]
    history = findings.history_of(many, generations=100, population=60)
    made = page(replace(results, history=history, recipes=findings.recipes_of(history, many)))
    Reader(made)
    assert len(made.encode()) < 1_000_000


def test_two_thousand_candidates_and_five_thousand_items_stay_below_5_megabytes():
    large = findings.results(search=5000 // 3 + 1, tests=5000 // 3 + 1, generations=50, population=40)
    assert len(large.history) == 2000
    assert len(large.search) > 5000 - 1
    made = page(large)
    Reader(made)
    assert len(made.encode()) < 5_000_000
    assert "not all are drawn" in made


def test_densities_and_values_along_depth_are_shown(results):
    values = {"french_language": {"mlp": [0.2, 0.9]}, "english_arithmetic": {"mlp": [0.5, 0.5]}}
    recipe = results.winner["recipe"] | {"method": "ties", "weights": values, "densities": values}
    text = Reader(page(replace(results, winner=dict(results.winner) | {"recipe": recipe}))).text
    assert text.count("french_language 0.20 → 0.90") == 2
    assert text.count("spanish_language –") == 2


def test_a_recipe_of_zeros_is_shown(results):
    recipe = results.winner["recipe"] | {"weights": {"french_language": {"mlp": [0.0]}}}
    Reader(page(replace(results, winner=dict(results.winner) | {"recipe": recipe})))


def test_a_table_of_another_version_is_refused(results):
    with pytest.raises(ValueError, match=r"sample has no column 'truth'.*run its stage again"):
        replace(results, sample=results.sample.drop(columns="truth"))
    with pytest.raises(ValueError, match="one model of kind 'winner', got 0"):
        replace(results, scores=results.scores.iloc[1:])
    with pytest.raises(ValueError, match=r"not of the same models \('TIES'\)"):
        replace(results, responses=results.responses.drop(index="TIES"))
    with pytest.raises(ValueError, match="no model of kind 'expert' to compare the winner with"):
        replace(results, scores=results.scores[results.scores["kind"] != "expert"])


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
    assert [fraction(*x) for x in ((1, 40), (100, 996), (10, 34), (3, 2), (0, 5), (1, 0))] == [
        "1/40",
        "1/10",
        "1/3.4",
        "150%",
        "0",
        "–",
    ]
    assert [count(x) for x in (950, 12_345_678, 2.5e9)] == ["950", "12.3 million", "2.5 billion"]
    assert [minutes(x) for x in (41.4, 720, 12_240, np.nan)] == ["41 s", "12 min", "3.4 h", "–"]
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
    others = {
        "search": Item("en-search-0", "?", ("a", "b"), 0, "en"),
        "test": Item("en-test-0", "?", ("a", "b"), 0, "en"),
    }
    for split, found in (("search", results.search), ("test", results.tests)):
        items.write(stage.PREPARE / f"{split}.parquet", [*found, others[split]])
    ids = [item.id for item in results.search]
    answered = responses.table(["base", *EXPERTS], ids, np.ones((5, len(ids))))
    responses.write(stage.RESPOND / "search.parquet", answered)
    responses.write(stage.EVALUATE / "responses.parquet", results.responses)
    pd.DataFrame(
        {
            "id": ids,
            "discrimination_1": results.parameters.discrimination[:, 0],
            "difficulty": results.parameters.difficulty,
        }
    ).to_parquet(stage.CALIBRATE / "items.parquet", index=False)
    results.subset.to_parquet(stage.EXTRACT / "subset.parquet", index=False)
    for name in ("scores", "sample"):
        getattr(results, name).to_csv(stage.EVALUATE / f"{name}.csv", index=False)
    for name in ("history", "finalists"):
        getattr(results, name).to_csv(stage.EVOLVE / f"{name}.csv", index=False)
    results.estimators.to_csv(stage.ESTIMATE / "estimators.csv", index=False)
    results.abilities.to_csv(stage.ESTIMATE / "experts.csv", index=False)
    models = [{"name": name, "source": name, "fingerprint": name[0] * 64} for name in ("base", *EXPERTS)]
    runtime = {"runtime": {"base": "b" * 64, "dtype": "float32", "runtime": "cpu, 2 threads"}}
    respond = {split: ledger | runtime for split, ledger in LEDGERS["respond"].items()}
    metrics = {"study": "transfer", "estimates": results.estimates, "over_best_standard": results.by_group}
    metrics["winner"] = {"estimate": results.winner["estimate"]}
    ledgers = LEDGERS | {"evolve": LEDGERS["evolve"] | {"all_items_tokens": results.full}}
    contents = {
        stage.EXPERTS / "manifest.json": {"base": models[0], "experts": models[1:]},
        stage.ESTIMATE / "calibration.json": {"estimator": "parent_aware"},
        stage.EVOLVE / "winner.json": results.winner,
        stage.EVOLVE / "recipes.json": results.recipes,
        stage.EVALUATE / "metrics.json": metrics | {"one_runtime": results.one_runtime},
    } | {stage.DATA / name / "ledger.json": ledger for name, ledger in ledgers.items()}
    contents[stage.RESPOND / "ledger.json"] = respond
    contents[stage.EVALUATE / "ledger.json"] |= {"runtime": {"dtype": "bfloat16"}}
    for path, content in contents.items():
        path.write_text(json.dumps(content), encoding="utf-8")
    return tmp_path


RUNTIME = {"scoring": "sum"}
STUDIES = {"transfer": {"experts": EXPERTS, "groups": GROUPS}, "other": {"experts": EXPERTS, "groups": GROUPS}}


def test_the_stage_writes_the_page_of_its_files_its_figures_and_ends_with_the_result(results, folder, capsys):
    stage.report.fn("transfer", STUDIES, RUNTIME)
    made = stage.read("transfer", STUDIES, "sum")
    ours = (folder / "data/report/index.html").read_text(encoding="utf-8")
    same = replace(results, commands=stage.COMMANDS, raw={}, identity=made.identity)
    assert ours == page(same)
    assert made.identity["merges answered the test on"] == "any device, bfloat16"
    assert made.identity["parents answered it on"] == "cpu, 2 threads, float32"
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == "report: data/report/index.html"
    assert "The evolved merge beats the best expert, english_arithmetic, by 11.0 points:" in said
    cost = "The search asked 435,456 tokens, 1/34 of asking every item (14.9 million); "
    assert f"{cost}with all preparation 3.51 million, 1/4.2." in said
    (line,) = [line for line in said if line.startswith("uniform average")]
    assert re.split(" {2,}", line) == ["uniform average", "53.2%", "[49.6%, 56.8%]", "+8.1 [+5.0, +11.2]"]
    names = ["candidates", "duels", "estimates", "items", "ledger", "models", "search"]
    written = {path.name for path in (folder / "data/report").iterdir()}
    assert written == {"index.html", "result.txt", *(f"{name}.csv" for name in names)}
    assert len(pd.read_csv("data/report/candidates.csv")) == len(results.history)


def test_the_stage_shows_a_front_where_there_is_one(results, folder):
    ours = findings.with_front(results)
    ours.front.to_csv(stage.EVOLVE / "front.csv", index=False)
    (stage.EVOLVE / "winner.json").write_text(json.dumps(ours.winner), encoding="utf-8")
    path = stage.EVALUATE / "metrics.json"
    measured = {"winner": {"estimate": ours.winner["estimate"]}}
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | measured), encoding="utf-8")
    stage.report.fn("transfer", STUDIES, RUNTIME)
    assert 'id="front"' in (stage.OUT / "index.html").read_text(encoding="utf-8")
    written = pd.read_csv(stage.OUT / "front.csv")
    assert written["kind"].value_counts()["expert"] == len(EXPERTS)
    assert written["model"][written["kind"] == "knee"].tolist() == [ours.winner["phenotype"]]
    (stage.EVOLVE / "front.csv").unlink()
    stage.report.fn("transfer", STUDIES, RUNTIME)
    assert 'id="front"' not in (stage.OUT / "index.html").read_text(encoding="utf-8")
    assert not (stage.OUT / "front.csv").exists()


def test_answers_that_were_kept_are_read_if_they_are_graded_as_recorded(results, folder):
    manifest = {name: name[0] * 64 for name in EXPERTS}
    merge = stage.parents(EXPERTS)["french_language"].canonical(manifest)
    first, second, third = results.tests[:3]
    right = {item: results.responses.loc["french_language", item.id] for item in (first, second)}
    kept = {
        first.content_hash: (-5.0, -1.0 if right[first] else -9.0, -6.0, -7.0),
        second.content_hash: (-5.0, -9.0 if right[second] else -1.0, -6.0, -7.0),  # graded otherwise: of another run
        "0" * 64: (-1.0, -2.0),
    }
    Store(stage.RESPOND / "answers").put({"merge": merge, "runtime": "here"}, kept)
    Store(stage.RESPOND / "answers").put({"merge": "another"}, {third.content_hash: (-1.0, -2.0, -3.0, -4.0)})
    found = stage.read("transfer", STUDIES, "sum").raw
    assert found == {"french_language": {first.id: kept[first.content_hash]}}
    assert stage.read("transfer", STUDIES, "tokens").raw == {}


def test_the_stage_reads_every_input_it_lists_and_names_one_that_is_missing(folder):
    for path in stage.INPUTS:
        path.rename(folder / "aside")
        with pytest.raises(FileNotFoundError, match=f"{path} is missing: run the stage {path.parent.name} first"):
            stage.report.fn("transfer", STUDIES, RUNTIME)
        (folder / "aside").rename(path)


def test_the_stage_refuses_the_files_of_another_study(folder):
    with pytest.raises(ValueError, match="data/evolve holds study 'transfer', asked for 'other': run evolve first"):
        stage.report.fn("other", STUDIES, RUNTIME)


def test_a_name_is_not_read_as_terminal_markup(results, capsys):
    stage.show(renamed(results, {"TIES": "[red]TIES[/red]"}))
    assert "[red]TIES[/red]" in capsys.readouterr().err


def test_a_page_that_stays_is_named_by_its_place(monkeypatch):
    monkeypatch.setenv("DVC_EXP_NAME", "deft-hare")
    assert stage.place() == f"`{Path('data/report/index.html').resolve()}`"
