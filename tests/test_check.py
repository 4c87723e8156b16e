"""`merge3 check` and `merge3 init`, on the tiny world and on the repository's own params.yaml."""

from __future__ import annotations

import copy
import gc
import io
import json
import shutil
import subprocess
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
import world
import yaml
from conftest import CONFIGS, build, with_tokens
from datasets import Dataset, DatasetDict
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedTokenizerBase

from flows import check as checking
from flows import own
from flows.stage import read_params
from merge3 import checks, export, models
from merge3.checks import OK, RISK, WRONG, Finding
from merge3.cli import main
from merge3.items import Item
from merge3.recipe import Merge, constant
from merge3.store import Store

ROOT = Path(__file__).parents[1]


@pytest.fixture
def here(saved: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workplace with the tiny world's parameters and benchmark, as in a clone of the repository."""
    monkeypatch.chdir(tmp_path)
    world.write(tmp_path, world.params(saved))
    subprocess.run(["dvc", "init", "--no-scm", "--quiet"], check=True)
    return tmp_path


def levels(found: list[Finding], what: str) -> set[str]:
    return {finding.level for finding in found if finding.what == what}


def said(found: list[Finding], level: str) -> list[str]:
    return [f"{finding.what}: {finding.text}" for finding in found if finding.level == level]


# --- the pipeline's parameters


def test_sound_parameters_pass(here: Path) -> None:
    found = checking.check()
    assert said(found, WRONG) == []
    assert levels(found, "params.yaml") == levels(found, "memory") == {OK}
    assert levels(found, "expert first") == levels(found, "expert second") == {OK}
    assert levels(found, "search items") == {RISK}  # 48 of them: a score is known to within 14 points
    assert "48: x (24), y (24); a score on all is known to within 14 points" in " ".join(said(found, RISK))
    assert main(["check"]) == 0


def test_experts_and_items_that_changed_under_their_names_are_said(here: Path, saved: dict[str, Path]) -> None:
    own = {name: here / name for name in saved}
    for name, folder in saved.items():
        shutil.copytree(folder, own[name])
    values = world.params(own)
    world.write(here, values)
    world.run(values, "base", "experts", "prepare")
    assert not [line for line in said(checking.check(), RISK) if "was changed" in line]
    shutil.copy(own["first"] / "model.safetensors", own["second"])
    file = here / "items.jsonl"
    asked = file.read_text().replace('"answer": 0', '"answer": 1')
    file.write_text(asked)
    found = [line for line in said(checking.check(), RISK) if "was changed" in line]
    assert [line.split(":")[0] for line in found] == ["expert second", "search items", "test items"]
    assert "dvc repro --force --single-item experts" in found[0]
    file.write_text("no items\n")
    assert any("items.jsonl, line 1 is no JSON" in line for line in said(checking.check(), WRONG))
    file.write_text(asked)
    world.run(values, "experts", "prepare")
    assert not [line for line in said(checking.check(), RISK) if "was changed" in line]


def test_the_repositorys_own_parameters_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert said(checking.check(), WRONG) == []


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("evolve", {"sigmma": 1}, "evolve has no parameter 'sigmma'"),
        ("evolve", {"strategy": "luck"}, "evolve.strategy must be one of"),
        ("evolve", {"method": "mean"}, "merge method must be one of"),
        ("evolve", {"sigma": 2.0}, "evolve.sigma must be 1 or less, got 2.0"),
        ("evolve", {"hours": 0}, "evolve.hours must be above 0, got 0"),
        ("evolve", {"warm_start": "there"}, "evolve.warm_start is for the strategy cma"),
        (
            "evolve",
            {"strategy": "cma", "method": ["ties", "linear"], "warm_start": "there"},
            "one method, evolve has 'cma' and ['ties', 'linear']",
        ),
        ("evolve", {"strategy": "cma", "warm_start": "nowhere"}, "a folder with history.csv and recipes.json of a"),
        ("evolve", {"weights": [1.0, 0.0]}, "weight_range must be two finite numbers that rise"),
        ("evolve", {"generations": "many"}, "evolve.generations must be int, got 'many'"),
        ("evolve", {"knots": 0}, "evolve.knots must be 1 or more, got 0"),
        ("extract", {"items": 0}, "extract.items must be 1 or more"),
        ("extract", {"items": 49}, "extract.items is 49 of 48 search items"),
        ("estimate", {"method": "mean"}, "estimate.method mean needs extract.method uniform"),
        ("estimate", {"method": "ridge"}, "estimate.method must be one of"),
        ("calibrate", {"engine": "luck"}, "calibrate.engine must be one of"),
        ("population", {"held_out": 7}, "population.held_out must be 1 or more"),
        ("population", {"responses": "none.csv"}, "there is no none.csv"),
        ("population", {"totals": [1.8, 0.6]}, "population.totals must be two numbers of 0 or more"),
        ("population", {"size": 3, "held_out": 1}, "population.size must be 4 or more, got 3"),
        ("evaluate", {"sample": 1}, "evaluate.sample must be 2 or more"),
        ("runtime", {"device": "quantum"}, "device 'quantum' cannot be used here"),
        ("runtime", {"dtype": "int3"}, "dtype must be one of"),
        ("runtime", {"batch_tokens": 0}, "runtime.batch_tokens must be 1 or more, got 0"),
        ("runtime", {"dtype": ["float32"]}, "runtime.dtype must be str, got ['float32']"),
        ("runtime", {"scoring": "luck"}, "runtime.scoring must be one of"),
        ("base", {"model": "nowhere"}, "base: 'nowhere' is neither a folder nor a hub id"),
        ("base", {"package": "x"}, "give either base.package or base.model"),
        ("experts", {"models": {"first": "nowhere", "second": "nowhere"}}, "first, second are the same model"),
        ("experts", {"models": {"first": "nowhere"}}, "no expert 'second'"),
        ("experts", {"models": None, "train": {"steps": 1}}, "experts.train must have the keys"),
        (
            "prepare",
            {"benchmark": None, "problems": {"search": 8, "test": 0}},
            "prepare.problems.test must be 1 or more, got 0",
        ),
        ("studies", {"tiny": {"experts": ["first", "second"], "groups": ["z"]}}, "no search item has group 'z'"),
        ("prepare", {"benchmark": None, "problems": {"search": 8, "test": 8}}, "no search item has group 'x'"),
        ("prepare", {"benchmark": {"source": "items.jsonl", "test_share": 1.5}}, "test_share must be inside (0, 1)"),
    ],
)
def test_what_is_wrong_is_said(
    section: str, changes: dict[str, Any], message: str, here: Path, saved: dict[str, Path]
) -> None:
    values = copy.deepcopy(world.params(saved))
    values[section].update(changes)
    (here / "params.yaml").write_text(yaml.safe_dump(values))
    assert message in " ".join(said(checking.check(), WRONG))
    assert main(["check"]) == 1


