"""The command line: `merge3 merge`, `recipe`, `respond`, `answers`, `import`, `plan`, `study`, `verify`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from merge3 import answering, export, grading, imports, items, lineage, mergefile, responses, study, verify
from merge3.estimate import Known
from merge3.models import check_device, fingerprint, load, load_tokenizer, resolve_dtype, runtime_name, weights_folder
from merge3.plan import GIGABYTE, Machine, Plan, measure, plan, search_seconds
from merge3.respond import packable
from merge3.respond import respond as ask
from merge3.store import Answer, Reply, Store, digest


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; bad input ends with status 1 and one paragraph."""
    options = parser().parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, OSError) as error:
        if options.traceback:
            raise
        print(f"merge3 {options.command}: {error}", file=sys.stderr)
        return 1
    return 0


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    made = argparse.ArgumentParser("merge3", description="Merge language models.")
    made.add_argument("--traceback", action="store_true", help="show where an error comes from")
    commands = made.add_subparsers(dest="command", required=True)

    merge = commands.add_parser("merge", help="write the model that a merge file describes")
    merge.add_argument("file", type=Path, help="a merge file, ours or mergekit's")
    merge.add_argument("out", type=Path, help="a new folder for the model")
    merge.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    merge.add_argument("--scores", type=Path, help="for the card: a CSV file with model, accuracy, low, high")
    merge.set_defaults(run=run_merge)

    recipe = commands.add_parser("recipe", help="print a merge file in our form or in mergekit's")
    recipe.add_argument("file", type=Path, help="a merge file, ours or mergekit's")
    recipe.add_argument("--as", dest="form", choices=("merge3", "mergekit"), default="merge3", help="default: merge3")
    recipe.set_defaults(run=run_recipe)

    respond = commands.add_parser("respond", help="let models answer items: a table of who was right")
    respond.add_argument(
        "--model", action="append", required=True, metavar="M", help="folder, GGUF file or hub id; may be repeated"
    )
    respond.add_argument("--items", type=Path, help="a .jsonl or .parquet file of items")
    respond.add_argument("--task", action="append", help="instead: a task of lm-eval, by name; may be repeated")
    respond.add_argument("--include-path", type=Path, help="a folder with more of lm-eval's tasks")
    respond.add_argument("--metric", help="of a task (default: acc_norm, else acc, else exact_match)")
    respond.add_argument("--filter", help="of a task's answers, where it has several")
    respond.add_argument("--out", type=Path, required=True, help="the table, models x items, as Parquet")
    respond.add_argument("--answers", type=Path, help="every raw answer as well, as JSON lines")
    respond.add_argument("--store", type=Path, help="a folder that keeps raw answers: what is in it is not asked again")
    respond.add_argument("--batch-tokens", type=int, default=4096, help="tokens answered at once (default: 4096)")
    respond.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    respond.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16 (default: auto)")
    respond.add_argument(
        "--scoring",
        choices=answering.SCORINGS,
        default="sum",
        help="of options: sum (lm-eval's acc), or over characters (acc_norm) or tokens (default: sum)",
    )
    respond.set_defaults(run=run_respond)

    told_answers = commands.add_parser("answers", help="show every raw answer that a store keeps")
    told_answers.add_argument(
        "store", type=Path, help="data/evolve/answers, for instance, or what respond --store wrote"
    )
    told_answers.add_argument("--items", type=Path, action="append", required=True, help="the items; may be repeated")
    told_answers.add_argument("--model", help="only models whose name begins so")
    told_answers.add_argument("--item", help="only the item of this id")
    told_answers.add_argument("--failed", action="store_true", help="only answers that are not scored")
    told_answers.add_argument("--json", action="store_true", help="JSON lines")
    told_answers.add_argument("--scoring", choices=answering.SCORINGS[:2], default="sum", help="as for respond")
    told_answers.set_defaults(run=run_answers)

    imported = commands.add_parser("import", help="make a response table of what others measured")
    imported.add_argument("source", type=Path, help="what lm_eval --log_samples wrote, or a .csv or .parquet matrix")
    imported.add_argument("--out", type=Path, required=True, help="the table, models x items, as Parquet")
    imported.add_argument(
        "--metric", help="lm-eval's score of a sample (default: acc_norm, else acc, else exact_match)"
    )
    imported.add_argument("--filter", help="lm-eval's filter of answers, where a task has several")
    imported.set_defaults(run=run_import)

    planned = commands.add_parser("plan", help="say from configs alone what fits and what a candidate costs")
    planned.add_argument("file", type=Path, help="a merge file: its base, experts and method are planned for")
    planned.add_argument("--tokens", type=int, default=2000, help="tokens that a candidate is asked (default: 2000)")
    planned.add_argument("--candidates", type=int, default=200, help="candidates of the search (default: 200)")
    planned.add_argument("--population", type=int, default=12, help="candidates of a generation (default: 12)")
    planned.add_argument("--workers", type=int, default=1, help="devices that search together (default: 1)")
    planned.add_argument("--batch-tokens", type=int, default=4096, help="tokens answered at once (default: 4096)")
    planned.add_argument("--device", default="cpu", help="measure this device (default: cpu)")
    planned.add_argument("--dtype", default="auto", help="of the live model (default: auto)")
    planned.add_argument("--memory", type=float, help="instead: GB of a device that is not here")
    planned.add_argument("--bandwidth", type=float, help="with --memory: its memory's bandwidth, GB/s")
    planned.add_argument("--tflops", type=float, help="with --memory: its dense matrix products, 10^12 operations/s")
    planned.set_defaults(run=run_plan)

    studied = commands.add_parser("study", help="on models answered in full: which items and estimator serve best?")
    add_case(studied)
    studied.add_argument("--counts", type=int, nargs="+", default=study.COUNTS, help="items asked (default: 10 20 50)")
    studied.add_argument("--draws", type=int, default=20, help="repetitions (default: 20)")
    studied.add_argument("--json", type=Path, help="the figures as a file")
    studied.add_argument("--plot", type=Path, help="the figures as a picture (default: beside the table)")
    studied.set_defaults(run=run_study)

    verified = commands.add_parser("verify", help="check the guarantees: by simulation, and on answers if given")
    add_case(verified, "?")
    verified.add_argument("--count", type=int, default=20, help="items asked (default: 20)")
    verified.set_defaults(run=run_verify)
    return made


