"""What every stage shares: its parameters out of params.yaml, its Prefect server if there is one, its progress.

A stage is a Prefect flow whose arguments are its section of params.yaml, and those of `SHARED` that it names.
Without a server the flow's function is called as it is: a stage of a few seconds does not start one. A server only
watches: where it goes away, a stage goes on without it.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from threading import Event
from time import monotonic
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import httpx
import pandas as pd
import yaml
from filelock import FileLock, Timeout
from prefect import Flow, get_run_logger, task
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext
from prefect.settings import get_current_settings
from prefect.states import Completed, State
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from merge3.reading import from_yaml

PARAMS = Path("params.yaml")
PIPELINE = Path("dvc.yaml")
DATA = Path("data")
SHARED = ("seed", "study", "studies", "runtime")
RUNTIME = {"device": str, "dtype": str, "batch_tokens": int | str, "scoring": str, "portable": bool}
STOPPED = 130  # the status of a stage that was interrupted, as shells have it
LINES = 10  # lines that a progress prints where there is no terminal
PATIENCE = 5  # seconds in which a Prefect server must answer
PAUSE = 2  # seconds between two reports of progress to it
STRICT = ConfigDict(strict=True, allow_inf_nan=False)  # a number is no text that looks like one
RANGES = {  # what a parameter of the right type must be, by what pydantic finds
    "greater_than_equal": "{ge:g} or more",
    "greater_than": "above {gt:g}",
    "less_than_equal": "{le:g} or less",
    "too_short": "{min_length} entry or more",
}
GONE = Event()  # set where the Prefect server has gone away from a run

Seed = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
T = TypeVar("T")


def arguments(flow: Flow[Any, Any], params: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a stage: its section of `params`, and what it names of `SHARED`.

    Raises:
        ValueError: the section is missing, or holds a parameter too many or too few, or a shared one is missing, or one
            is not as the stage declares.
    """
    wanted = list(inspect.signature(flow.fn).parameters)
    own = [name for name in wanted if name not in SHARED]
    section = (params.get(flow.name) or {}) if own else {}
    if not isinstance(section, Mapping):
        raise ValueError(f"params.yaml: {flow.name} must be a section with {own}, got {section!r}")
    if unknown := sorted(set(section) - set(own), key=str):
        raise ValueError(f"params.yaml: {flow.name} has no parameter {unknown[0]!r}; it has {own}")
    if missing := [name for name in own if name not in section]:
        raise ValueError(f"params.yaml: {flow.name}.{missing[0]} is missing")
    shared = [name for name in wanted if name in SHARED]
    if missing := [name for name in shared if name not in params]:
        raise ValueError(f"params.yaml: {missing[0]} is missing")
    return typed(flow, {name: section[name] for name in own} | {name: params[name] for name in shared})


def typed(flow: Flow[Any, Any], values: dict[str, Any]) -> dict[str, Any]:
    """The same values, if they are of the types, and in the ranges, that the stage declares.

    Raises:
        ValueError: one is not.
    """
    types = get_type_hints(flow.fn, include_extras=True)
    for name, value in values.items():
        of_type(name if name in SHARED else f"{flow.name}.{name}", types[name], value)
    return values


def of_type(name: str, kind: Any, value: Any) -> None:
    """Refuse a parameter of another type than `kind`, or out of its range where `kind` is annotated with one.

    Raises:
        ValueError: it is.
    """
    try:
        TypeAdapter(kind, config=STRICT).validate_python(value)
    except ValidationError as error:
        plain = get_args(kind)[0] if get_origin(kind) is Annotated else kind
        name_of = plain.__name__ if isinstance(plain, type) else str(plain).replace("typing.", "")
        fault = error.errors()[0]
        wanted = RANGES.get(fault["type"], name_of.replace("None", "null")).format(**fault.get("ctx", {}))
        raise ValueError(f"params.yaml: {name} must be {wanted}, got {value!r}") from None


