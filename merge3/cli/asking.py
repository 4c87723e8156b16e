"""`merge3 respond`, `answers`, `import`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from merge3 import answering, generation, grading, imports, items
from merge3 import responses as tables
from merge3.benchmark import items_of
from merge3.cli.show import as_json, as_line, progress, quiet, refuse
from merge3.models import (
    adapted,
    check_device,
    fingerprint,
    load,
    load_tokenizer,
    resolve_dtype,
    runtime_name,
    weights_folder,
)
from merge3.respond import respond as ask
from merge3.store import Answer, Failure, Reply, Store, digest

KEEP = 512  # items after which answers are kept


def respond(options: argparse.Namespace) -> int:
    """`merge3 respond`; status 1 where every model is broken.

    Raises:
        ValueError: two models are called alike, there are neither items nor tasks, or both, or an option has no effect.
    """
    if (options.items is None) == (options.task is None):
        raise ValueError("give either --items or --task")
    if options.task is None:
        refuse(options, ("metric", "filter", "include_path"), "it is of lm-eval's tasks, --task")
    else:
        refuse(options, ("answers", "store", "scoring"), "of --task lm-eval keeps and grades the answers; see --metric")
    names = [source.rstrip("/").split("/")[-1] for source in options.model]
    if len(set(names)) < len(names):
        raise ValueError(f"models are named by the last part of their paths, which must differ: got {names}")
    quiet()
    check_device(options.device)
    dtype = resolve_dtype(options.dtype, options.device)
    folders = dict(zip(names, map(weights_folder, options.model), strict=True))  # before anything is asked
    _parquet(options.out)
    _writable(options.out, options.answers)
    if options.task is not None:
        respond_tasks(options, folders, dtype)
        return 0
    asked = items_of(options.items)
    for item in asked:
        grading.check(item)
    store = None if options.store is None else Store(options.store)
    rows, lines, said, broken = [], [], [], 0
    for name, folder in folders.items():
        model, tokenizer = load(folder, dtype, options.device), load_tokenizer(folder)
        runtime = f"{runtime_name(options.device)}, batches of {options.batch_tokens} tokens"
        key = key_of(name, folder, dtype, runtime) | generation.ends(model, tokenizer)
        kept = store.get(key) if store else {}
        new = list({item.content_hash: item for item in asked if item.content_hash not in kept}.values())
        begin, work = perf_counter(), answering.Work()
        try:
            for fresh, more in in_parts(name, model, tokenizer, new, options.batch_tokens):
                kept, work = kept | fresh, work + more
                if store:
                    store.put(key, fresh)
        except answering.BrokenModel as error:
            print(f"{name} is not scored: {error}", file=sys.stderr)
            kept, work = {item.content_hash: Failure(str(error)) for item in asked}, work + error.work
            broken += 1
        seconds = perf_counter() - begin
        answers = [kept[item.content_hash] for item in asked]
        scores, reasons = grading.grades(asked, answers, answering.divisors(asked, tokenizer, options.scoring or "sum"))
        rows.append(scores)
        lines += [
            {"model": name, **shown(item, answer, score, reason)}
            for item, answer, score, reason in zip(asked, answers, scores, reasons, strict=True)
        ]
        said.append(summary(name, scores, grading.failures(scores, reasons), work, seconds))
        if not options.json:
            tell(said[-1])
    tables.write(options.out, tables.table(names, [item.id for item in asked], np.stack(rows)))
    if options.answers:
        options.answers.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    if options.json:
        as_json(said)
    return int(broken == len(folders))


def key_of(name: str, folder: Path, dtype: torch.dtype, runtime: str) -> dict[str, Any]:
    """What a model's answers depend on, but for the item and the tokens that end a text."""
    key = {
        "model": name,
        "weights": fingerprint(folder),
        "dtype": str(dtype),
        "protocol": answering.PROTOCOL,
        "runtime": runtime,
    }
    if base := adapted(folder):  # an adapter answers by its base, too
        key |= {"base": fingerprint(weights_folder(base)), "adapter": "merged"}
    return key


def in_parts(
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    new: Sequence[items.Item],
    batch_tokens: int,
) -> Iterator[tuple[dict[str, Answer], answering.Work]]:
    """Answers by what is asked, some at a time: those stay that were kept before an interruption.

    Raises:
        BrokenModel: the model's numbers are not finite.
    """
    if not new:
        return
    packed = answering.packable(model, tokenizer)
    with progress(name, len(new)) as advance:
        for start in range(0, len(new), KEEP):
            part = new[start : start + KEEP]
            found, work = ask(model, tokenizer, part, batch_tokens, advance, packed)
            yield {item.content_hash: answer for item, answer in zip(part, found, strict=True)}, work


def _parquet(path: Path) -> None:
    if path.suffix not in ("", ".parquet"):
        raise ValueError(f"--out is a Parquet file, its name would end in {path.suffix!r}: name it .parquet")


def _writable(*places: Path | None) -> None:
    for place in places:
        if place is not None:
            if place.is_dir():
                raise IsADirectoryError(f"{place} is a folder: name a file")
            place.parent.mkdir(parents=True, exist_ok=True)