def add_case(command: argparse.ArgumentParser, number: str | None = None) -> None:
    """The table of a study, and who in it is what."""
    command.add_argument(
        "responses", type=Path, nargs=number, help="a response table (.parquet or .csv), models x items"
    )
    kinship = command.add_mutually_exclusive_group()
    kinship.add_argument("--parents", nargs="+", metavar="P", help="whose merges the other models are")
    kinship.add_argument(
        "--triplets", type=Path, help="a CSV file with merge, parent_a, parent_b: parents of each merge"
    )
    command.add_argument("--merges", default="*", help="with --parents: names of the merges; others are strangers")
    command.add_argument(
        "--relatives", type=int, default=0, help="with --parents: merges answered in full (default: 0)"
    )
    command.add_argument("--groups", metavar="SEPARATOR", help="an item's group is its id before this")
    command.add_argument("--seed", type=int, default=0, help="of all draws (default: 0)")


def run_merge(options: argparse.Namespace) -> None:
    """`merge3 merge`."""
    scores = None if options.scores is None else pd.read_csv(options.scores)
    model = export.export(mergefile.read(options.file), options.out, options.device, scores)
    print(f"{options.out}: {model.num_parameters():,} parameters, read back and found the same")


def run_recipe(options: argparse.Namespace) -> None:
    """`merge3 recipe`."""
    merge = mergefile.read(options.file)
    print(mergefile.to_mergekit(merge) if options.form == "mergekit" else mergefile.to_yaml(merge), end="")