def section(name: str, values: Mapping[str, Any], kinds: Mapping[str, Any]) -> dict[str, Any]:
    """A nested section of params.yaml, if it has the expected keys and no others, with values of their types.

    Raises:
        ValueError: a key is missing or unknown, or a value is not as `of_type` wants it.
    """
    if not isinstance(values, Mapping) or set(values) != set(kinds):
        found = sorted(map(str, values)) if isinstance(values, Mapping) else values
        raise ValueError(f"params.yaml: {name} must have the keys {sorted(kinds)}, got {found}")
    for key, kind in kinds.items():
        of_type(f"{name}.{key}", kind, values[key])
    return dict(values)


def bounds(name: str, values: Sequence[float]) -> tuple[float, float]:
    """The two ends of a range.

    Raises:
        ValueError: there are not two numbers.
    """
    if len(values) != 2 or not all(isinstance(value, int | float) for value in values):
        raise ValueError(f"params.yaml: {name} must be two numbers, [lowest, highest], got {values}")
    return float(values[0]), float(values[1])


def read_params() -> dict[str, Any]:
    """The whole of params.yaml.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no YAML of sections, a key stands twice, or a section belongs to no stage.
    """
    if not PARAMS.exists():
        raise FileNotFoundError(f"there is no params.yaml in {Path.cwd()}: run this in a clone of the repository")
    params: dict[str, Any] = from_yaml(PARAMS)
    known = {*SHARED, *STAGES}
    if not isinstance(params, dict):
        raise ValueError(f"params.yaml must have sections, among {sorted(known)}")
    if unknown := sorted(set(params) - known, key=str):
        raise ValueError(f"params.yaml: unknown section {unknown[0]!r}; expected among {sorted(known)}")
    return params


STAGES = (
    "base",
    "experts",
    "prepare",
    "respond",
    "population",
    "calibrate",
    "extract",
    "estimate",
    "evolve",
    "evaluate",
    "report",
)


def served() -> bool:
    """Whether a Prefect server follows this run."""
    return FlowRunContext.get() is not None and not GONE.is_set()


def reachable() -> bool:
    """Whether a Prefect server or Prefect Cloud is configured and answers."""
    url = get_current_settings().api.url
    if url is None:
        return False
    if fault := unreachable(url):
        say(f"the Prefect server at {url} does not answer ({fault}): this run is not shown there")
    return fault is None


def unreachable(url: str) -> httpx.TransportError | None:
    """What keeps a Prefect server from answering; None where it answers."""
    try:
        httpx.get(f"{url}/health", timeout=PATIENCE)
    except httpx.TransportError as error:
        return error
    return None


def call(flow: Flow[Any, Any], **values: Any) -> Any:
    """Run a flow, a stage `alone`: as a flow run where a Prefect server answers, else as a plain function."""
    function = alone(flow.name)(flow.fn) if flow.name in STAGES else flow.fn
    if not reachable():
        return function(**values)
    begun, made = Event(), list[Any]()

    @wraps(flow.fn)
    def work(**values: Any) -> None:
        begun.set()
        made.append(function(**values))

    try:
        Flow(work, name=flow.name)(**values)
    except (httpx.HTTPError, RuntimeError) as error:  # the latter of Prefect, by what is no server or another version
        if not begun.is_set():
            fault = str(error).partition("\n")[0]
            say(f"the Prefect server does not take this run ({fault}): it is not shown there")
            return function(**values)
        if not made:
            raise
        lose()
    return made[0]


def lose() -> None:
    """Go on without the Prefect server."""
    if GONE.is_set():
        return
    GONE.set()
    say("the Prefect server has gone away; the work goes on, and is not shown there from here on")