def test_a_group_that_the_test_lacks_is_wrong_before_the_search(here: Path, saved: dict[str, Path]) -> None:
    rows = {
        split: Dataset.from_list([{"q": f"{split} {n}: ", "g": groups[n % 2]} for n in range(60)])
        for split, groups in (("train", "xy"), ("test", "xz"))
    }
    DatasetDict(rows).save_to_disk(here / "set")
    values = copy.deepcopy(world.params(saved))
    form = {"prompt": "{{q}}", "options": ["a", "b"], "answer": "0", "group": "g"}
    values["prepare"]["benchmark"] = {"source": "set", "split": "train", "test_split": "test", **form}
    for groups, wrong in ((["x"], []), (["x", "y"], ["y"]), (["y"], ["y"])):
        values["studies"]["tiny"]["groups"] = groups
        (here / "params.yaml").write_text(yaml.safe_dump(values))
        assert said(checking.check(), WRONG) == [
            f"items: no test item has group {group!r} of the study; groups are ['x', 'z']" for group in wrong
        ]


def test_more_items_than_the_problems_of_the_study_are_wrong(here: Path, saved: dict[str, Path]) -> None:
    values = copy.deepcopy(world.params(saved))
    values["prepare"] = {"benchmark": None, "problems": {"search": 9, "test": 3}}
    values["studies"]["tiny"]["groups"] = ["en", "it"]
    for count, wrong in ((18, []), (19, ["items: extract.items is 19 of 18 search items"])):
        values["extract"]["items"] = count
        (here / "params.yaml").write_text(yaml.safe_dump(values))
        assert said(checking.check(), WRONG) == wrong