def run_respond(options: argparse.Namespace) -> None:
    """`merge3 respond`.

    Raises:
        ValueError: two models are called alike, or one is broken, or there are neither items nor tasks, or both.
    """
    if (options.items is None) == (options.task is None):
        raise ValueError("give either --items or --task")
    names = [source.rstrip("/").split("/")[-1] for source in options.model]
    if len(set(names)) < len(names):
        raise ValueError(f"models are named by the last part of their paths, which must differ: got {names}")
    check_device(options.device)
    dtype = resolve_dtype(options.dtype, options.device)
    if options.task is not None:
        run_tasks(options, names, dtype)
        return
    asked = items.read(options.items)
    store = None if options.store is None else Store(options.store)
    rows, lines = [], []
    for name, source in zip(names, options.model, strict=True):
        folder = weights_folder(source)
        model, tokenizer = load(folder, dtype, options.device), load_tokenizer(folder)
        key = {
            **{"model": name, "weights": fingerprint(folder), "dtype": str(dtype), "protocol": answering.PROTOCOL},
            "runtime": f"{runtime_name(options.device)}, batches of {options.batch_tokens} tokens",
        }
        kept = store.get(key) if store else {}
        new = [item for item in asked if item.content_hash not in kept]
        begin, work = perf_counter(), answering.Work()
        if new:
            packed = packable(model, tokenizer, new)
            with progress(name, len(new)) as advance:
                found, work = ask(model, tokenizer, new, options.batch_tokens, advance, packed)
            fresh = {item.content_hash: answer for item, answer in zip(new, found, strict=True)}
            kept |= fresh
            if store:
                store.put(key, fresh)
        seconds = perf_counter() - begin
        answers = [kept[item.content_hash] for item in asked]
        scores, reasons = grading.grades(asked, answers, answering.lengths(asked, tokenizer, options.scoring))
        rows.append(scores)
        lines += [
            {"model": name, **shown(item, answer, score, reason)}
            for item, answer, score, reason in zip(asked, answers, scores, reasons, strict=True)
        ]
        failed = grading.failures(scores, reasons)
        scored = scores[~np.isnan(scores)]
        accuracy = f"{scored.mean():.1%} of {len(scored)} items" if len(scored) else "no item scored"
        rate = (
            f"{work.tokens:,} tokens, {(work.tokens + work.checks) / seconds:,.0f} a second"
            if new
            else "all of them kept"
        )
        print(f"{name}: {accuracy} ({rate}; {work.near_ties} near-ties)")
        for reason, count in failed.items():
            print(f"{name}: {count} of {len(asked)} items not scored ({count / len(asked):.1%}): {reason}")
    responses.write(options.out, responses.table(names, [item.id for item in asked], np.stack(rows)))
    if options.answers:
        options.answers.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def run_tasks(options: argparse.Namespace, names: Sequence[str], dtype: torch.dtype) -> None:
    """`merge3 respond --task`: lm-eval makes the requests and grades.

    Raises:
        ValueError: lm-eval is not installed.
    """
    try:
        from merge3.harness import Answerer, evaluate
    except ImportError as error:
        raise ValueError(str(error)) from error
    rows = {}
    for name, source in zip(names, options.model, strict=True):
        folder = weights_folder(source)
        answerer = Answerer(load(folder, dtype, options.device), load_tokenizer(folder), options.batch_tokens)
        begin = perf_counter()
        rows[name] = evaluate(answerer, options.task, options.include_path, options.metric, options.filter)
        seconds, scores = perf_counter() - begin, np.array(list(rows[name].values()))
        scored = scores[~np.isnan(scores)]
        accuracy = f"{scored.mean():.1%} of {len(scored)} items" if len(scored) else "no item scored"
        print(f"{name}: {accuracy} ({answerer.work.tokens:,} tokens, {answerer.work.tokens / seconds:,.0f} a second)")
        if cut := len(scores) - len(scored):
            print(f"{name}: {cut} of {len(scores)} items not scored ({cut / len(scores):.1%}): {grading.TRUNCATED}")
    table = responses.check(pd.DataFrame.from_dict(rows, orient="index").rename_axis("model"))
    responses.write(options.out, table)