def main(flow: Flow[Any, Any]) -> None:
    """Run a stage from the command line, `python -m flows.<stage>`; a fault ends it with status 1 and a paragraph.

    It takes no arguments. Parameters and files that it depends on, changed while it runs, are a fault: DVC would note
    them as those of its results. Ctrl-C and SIGTERM end it with status `STOPPED` and a line.
    """
    argparse.ArgumentParser(
        prog=f"python -m flows.{flow.name}",
        description=inspect.getdoc(flow.fn),
        epilog="Takes no arguments: every parameter is read from params.yaml.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    status = 0
    try:
        given, before = arguments(flow, read_params()), dependencies(flow.name)
        call(flow, **given)
        if arguments(flow, read_params()) != given:
            raise ValueError("its parameters in params.yaml were changed while it ran; run it again, by the new ones")
        if changed := before ^ dependencies(flow.name):
            raise ValueError(f"{min(changed)[0]}, which it depends on, was changed while it ran; run it again")
    except (ValueError, OSError, MemoryError) as error:
        if os.environ.get("MERGE3_TRACEBACK"):
            raise
        print(f"{flow.name}: {error}\n(MERGE3_TRACEBACK=1 shows where)", file=sys.stderr, flush=True)
        status = 1
    except KeyboardInterrupt as stop:
        said = stop.args[0] if stop.args else "stopped; what was answered is kept"
        print(f"{flow.name}: {said}", file=sys.stderr, flush=True)
        status = STOPPED
    if GONE.is_set():
        os._exit(status)  # else Prefect tries for minutes to tell the server what it has left to tell
    if status:
        sys.exit(status)


def dependencies(stage: str) -> set[tuple[str, int, int]]:
    """Name, size and time of change of the files that dvc.yaml has a stage depend on; none where it is not there."""
    if not PIPELINE.exists():
        return set()
    stages = yaml.safe_load(PIPELINE.read_text(encoding="utf-8"))["stages"]
    places = [Path(dependency) for dependency in stages.get(stage, {}).get("deps", [])]
    files = [file for place in places for file in (place, *place.rglob("*")) if file.is_file()]
    return {(str(file), (now := file.stat()).st_size, now.st_mtime_ns) for file in files}


def say(message: str) -> None:
    """A line for the person who watches: to the Prefect run's log if there is one, else to standard error."""
    if served():
        get_run_logger().info(message)
    else:
        Console(stderr=True, highlight=False, soft_wrap=True).print(message, markup=False)


def tell(report: Callable[[], T]) -> T | None:
    """Tell the Prefect server something if it follows this run."""
    if served():
        try:
            return report()
        except httpx.HTTPError:
            lose()
    return None


def do(name: str, work: Callable[[], T], kept: Callable[[T], bool] = lambda result: False) -> T:
    """Do a part of a stage, as a task run of that name where a Prefect server follows.

    Its state there is `Cached` where what it gave was kept from before. The progress that is shown tells of it.
    """
    with WATCH.part(name):
        made = _as_task(name, work, kept) if served() else work()
    WATCH.note(made, kept(made))
    return made


def _as_task(name: str, work: Callable[[], T], kept: Callable[[T], bool]) -> T:
    made: list[T] = []

    @task(name=name, task_run_name=name, cache_policy=NO_CACHE, persist_result=False)
    def part() -> State | None:
        made.append(work())
        return Completed(name="Cached", message="answered before") if kept(made[0]) else None

    part()
    return made[0]


def show_table(key: str, rows: Sequence[Mapping[str, Any]], description: str) -> None:
    """Show a table as an artifact where a Prefect server follows: four decimals, eight letters of a phenotype."""
    table = pd.DataFrame(rows).round(4)
    if "phenotype" in table:
        table["phenotype"] = table["phenotype"].str[:8]
    plain = json.loads(table.to_json(orient="records"))  # null where a cell is NaN
    tell(lambda: create_table_artifact(plain, key=key, description=description))


def show_text(key: str, text: str, description: str) -> None:
    """Show Markdown as an artifact where a Prefect server follows."""
    tell(lambda: create_markdown_artifact(text, key=key, description=description))


class Watch:
    """What the parts of a stage tell while it goes on: what is at work, the highest estimate, the speed, what was kept.

    A part is what `do` does. It may give something with a `cost` of answering, and with an `estimate` of a score.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Begin again."""
        self.parts: list[str] = []
        self.best: Any = None
        self.tokens, self.seconds, self.kept = 0, 0.0, 0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Name the part that is at work, `name`; of nested ones the outermost is told."""
        self.parts.append(name)
        try:
            yield
        finally:
            self.parts.pop()

    def note(self, made: Any, kept: bool) -> None:
        """Count what a part gave, and that it was kept from before."""
        self.kept += kept
        if cost := getattr(made, "cost", None):
            self.tokens += cost.tokens
            self.seconds += cost.answering_seconds
        estimate = getattr(made, "estimate", None)
        if estimate is not None and (self.best is None or estimate.score > self.best.score):
            self.best = estimate

    def __str__(self) -> str:
        """All of it that there is, in a line."""
        told = []
        if self.parts:
            told.append(self.parts[0])
        if self.best is not None:
            score, low, high = (f"{100 * part:.1f}" for part in (self.best.score, self.best.low, self.best.high))
            told.append(f"highest estimate {score} % [{low}, {high}]")
        if self.seconds:
            told.append(f"{self.tokens / self.seconds:,.0f} tokens/s")
        if self.kept:
            told.append(f"{self.kept} kept")
        return ", ".join(told)


WATCH = Watch()


@contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show how far a long work is; yields a function that is told how many more units are done.

    A bar in a terminal, at most `LINES` plain lines elsewhere, both with what `WATCH` tells of the parts, and an
    artifact where a Prefect server follows.
    """
    WATCH.clear()
    with _bar(label, total) if sys.stderr.isatty() else _lines(label, total) as show:
        artifact = tell(lambda: create_progress_artifact(0.0, description=label))
        if artifact is None:
            yield show
            return
        done, told = 0, monotonic()

        def both(step: int) -> None:
            nonlocal done, told
            done += step
            show(step)
            if monotonic() - told > PAUSE:
                tell(lambda: update_progress_artifact(artifact, 100.0 * done / total))
                told = monotonic()

        yield both
        tell(lambda: update_progress_artifact(artifact, 100.0))  # it may take less than `total`, which is the most


class _Bar(Progress):
    """A bar, and under it what the parts tell."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if told := str(WATCH):
            yield Text(f"  {told}", style="dim", overflow="ellipsis", no_wrap=True)


@contextmanager
def _bar(label: str, total: int) -> Iterator[Callable[[int], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    left = TextColumn("left"), TimeRemainingColumn()
    with _Bar(*columns, *left, console=Console(stderr=True, highlight=False)) as bar:
        task = bar.add_task(label, total=total)
        yield lambda step: bar.advance(task, step)


@contextmanager
def _lines(label: str, total: int) -> Iterator[Callable[[int], None]]:
    start, done = monotonic(), 0

    def show(step: int) -> None:
        nonlocal done
        before, done = done, done + step
        if done * LINES // total > before * LINES // total:
            spent = monotonic() - start
            left = spent * (total - done) / done
            line = f"{label}: {done}/{total}, {spent:.0f} s, {left:.0f} s left"
            print("; ".join(filter(None, (line, str(WATCH)))), file=sys.stderr, flush=True)

    yield show


@contextmanager
def alone(stage: str, wait: bool = True) -> Iterator[None]:
    """Be the only process that runs `stage` on this data folder: another is waited for.

    Raises:
        ValueError: without `wait`, another runs it.
    """
    DATA.mkdir(exist_ok=True)
    lock = FileLock(DATA / f".{stage}.lock")
    try:
        held = lock.acquire(blocking=False)
    except Timeout:
        if not wait:
            raise ValueError(f"{stage} runs here: do this again when it has ended") from None
        say(f"another process runs {stage} here; this one goes on when that has ended")
        held = lock.acquire()
    with held:
        yield


def write_text(path: Path, content: str) -> None:
    """Write a file through a temporary name, so that a file that is there is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        temporary.write_text(content, encoding="utf-8")
        temporary.replace(path)
    except (OSError, KeyboardInterrupt):
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, content: Any) -> None:
    """Write JSON, complete or not at all."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def present(path: Path) -> Path:
    """A file that another stage writes.

    Raises:
        FileNotFoundError: it is not there; says which stage to run.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: run the stage {path.parent.name} first")
    return path


def read_json(path: Path) -> Any:
    """What `write_json` of another stage wrote.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is damaged.
    """
    try:
        return json.loads(present(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): run the stage {path.parent.name} again") from error