def test_what_reads_margins_is_wrong_with_an_imported_population(here: Path, saved: dict[str, Path]) -> None:
    values = copy.deepcopy(world.params(saved))
    values["population"]["responses"] = "items.jsonl"
    for extract, estimate, wrong in (
        ("margins", "margin_irt", ["estimate.method margin_irt"]),
        ("margins", "parent_aware", ["extract.method margins"]),
        ("fisher", "parent_aware", []),
    ):
        values["extract"]["method"], values["estimate"]["method"] = extract, estimate
        (here / "params.yaml").write_text(yaml.safe_dump(values))
        assert said(list(checking.values(read_params())), WRONG) == [
            f"params.yaml: {what} needs a population of merges: with population.responses take another"
            for what in wrong
        ]


def test_a_section_that_lacks_a_key_is_wrong(here: Path, saved: dict[str, Path]) -> None:
    values = copy.deepcopy(world.params(saved))
    del values["runtime"]["device"]
    (here / "params.yaml").write_text(yaml.safe_dump(values))
    assert "runtime must have the keys" in " ".join(said(checking.check(), WRONG))


def test_every_wrong_section_is_said_at_once(here: Path, saved: dict[str, Path]) -> None:
    values = copy.deepcopy(world.params(saved))
    values["evaluate"], values["extract"] = {}, {"method": "fisher", "items": 8, "more": 1}
    (here / "params.yaml").write_text(yaml.safe_dump(values))
    wrong = said(checking.check(), WRONG)
    assert wrong == [
        "params.yaml: extract has no parameter 'more'; it has ['method', 'items']",
        "params.yaml: evaluate.sample is missing",
    ]


def test_what_stages_share_is_said_once(here: Path, saved: dict[str, Path]) -> None:
    (here / "params.yaml").write_text(yaml.safe_dump(world.params(saved) | {"seed": "1"}))
    assert said(checking.check(), WRONG) == ["params.yaml: seed must be int, got '1'"]


def test_outside_a_clone_that_is_all_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (finding,) = checking.check()
    assert (finding.level, finding.what) == (WRONG, "params.yaml")
    assert "run it in a clone" in finding.text


@pytest.mark.parametrize("text", ["a: [", "- a", "nonsense: 1"])
def test_a_file_that_is_no_parameters_is_wrong(text: str, here: Path) -> None:
    (here / "params.yaml").write_text(text)
    found = checking.check()
    assert levels(found, "params.yaml") == {WRONG}
    assert text != "a: [" or "line 1, column 5" in " ".join(said(found, WRONG))


def test_a_remote_is_looked_for(here: Path) -> None:
    assert "no default remote" in checking.remote().text
    subprocess.run(["dvc", "remote", "add", "--quiet", "-d", "shelf", str(here / "shelf")], check=True)
    assert (checking.remote().level, "is empty as yet" in checking.remote().text) == (OK, True)
    (here / "shelf").mkdir()
    assert checking.remote().text.endswith("answers")
    subprocess.run(["dvc", "remote", "add", "--quiet", "-d", "-f", "shelf", "nosuch://place"], check=False)
    (here / ".dvc" / "config").write_text("[core]\n    remote = gone\n")
    assert checking.remote().level == WRONG