def shown(item: items.Item, answer: Answer, score: float, reason: str) -> dict[str, Any]:
    """One raw answer in plain values: NaN, which JSON lacks, is null."""
    found: dict[str, Any] = {"item": item.id, "prompt": item.prompt}
    if isinstance(answer, Reply):
        found |= {"reply": answer.text, "end": answer.end, "tokens": answer.tokens, "expected": list(item.expected)}
    else:
        found |= {"options": list(item.options), "answer": item.answer}
    if isinstance(answer, tuple):
        found["loglikelihoods"] = list(answer)
    return {**found, "correct": None if np.isnan(score) else bool(score), "reason": reason}


def run_answers(options: argparse.Namespace) -> None:
    """`merge3 answers`.

    Raises:
        ValueError: nothing is kept that fits what was asked for.
    """
    asked = {item.content_hash: item for path in options.items for item in items.read(path)}
    store, lines = Store(options.store), []
    for key in store.keys():  # noqa: SIM118 - no mapping
        name = named(key)
        if not name.startswith(options.model or ""):
            continue
        for content, answer in store.get(key).items():
            item = asked.get(content)
            if item is None or options.item not in (None, item.id):
                continue
            divisors = [max(1, len(o)) if options.scoring == "characters" else 1 for o in item.options]
            score, reason = grading.grade(item, answer, divisors)
            if np.isnan(score) or not options.failed:
                lines.append({"model": name, **shown(item, answer, score, reason)})
    if not lines:
        raise ValueError(f"{options.store} keeps no such answer to these items")
    for line in lines:
        print(json.dumps(line, ensure_ascii=False) if options.json else prose(line))
    failed = [line["reason"] for line in lines if line["correct"] is None]
    truncated = failed.count(grading.TRUNCATED)
    print(f"{len(lines)} answers, {len(failed)} not scored, {truncated} of them truncated", file=sys.stderr)


def named(key: Mapping[str, Any]) -> str:
    """What a model is called: its own name, or the phenotype of its merge, as in a search's history."""
    return str(key["model"]) if "model" in key else digest(key.get("merge"))


def prose(line: Mapping[str, Any]) -> str:
    """One raw answer for a reader."""
    grade = {True: "right", False: "wrong", None: "not scored"}[line["correct"]]
    head = f"{line['model'][:12]}  {line['item']}  {grade}{': ' if line['reason'] else ''}{line['reason']}"
    parts = [head, f"  {line['prompt']!r}"]
    if "reply" in line:
        parts.append(f"  {line['reply']!r} ({line['tokens']} tokens, {line['end']}); expected {line['expected']}")
    values = line.get("loglikelihoods") or [None] * len(line.get("options", ()))
    for place, (option, value) in enumerate(zip(line.get("options", ()), values, strict=True)):
        mark = "*" if place == line["answer"] else " "
        parts.append(f"  {mark} {'-' if value is None else format(value, '9.3f')}  {option!r}")
    return "\n".join(parts)


def run_import(options: argparse.Namespace) -> None:
    """`merge3 import`."""
    source = options.source
    table = imports.lm_eval(source, options.metric, options.filter) if source.is_dir() else imports.matrix(source)
    responses.write(options.out, table)
    missing = int(table.isna().to_numpy().sum())
    print(f"{options.out}: {table.shape[0]} models x {table.shape[1]} items, {missing} not scored")


def run_study(options: argparse.Namespace) -> None:
    """`merge3 study`."""
    draw, groups = read_case(options)
    with progress("study", options.draws) as advance:
        found = study.study(draw, groups, options.counts, options.draws, options.seed, advance=advance)
    shown = found.sort_values(["items", "error"])
    print(shown.to_string(index=False, float_format=lambda value: f"{value:.2f}", na_rep=""))
    for row in study.recommend(found).to_dict("records"):
        print(
            f"{row['items']} items: ask {row['method']} items, estimate by {row['estimator']} "
            f"(error {row['error']:.1f} points, Spearman {row['spearman']:.2f}, regret {row['regret']:.1f})"
        )
    if options.json:
        options.json.write_text(found.to_json(orient="records", indent=2), encoding="utf-8")
    study.plot(found, options.plot or options.responses.with_suffix(".study.png"))