def summary(
    model: str, scores: np.ndarray, failed: Mapping[str, int], work: answering.Work, seconds: float
) -> dict[str, Any]:
    """How a model did, in plain values; NaN where no item was scored."""
    scored = scores[~np.isnan(scores)]
    return {
        "model": model,
        "accuracy": float(scored.mean()) if len(scored) else np.nan,
        "scored": len(scored),
        "items": len(scores),
        "tokens": work.tokens,
        "tokens_a_second": (work.tokens + work.checks) / seconds,
        "near_ties": work.near_ties,
        "failed": dict(failed),
    }


def tell(did: Mapping[str, Any]) -> None:
    """Print how a model did."""
    name, total = did["model"], did["items"]
    accuracy = f"{did['accuracy']:.1%} of {did['scored']} items" if did["scored"] else "no item scored"
    rate = f"{did['tokens']:,} tokens, {did['tokens_a_second']:,.0f} a second"
    if not did["tokens"]:
        rate = "all of them kept" if did["scored"] else "none could be asked"
    print(f"{name}: {accuracy} ({rate}; {did['near_ties']} near-ties)")
    for reason, count in did["failed"].items():
        print(f"{name}: {count} of {total} items not scored ({count / total:.1%}): {reason}")


def respond_tasks(options: argparse.Namespace, folders: Mapping[str, Path], dtype: torch.dtype) -> None:
    """`merge3 respond --task`: lm-eval makes the requests and grades.

    Raises:
        ValueError: lm-eval is not installed.
    """
    try:
        from merge3.harness import Answerer, evaluate
    except ImportError as error:
        raise ValueError(str(error)) from error
    rows, said = {}, []
    for name, folder in folders.items():
        model, tokenizer = load(folder, dtype, options.device), load_tokenizer(folder)
        packed = answering.packable(model, tokenizer)
        answerer = Answerer(model, tokenizer, options.batch_tokens, packed)
        begin = perf_counter()
        rows[name] = evaluate(answerer, options.task, options.include_path, options.metric, options.filter)
        seconds, scores = perf_counter() - begin, np.array(list(rows[name].values()))
        cut = int(np.isnan(scores).sum())
        said.append(summary(name, scores, {grading.TRUNCATED: cut} if cut else {}, answerer.work, seconds))
        if not options.json:
            tell(said[-1])
    table = tables.check(pd.DataFrame.from_dict(rows, orient="index").rename_axis("model"))
    tables.write(options.out, table)
    if options.json:
        as_json(said)


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


def answers(options: argparse.Namespace) -> None:
    """`merge3 answers`.

    Raises:
        FileNotFoundError: there is no such store.
        ValueError: nothing is kept that fits what was asked for.
    """
    if not options.store.is_dir():
        raise FileNotFoundError(
            f"there is no store at {options.store}: name the folder that `merge3 run` or `merge3 respond --store` wrote"
        )
    asked: dict[str, list[items.Item]] = {}  # by what is asked: several may ask the same, and expect another answer
    for source in options.items:
        for item in items_of(source):
            asked.setdefault(item.content_hash, []).append(item)
    of_run = options.store / "answers"
    store, lines, kept = Store(of_run if of_run.is_dir() else options.store), [], 0
    for key in store.keys():  # noqa: SIM118 - no mapping
        name = named(key)
        if not name.startswith(options.model or ""):
            continue
        for content, answer in store.get(key).items():
            for item in asked.get(content, ()):
                if options.item not in (None, item.id):
                    continue
                score, reason = grading.grade(item, answer, grading.divisors(item, options.scoring))
                kept += 1
                if np.isnan(score) or not options.failed:
                    lines.append({"model": name, **shown(item, answer, score, reason)})
    if not kept:
        chosen = {"--model": options.model, "--item": options.item}
        given = "".join(f" with {option} {value}" for option, value in chosen.items() if value is not None)
        raise ValueError(
            f"{options.store} keeps no answer to the items of {', '.join(options.items)}{given}: name the items "
            "that were asked, and a model or an item among them"
        )
    for line in lines:
        if options.json:
            as_line(line)
        else:
            print(prose(line))
    failed = [line["reason"] for line in lines if line["correct"] is None]
    truncated = failed.count(grading.TRUNCATED)
    print(f"{kept} answers, {len(failed)} not scored, {truncated} of them truncated", file=sys.stderr)


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


def import_table(options: argparse.Namespace) -> None:
    """`merge3 import`.

    Raises:
        ValueError: an option has no effect.
    """
    source = options.source
    if not source.is_dir():
        refuse(options, ("metric", "filter"), f"it is of a folder that lm-eval wrote, and {source} is none")
    _parquet(options.out)
    table = imports.lm_eval(source, options.metric, options.filter) if source.is_dir() else imports.matrix(source)
    _writable(options.out)
    tables.write(options.out, table)
    missing = int(table.isna().to_numpy().sum())
    if options.json:
        as_json({"path": str(options.out), "models": len(table), "items": table.shape[1], "not_scored": missing})
    else:
        print(f"{options.out}: {table.shape[0]} models x {table.shape[1]} items, {missing} not scored")