@pytest.mark.filterwarnings(  # fsspec gives a session a tenth of a second to close: too little on a busy machine
    "ignore:Exception ignored in. <function ClientSession:pytest.PytestUnraisableExceptionWarning"
)
def test_a_remote_that_does_not_answer_is_a_risk(here: Path) -> None:
    class Handler(SimpleHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_error({"/closed": 403}.get(self.path, 404))

        def do_GET(self) -> None:
            self.do_HEAD()

        def log_message(self, *said: object) -> None: ...

    def looked_for(path: str) -> Finding:
        place = f"http://127.0.0.1:{server.server_port}{path}"
        subprocess.run(["dvc", "remote", "add", "--quiet", "-d", "-f", "site", place], check=True)
        return checking.remote()

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        assert (looked_for("/new").level, "is empty as yet" in looked_for("/new").text) == (OK, True)
        assert (looked_for("/closed").level, "403" in looked_for("/closed").text) == (RISK, True)
        server.shutdown()
    assert (looked_for("/new").level, "does not answer" in looked_for("/new").text) == (RISK, True)
    gc.collect()  # what is left of sessions goes here, and in no other test


def test_dvc_without_git_is_wrong_until_it_is_told(here: Path) -> None:
    subprocess.run(["dvc", "config", "core.no_scm", "false"], check=True)
    assert (checking.remote().level, "this is no Git repository" in checking.remote().text) == (WRONG, True)
    subprocess.run(["dvc", "config", "core.no_scm", "true"], check=True)
    assert checking.remote().level == RISK


def test_uncommitted_work_is_a_risk(here: Path) -> None:
    assert "no Git repository" in " ".join(said(list(checking.workplace()), RISK))
    subprocess.run(["git", "init", "--quiet"], check=True)
    assert "not committed" in " ".join(said(list(checking.workplace()), RISK))


def test_findings_are_printed_as_json(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {finding["level"] for finding in found} <= {OK, RISK}
    assert all(set(finding) == {"level", "what", "text"} for finding in found)


# --- parents, items, answers


def test_experts_that_do_not_fit_are_wrong(saved: dict[str, Path], tmp_path: Path) -> None:
    build(CONFIGS["qwen2"], 1).save_pretrained(tmp_path / "other")
    shutil.copytree(saved["first"], tmp_path / "words")
    vocabulary = json.loads((tmp_path / "words" / "tokenizer.json").read_text())
    vocabulary["model"]["vocab"] |= {"A": vocabulary["model"]["vocab"]["B"], "B": vocabulary["model"]["vocab"]["A"]}
    (tmp_path / "words" / "tokenizer.json").write_text(json.dumps(vocabulary))
    (tmp_path / "empty").mkdir()
    with_tokens(saved["first"], tmp_path / "longer", "<|im_end|>")
    with_tokens(saved["first"], tmp_path / "bare", "<|im_end|>")
    for file in (tmp_path / "bare").glob("tokenizer*"):
        file.unlink()
    made = get_peft_model(models.load(saved["base"], torch.float32), LoraConfig(r=4, target_modules=["q_proj"]))
    made.save_pretrained(tmp_path / "adapter")
    models.load_tokenizer(tmp_path / "longer").save_pretrained(tmp_path / "adapter")
    named = ("other", "words", "empty", "longer", "bare", "adapter")
    experts = {name: str(tmp_path / name) for name in named} | {"fits": str(saved["second"])}
    found = checks.parents(str(saved["base"]), experts)
    assert {finding.what: finding.level for finding in found if finding.what.startswith("expert ")} == {
        "expert other": WRONG,
        "expert words": WRONG,
        "expert empty": WRONG,
        "expert longer": RISK,
        "expert bare": RISK,
        "expert adapter": RISK,
        "expert fits": OK,
    }
    text = " ".join(said(found, WRONG))
    assert "model_type is 'qwen2'" in text
    assert "in its vocabulary" in text
    assert "has no .safetensors files" in text
    risks = " ".join(said(found, RISK))
    assert risks.count("has tokens that the base lacks (1, the first '<|im_end|>')") == 2
    assert "bare has no tokenizer and 260 rows of tokens, the base 259" in risks
    with pytest.raises(ValueError, match="expert other: "):
        checks.refuse(found)
    checks.refuse(finding for finding in found if finding.level != WRONG)


def test_an_adapter_is_held_against_the_base(saved: dict[str, Path], tmp_path: Path) -> None:
    made = get_peft_model(models.load(saved["base"], torch.float32), LoraConfig(r=4, target_modules=["q_proj"]))
    made.save_pretrained(tmp_path / "adapter")
    found = checks.parents(str(saved["base"]), {"it": str(tmp_path / "adapter")})
    assert "an adapter of 2 tensors" in " ".join(said(found, OK))
    assert "there is one" in " ".join(said(found, RISK))
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"use_dora": True}))
    assert "has no lora_magnitude_vector" in " ".join(
        said(checks.parents(str(saved["base"]), {"it": str(config.parent)}), WRONG)
    )