def run_verify(options: argparse.Namespace) -> None:
    """`merge3 verify`.

    Raises:
        ValueError: a guarantee did not hold.
    """
    checks = verify.simulated(options.seed)
    if options.responses is not None:
        draw, groups = read_case(options)
        for case in draw(options.seed)[:1]:
            fitted, _ = lineage.fit(case.strangers, np.vstack([case.parents, case.relatives]))
            near = np.vstack([case.strangers, case.parents, case.relatives])
            count = options.count
            known = Known(fitted, np.arange(count), np.full(count, 1 / count), case.parents, population=near)
            checks += verify.on_answers(known, case.candidates, groups, options.seed)
    for check in checks:
        figures = ", ".join(f"{name} {value:.4g}" for name, value in check.figures.items())
        print(f"{'holds' if check.holds else 'FAILS'}  {check.name}: {figures}")
    if broken := [check.name for check in checks if not check.holds]:
        raise ValueError(f"{len(broken)} of {len(checks)} guarantees do not hold: {broken}")


def read_case(options: argparse.Namespace) -> tuple[study.Draw, list[str]]:
    """The draws of a study from its table, and the groups of the items."""
    table = imports.matrix(options.responses)
    groups = [str(name).rsplit(options.groups, 1)[0] if options.groups else "all" for name in table.columns]
    if options.parents:
        return study.family(table, options.parents, options.merges, options.relatives), groups
    if options.triplets:
        return study.triplets(table, pd.read_csv(options.triplets)), groups
    return study.leaderboard(table), groups


@contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar in a terminal, nothing elsewhere; yields a function that is told how many more are done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(label, total=total)
        yield lambda step: bar.advance(task, step)


def run_plan(options: argparse.Namespace) -> None:
    """`merge3 plan`.

    Raises:
        ValueError: a number is below 1, or only some of --memory, --bandwidth and --tflops are given.
    """
    if min(options.candidates, options.population, options.workers) < 1:
        raise ValueError("--candidates, --population and --workers must be 1 or more")
    stated = (options.memory, options.bandwidth, options.tflops)
    if any(stated) and not all(stated):
        raise ValueError("--memory, --bandwidth and --tflops describe a device together: give all three")
    dtype = torch.bfloat16 if all(stated) and options.dtype == "auto" else resolve_dtype(options.dtype, options.device)
    if all(stated):
        machine = Machine(options.memory * GIGABYTE, options.bandwidth * GIGABYTE, options.tflops * 1e12)
    else:
        machine = measure(options.device, dtype)
    merge = mergefile.read(options.file)
    sizes = {"tokens": options.tokens, "batch_tokens": options.batch_tokens, "dtype": dtype}
    found = plan(merge.base, list(merge.experts.values()), merge.recipe.method, machine, **sizes)
    print(told(found, options.candidates, options.population, options.workers))


def told(found: Plan, candidates: int, population: int, workers: int) -> str:
    """A plan in lines."""
    size = {name: f"{value / GIGABYTE:8.2f} GB" for name, value in asdict(found).items()}
    seconds = found.merging_seconds + found.answering_seconds
    share = found.merging_seconds / seconds
    return "\n".join(
        (
            f"parameters       {found.parameters / 1e6:8,.0f} M",
            f"live model       {size['model']}",
            f"base and experts {size['ingredients']}",
            f"masks            {size['masks']}",
            f"answering        {size['answering']}",
            f"resident         {found.resident / GIGABYTE:8.2f} GB on the device",
            f"streamed         {found.streamed / GIGABYTE:8.2f} GB on the device, the rest in main memory",
            f"device           {size['memory']}: {found.mode}",
            f"a candidate      {seconds:8.3f} s at best, {share:.0%} of it merging",
            f"{candidates} candidates {seconds * candidates / 60:8.1f} min at best",
            f"{workers} worker(s) {search_seconds(found, candidates, population, workers) / 60:9.1f} min at best",
        )
    )


if __name__ == "__main__":
    sys.exit(main())