def test_licences_are_read(saved: dict[str, Path], tmp_path: Path) -> None:
    parents = {}
    for name in ("base", "first", "second"):
        shutil.copytree(saved[name], tmp_path / name)
        (tmp_path / name / "README.md").write_text("---\nlicense: mit\n---\n")
        parents[name] = str(tmp_path / name)
    base = parents.pop("base")
    assert levels(checks.parents(base, parents), "licence") == {OK}
    (tmp_path / "first" / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    assert "forbids commercial use" in " ".join(said(checks.parents(base, parents), RISK))


def test_a_dtype_that_the_processor_does_not_multiply_is_a_risk() -> None:
    assert checks.runtime("cpu", "auto").level == checks.runtime("cpu", "float32").level == OK
    found = checks.runtime("cpu", "float16")
    assert (found.level, "does not multiply it in hardware" in found.text) == (RISK, True)


@pytest.mark.parametrize(("have", "level"), [(10**9, OK), (1_200_000, RISK), (10**5, WRONG)])
def test_memory_is_held_against_what_is_needed(
    have: int, level: str, saved: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Memory:
        available = have

    monkeypatch.setattr(models.psutil, "virtual_memory", Memory)
    asked = ([str(saved["first"])] * 8, "ties", "cpu", "float32", 64, tmp_path / "not" / "yet")
    found = checks.room(str(saved["base"]), *asked)
    assert levels(found, "memory") == {level}
    assert levels(found, "disk") == {OK}


@pytest.mark.parametrize(("times", "level"), [(0.0, WRONG), (1.9, WRONG), (2.0, RISK), (3.9, RISK), (4.0, OK)])
def test_base_and_winner_must_fit_on_the_disk_twice_over(
    times: float, level: str, saved: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = int(times * 4 * build(CONFIGS["llama"], 1).num_parameters())
    disks = {tmp_path: shutil._ntuple_diskusage(1, 1, free)}
    monkeypatch.setattr(checks.shutil, "disk_usage", disks.__getitem__)
    out = tmp_path / "not" / "yet"
    found = checks.room(str(saved["base"]), [str(saved["first"])], "ties", "cpu", "float32", 64, out)
    assert levels(found, "disk") == {level}


def test_items_that_tell_little_are_a_risk(tokenizer: PreTrainedTokenizerBase) -> None:
    def items(count: int) -> list[Item]:
        return [Item(f"q{n}", f"Say {n}", ("a", "b"), 0) for n in range(count)]

    assert [finding.level for finding in checks.benchmark(items(100), tokenizer, 256.0)] == [OK]
    for count, level, width in ((50, OK, 14), (49, RISK, 14), (20, RISK, 22), (1, RISK, 98)):
        (found,) = checks.benchmark(items(count), tokenizer, 256.0)
        assert (found.level, f"within {width} points" in found.text) == (level, True)
    (_, long) = checks.benchmark(items(100), tokenizer, 6.0)
    assert (long.level, "prompts of up to 6 tokens" in long.text) == (RISK, True)
    (_, twice) = checks.benchmark([*items(99), Item("again", "Say 1", ("a", "b"), 0)], tokenizer, 256.0)
    assert twice.text == "1 questions are there more than once"
    (_, alike) = checks.benchmark([*items(99), Item("x", "Say x", ("a", "b", "a"), 0)], tokenizer, 256.0)
    assert (alike.level, "1 items have an option twice (the first: 'x'): not scored" in alike.text) == (RISK, True)


def test_damaged_answers_are_found_and_left_as_they_are(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for model in ("a", "b"):
        store.put({"model": model}, {"x": (-1.0, -2.0), "y": (-3.0, -4.0)})
    assert checks.answers(tmp_path) == Finding(OK, f"answers {tmp_path}", "4 answers, all whole")
    path = store.path({"model": "a"})
    path.write_text(path.read_text().replace("-4.0", "-5.0"))
    before = path.read_bytes()
    found = checks.answers(tmp_path)
    assert (found.level, path.name in found.text) == (RISK, True)
    assert path.read_bytes() == before
    path.write_bytes(before.replace(b"-5.0", b"-4.0"))
    assert checks.answers(tmp_path).level == OK
    path.rename(path.with_stem("0" * 64))  # of another key, as it says
    assert checks.answers(tmp_path).level == RISK
    for ruined in ("", 100_000 * "["):
        path.write_text(ruined)
        assert checks.answers(tmp_path).level == RISK


# --- init


def repository(folder: Path) -> None:
    """What of a clone `merge3 init` and `check` look at."""
    subprocess.run(["git", "init", "--quiet"], check=True, cwd=folder)
    shutil.copy(ROOT / "params.yaml", folder)
    shutil.copytree(ROOT / ".dvc", folder / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp", "config.local"))


def test_init_writes_parameters_that_pass_and_run(
    saved: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    repository(tmp_path)
    world.write(tmp_path / ".dvc", world.params(saved))
    shutil.move(tmp_path / ".dvc" / "items.jsonl", tmp_path / "mine.jsonl")
    experts = ["--expert", f"one={saved['first']}", "--expert", str(saved["second"])]
    flags = ["--base", str(saved["base"]), *experts, "--items", "mine.jsonl", "--device", "cpu"]
    assert main(["init", *flags]) == 0
    assert "Now: dvc repro" in capsys.readouterr().out
    params, before = read_params(), yaml.safe_load((ROOT / "params.yaml").read_text())
    assert params["studies"] == {"mine": {"experts": ["one", "second"], "groups": ["x", "y"]}}
    assert params["base"] == {"package": None, "model": str(saved["base"]), "dtype": "float32"}
    assert params["experts"] == {"models": {"one": str(saved["first"]), "second": str(saved["second"])}, "train": None}
    assert params["prepare"] == {"benchmark": {"source": "mine.jsonl", "test_share": 0.4}, "problems": None}
    assert params["evolve"] == before["evolve"] | {"objective": "mean"}
    untouched = ("seed", "population", "calibrate", "extract", "estimate", "evaluate")
    assert {name: params[name] for name in untouched} == {name: before[name] for name in untouched}
    text = (tmp_path / "params.yaml").read_text()
    assert "# Every value that changes a result stands here" in text
    assert "# leaders asked again, on items that candidates were not asked" in text
    world.run(params, "base", "experts", "prepare")  # the stages that read what was written
    assert (tmp_path / "data" / "experts" / "manifest.json").exists()


def test_init_asks_for_what_no_flag_says(
    saved: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    repository(tmp_path)
    world.write(tmp_path / ".dvc", world.params(saved))
    models = [
        str(tmp_path / "no model"),
        str(saved["base"]),
        f"a={saved['first']}",
        "b=nothing",
        f"b={saved['second']}",
    ]
    replies = iter([*models, "", "nothing.jsonl", str(tmp_path / ".dvc/items.jsonl"), "abacus", ""])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda: next(replies))
    assert main(["init", "--json"]) == 0
    assert list(replies) == []
    printed = capsys.readouterr()
    assert {finding["level"] for finding in json.loads(printed.out)} <= {OK, RISK}
    for what in ("base (", "expert 2 (", "items (", "device ["):
        assert printed.err.count(what) == 2, what  # each was named wrongly once
    assert "'nothing' is neither a folder nor a hub id" in printed.err
    assert read_params()["studies"]["mine"]["experts"] == ["a", "b"]


def test_init_ends_in_a_line_where_the_input_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    repository(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    assert main(["init"]) == 1
    assert "give --base: the input ended here" in capsys.readouterr().err


def test_init_says_where_it_cannot_work(
    saved: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    world.write(tmp_path, world.params(saved))
    (tmp_path / "params.yaml").unlink()
    flags = ["--base", str(saved["base"]), "--expert", str(saved["first"]), "--items", "items.jsonl"]
    assert main(["init", *flags]) == 1
    assert "run it in a clone" in capsys.readouterr().err
    assert main(["init"]) == 1
    assert "give --base" in capsys.readouterr().err
    repository(tmp_path)
    assert main(["init", *flags[:-1], "none.jsonl"]) == 1
    assert (tmp_path / "params.yaml").read_bytes() == (ROOT / "params.yaml").read_bytes()
    (tmp_path / "it.yaml").write_text("source: items.jsonl\ntest_share: 0.3\n")
    for source, given, share in (("items.jsonl", None, 0.4), ("it.yaml", None, 0.3), ("it.yaml", 0.2, 0.2)):
        own.rewrite(str(saved["base"]), {"first": str(saved["first"])}, source, given, "cpu")
        params = yaml.safe_load((tmp_path / "params.yaml").read_text())
        assert params["prepare"]["benchmark"] == {"source": "items.jsonl", "test_share": share}
        assert params["studies"] == {"mine": {"experts": ["first"], "groups": ["x", "y"]}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "params.yaml cannot be read"),
        ("", "params.yaml must have sections"),
        ("seed: 0", "params.yaml has no section 'runtime'"),
    ],
)
def test_init_says_what_is_no_params(
    text: str, message: str, here: Path, saved: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "params.yaml").write_text(text)
    models = [f"--{kind}={saved[name]}" for kind, name in (("base", "base"), ("expert", "first"), ("expert", "second"))]
    assert main(["init", *models, "--items", "items.jsonl", "--device", "cpu"]) == 1
    assert message in capsys.readouterr().err
    assert (here / "params.yaml").read_text() == text


def test_init_writes_texts_that_look_like_other_things_as_texts(
    saved: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    repository(tmp_path)
    rows = [{"q": f"Is {n} even?", "key": "yes" if n % 2 == 0 else "no", "g": "no"} for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"source": "rows.jsonl", "prompt": "{{q}}", "options": ["yes", "no"], "answer": "key", "group": "g"}
    (tmp_path / "it.yaml").write_text(json.dumps(settings | {"system": "1", "test_share": 0.5}))
    own.rewrite(str(saved["base"]), {"no": str(saved["first"])}, "it.yaml", None, "cpu")
    params = yaml.safe_load((tmp_path / "params.yaml").read_text())
    assert params["prepare"]["benchmark"] == settings | {"system": "1", "test_share": 0.5}
    assert params["studies"] == {"mine": {"experts": ["no"], "groups": ["no"]}}
    assert params["experts"]["models"] == {"no": str(saved["first"])}


def test_an_adapter_made_for_another_base_is_a_risk_and_the_base_itself_no_expert(
    saved: dict[str, Path], tmp_path: Path
) -> None:
    made = get_peft_model(models.load(saved["base"], torch.float32), LoraConfig(r=2, target_modules=["q_proj"]))
    made.save_pretrained(tmp_path / "own")
    file = tmp_path / "own" / "adapter_config.json"
    named = {"own": str(tmp_path / "own"), "first": str(saved["first"])}
    assert levels(checks.parents(str(saved["base"]), named), "expert own") == {OK}
    file.write_text(file.read_text().replace(str(saved["base"]), "org/other"))
    found = checks.parents(str(saved["base"]), named)
    assert any("made for org/other; the base here is" in line for line in said(found, RISK))
    again = {"first": str(saved["first"]), "copy": f"{saved['base']}/../base"}
    wrong = said(checks.parents(str(saved["base"]), again), WRONG)
    assert any("base, copy are the same model" in line for line in wrong)
    swapped = said(checks.parents(named["own"], {"base": str(saved["base"])}), WRONG)
    assert ["own is an adapter: a base is the model that it changes" in line for line in swapped] == [True]
    merge = Merge(constant("task_arithmetic", {"base": 1.0}), named["own"], {"base": str(saved["base"])})
    with pytest.raises(ValueError, match="own is an adapter: a base is the model that it changes"):
        export.export(merge, tmp_path / "out")


def test_prompts_that_the_pipeline_would_refuse_are_wrong(here: Path) -> None:
    file = here / "items.jsonl"
    file.write_text(file.read_text().replace("Say 7: ", "long " * 3000))
    wrong = said(checking.check(), WRONG)
    assert [line.split(":")[0] for line in wrong] in (["search items"], ["test items"])
    assert "which the stage respond refuses: leave them out" in wrong[0]
