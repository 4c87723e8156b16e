"""The command line `merge3`: every command and its options. What a command does stands in the module that it names.

Those are imported when they run, so that help and completion come at once.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from textwrap import fill
from typing import Any

import shtab

STOPPED = 130  # the status of a command that was interrupted, as shells have it
WIDTH = 78  # of a line of help, in a terminal of 80
SCORINGS = ("sum", "characters", "tokens")
SCORING = "log-likelihoods of options: sum (lm-eval's acc), per character (acc_norm) or per token (default: sum)"
ITEMS = "a .jsonl or .parquet file of items, lm-eval:<task>, or a .yaml file that makes items of any dataset"
SHARE = "share of the items that is held out (default: what the .yaml says, else 0.4)"
FIRST = """commands, in the order they are usually wanted:
  merge3 run      evolve a merge of your models for your questions, in one go
  merge3 chat     try the winner
  merge3 init     set up the whole pipeline for your own models, in a clone
  merge3 check    what would go wrong, before hours are spent"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; bad input ends with status 1 and one paragraph, Ctrl-C and SIGTERM with `STOPPED` and a line."""
    try:
        status = _run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # who reads has read enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python writes at its end
        return 0
    return status


def _run(arguments: Sequence[str] | None) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    made = parser()
    options, unknown = made.parse_known_args(arguments)
    if unknown:  # with the options of the command, which argparse does not show here
        commands_of(made)[options.command].error(f"unrecognized arguments: {' '.join(unknown)}")
    module, function = options.run
    try:
        status = getattr(import_module(f"merge3.cli.{module}"), function)(options)
    except (ValueError, OSError, MemoryError) as error:
        if options.traceback or isinstance(error, BrokenPipeError):
            raise
        print(f"merge3 {options.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        kept = f"; answers so far are kept in {store}" if (store := getattr(options, "store", None)) else ""
        said = stop.args[0] if stop.args else f"stopped{kept}"
        print(f"merge3 {options.command}: {said}", file=sys.stderr)
        return STOPPED
    return int(status or 0)


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    made = argparse.ArgumentParser(
        "merge3",
        description="Evolve and merge language models.",
        epilog=FIRST,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--version", action="version", version=f"merge3 {version('merge3-pipeline')}")
    made.add_argument("--traceback", action="store_true", help="show where an error comes from")
    shtab.add_argument_to(made, ["--print-completion"], help="print what makes a shell complete commands, and end")
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (add_run, add_chat, add_init, add_check, add_merge, add_tokens, add_recipe, add_plan):
        add(commands)
    for add in (add_respond, add_answers, add_import, add_study, add_verify):
        add(commands)
    for one in set(commands.choices.values()):  # an alias is the same parser
        one.add_argument("--json", action="store_true", help="print the result as JSON, and nothing else")
        for action in one._actions:
            if action.type is Path or action.dest == "items":
                vars(action)["complete"] = shtab.FILE
    return made


def commands_of(made: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parsers of a parser's commands, by name."""
    return dict(next(action for action in made._actions if action.dest == "command").choices or {})


def whole(text: str) -> int:
    """A whole number of 0 or more, such as a seed, from its text.

    Raises:
        ArgumentTypeError: it is none.
    """
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number of 0 or more, got {text!r}")
    return int(text)


def count(text: str) -> int:
    """A number of what there must be one of, from its text.

    Raises:
        ArgumentTypeError: it is none.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of 1 or more, got {text!r}")
    return int(text)


def add_run(commands: Any) -> None:
    """`merge3 run`."""
    run = command(
        commands,
        *("run", "searching", "run"),
        "evolve a merge of models for a benchmark, measure it on held-out items, and write it",
        r"""merge3 run --base org/base --expert maths=org/maths --expert de=./german \
    --items questions.jsonl --out merged
merge3 run --base ./base --expert ./a --expert ./b --items q.jsonl --out new \
    --budget 480 --method ties --store merged.store

An item is a line of JSON, with "group", a language for instance, if you like:
{"id": "1", "prompt": "2 + 2 = ", "options": ["3", "4"], "answer": 1}
Or items are one of lm-eval's tasks (lm-eval:arc_easy), or made of the rows of
any dataset: a .yaml file with the keys source, prompt, options, answer, ...

Interrupted, or again with a larger --budget, a new --out and the same
--store, it asks only what is not in the store.""",
    )
    add_parents(run, required=True)
    run.add_argument("--items", required=True, help=ITEMS)
    run.add_argument("--out", type=Path, required=True, help="a new folder for the model")
    run.add_argument("--budget", type=count, default=240, help="candidates to try, in generations of 12 (default: 240)")
    run.add_argument(
        "--method", default="task_arithmetic", help="merge method: ties, dare_ties... (default: task_arithmetic)"
    )
    run.add_argument("--test-share", type=float, help=SHARE)
    run.add_argument("--seed", type=whole, default=0, help="seed of all draws (default: 0)")
    run.add_argument("--store", type=Path, help="folder of every answer and the history (default: OUT.store)")
    add_device(run)


def add_chat(commands: Any) -> None:
    """`merge3 chat`."""
    chat = command(
        commands,
        *("chat", "making", "chat"),
        "talk to a merge, or to any model: greedy, by its chat template if it has one",
        """merge3 chat merged
merge3 chat data/evolve/winner.yaml --prompt "What is 12 + 5?"
An empty line ends. A model without a chat template goes on writing where a
line ends.""",
    )
    chat.add_argument("model", help="a model's folder or hub id, or a merge file (.yaml)")
    chat.add_argument("--prompt", help="say this alone, and end")
    chat.add_argument("--max-tokens", type=count, default=256, help="tokens of a reply at most (default: 256)")
    add_device(chat)


def add_init(commands: Any) -> None:
    """`merge3 init`."""
    init = command(
        commands,
        *("init", "project", "init"),
        "write params.yaml for your own models, in a clone of the pipeline; what no flag says is asked",
        r"""merge3 init
merge3 init --base org/base --expert maths=org/maths --expert de=./german \
    --items questions.jsonl --device cuda
Then: dvc repro""",
    )
    add_parents(init, required=False)
    init.add_argument("--items", help=ITEMS)
    init.add_argument("--test-share", type=float, help=SHARE)
    init.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")


def add_check(commands: Any) -> None:
    """`merge3 check`."""
    command(
        commands,
        *("check", "project", "check"),
        "say everything that is wrong or risky with params.yaml and this machine; status 1 if anything is wrong",
        """merge3 check
merge3 check --json | jq '.[] | select(.level == "wrong")'""",
    )


def add_merge(commands: Any) -> None:
    """`merge3 merge`."""
    merge = command(
        commands,
        *("merge", "making", "merge"),
        "write the model that a merge file describes: safetensors, tokenizer, card",
        r"""merge3 merge data/evolve/winner.yaml my-model \
    --scores data/evaluate/scores.csv
merge3 merge mergekit.yaml my-model --device cuda
The folder can be uploaded to a hub as it is; llama.cpp's
convert_hf_to_gguf.py makes a GGUF file of it.""",
        aliases=("export",),
    )
    merge.add_argument("file", type=Path, help="a merge file, ours or mergekit's")
    merge.add_argument("out", type=Path, help="a new folder for the model")
    merge.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    merge.add_argument("--scores", type=Path, help="for the card: a CSV file with model, accuracy, low, high")


def add_tokens(commands: Any) -> None:
    """`merge3 tokens`."""
    tokens = command(
        commands,
        *("tokens", "making", "tokens"),
        "write a base with the tokenizer of a fine-tune, whose added tokens and chat template merges then keep",
        r"""merge3 tokens org/base org/chat-tune base-for-chat
merge3 run --base base-for-chat --expert chat=org/chat-tune \
    --expert maths=org/maths --items questions.jsonl --out merged""",
    )
    tokens.add_argument("base", help="folder, GGUF file or hub id")
    tokens.add_argument("expert", help="whose tokens: folder, GGUF file or hub id; no adapter")
    tokens.add_argument("out", type=Path, help="a new folder for the model")


def add_recipe(commands: Any) -> None:
    """`merge3 recipe`."""
    recipe = command(
        commands,
        *("recipe", "making", "recipe"),
        "print a merge file in our form or in mergekit's",
        """merge3 recipe data/evolve/winner.yaml --as mergekit
merge3 recipe mergekit.yaml""",
    )
    recipe.add_argument("file", type=Path, help="a merge file, ours or mergekit's")
    recipe.add_argument("--as", dest="form", choices=("merge3", "mergekit"), default="merge3", help="default: merge3")


def add_plan(commands: Any) -> None:
    """`merge3 plan`."""
    plan = command(
        commands,
        *("plan", "making", "plan"),
        "say from configs, and the files of adapters, what fits and what a candidate costs",
        """merge3 plan merge.yaml
merge3 plan merge.yaml --memory 24 --bandwidth 1000 --tflops 70
merge3 plan merge.yaml --memory 80 --bandwidth 2000 --tflops 300 --workers 8
The second plans for a card that is not here, the last for eight.""",
    )
    plan.add_argument("file", type=Path, help="a merge file: its base, experts and method are planned for")
    plan.add_argument("--tokens", type=count, default=2000, help="tokens that a candidate is asked (default: 2000)")
    plan.add_argument("--candidates", type=count, default=200, help="candidates of the search (default: 200)")
    plan.add_argument("--population", type=count, default=12, help="candidates of a generation (default: 12)")
    plan.add_argument("--workers", type=count, default=1, help="devices that search together (default: 1)")
    plan.add_argument("--batch-tokens", type=count, default=4096, help="tokens answered at once (default: 4096)")
    plan.add_argument("--device", help="measure this device (default: cpu)")
    plan.add_argument("--dtype", default="auto", help="dtype of the live model (default: auto)")
    plan.add_argument("--memory", type=float, help="instead: GB of a device that is not here")
    plan.add_argument("--bandwidth", type=float, help="with --memory: its memory's bandwidth, GB/s")
    plan.add_argument("--tflops", type=float, help="with --memory: its dense matrix products, 10^12 operations/s")
    plan.add_argument("--main-bandwidth", type=float, help="GB/s of the main memory beside it (default: measured here)")


def add_respond(commands: Any) -> None:
    """`merge3 respond`."""
    respond = command(
        commands,
        *("respond", "asking", "respond"),
        "let models answer items: a table of who was right",
        r"""merge3 respond --model org/a --model ./b --items items.jsonl \
    --out table.parquet --store answers/
merge3 respond --model org/a --task arc_easy --out table.parquet""",
    )
    respond.add_argument(
        "--model", action="append", required=True, metavar="M", help="folder, GGUF file or hub id; may be repeated"
    )
    respond.add_argument("--items", help=ITEMS)
    respond.add_argument("--task", action="append", help="instead: a task of lm-eval, by name; may be repeated")
    respond.add_argument("--include-path", type=Path, help="a folder with more of lm-eval's tasks")
    respond.add_argument("--metric", help="metric of a task (default: acc_norm, else acc, else exact_match)")
    respond.add_argument("--filter", help="lm-eval's filter of a task's answers, where it has several")
    respond.add_argument("--out", type=Path, required=True, help="the table, models x items, as Parquet")
    respond.add_argument("--answers", type=Path, help="every raw answer as well, as JSON lines")
    respond.add_argument("--store", type=Path, help="a folder that keeps raw answers: what is in it is not asked again")
    respond.add_argument("--batch-tokens", type=count, default=4096, help="tokens answered at once (default: 4096)")
    respond.add_argument("--scoring", choices=SCORINGS, help=SCORING)
    add_device(respond)


def add_answers(commands: Any) -> None:
    """`merge3 answers`."""
    answers = command(
        commands,
        *("answers", "asking", "answers"),
        "show every raw answer that a store keeps",
        r"""merge3 answers data/evolve/answers --items data/prepare/search.parquet \
    --failed
merge3 answers merged.store --items questions.jsonl --json""",
    )
    answers.add_argument("store", type=Path, help="what run or respond --store wrote, or data/evolve/answers")
    answers.add_argument("--items", action="append", required=True, help="the items; may be repeated")
    answers.add_argument("--model", help="only models whose name begins so")
    answers.add_argument("--item", help="only the item of this id")
    answers.add_argument("--failed", action="store_true", help="only answers that are not scored")
    answers.add_argument(
        "--scoring", choices=SCORINGS[:2], default="sum", help="as for respond, but for tokens (default: sum)"
    )


def add_import(commands: Any) -> None:
    """`merge3 import`."""
    imported = command(
        commands,
        *("import", "asking", "import_table"),
        "make a response table of what others measured",
        """merge3 import runs/ --out table.parquet
merge3 import leaderboard.csv --out table.parquet""",
    )
    imported.add_argument("source", type=Path, help="what lm_eval --log_samples wrote, or a .csv or .parquet matrix")
    imported.add_argument("--out", type=Path, required=True, help="the table, models x items, as Parquet")
    imported.add_argument(
        "--metric", help="lm-eval's score of a sample (default: acc_norm, else acc, else exact_match)"
    )
    imported.add_argument("--filter", help="lm-eval's filter of answers, where a task has several")


def add_study(commands: Any) -> None:
    """`merge3 study`."""
    study = command(
        commands,
        *("study", "studies", "study"),
        "say which items and estimator serve best, on models that were answered in full",
        """merge3 study table.parquet --parents org/a org/b --merges 'mine/*'
merge3 study leaderboard.csv --counts 20 --json""",
    )
    add_case(study)
    study.add_argument(
        "--counts", type=whole, nargs="+", help="items asked (default: 10 20 50, as far as there are so many)"
    )
    study.add_argument("--draws", type=whole, default=20, help="repetitions (default: 20)")
    study.add_argument("--weights", type=Path, help="with --parents: a CSV file of the merges' names and coefficients")
    study.add_argument("--plot", type=Path, help="the figures as a picture (default: TABLE.study.png)")


def add_verify(commands: Any) -> None:
    """`merge3 verify`."""
    verify = command(
        commands,
        *("verify", "studies", "verify"),
        "check the guarantees: by simulation, and on answers if given",
        """merge3 verify
merge3 verify table.parquet --parents org/a org/b --merges 'mine/*'""",
    )
    add_case(verify, "?")
    verify.add_argument("--count", type=whole, help="items asked, of a table (default: 20)")


def command(
    commands: Any, name: str, module: str, function: str, what: str, examples: str, aliases: Sequence[str] = ()
) -> argparse.ArgumentParser:
    """A command, what it does, and examples of it under its help."""
    made: argparse.ArgumentParser = commands.add_parser(
        name,
        aliases=aliases,
        help=what,
        description=fill(f"{what[0].upper()}{what[1:]}.", WIDTH),
        epilog="examples:\n  " + examples.replace("\n", "\n  "),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.set_defaults(run=(module, function))
    return made


def add_parents(made: argparse.ArgumentParser, required: bool) -> None:
    """Base and experts."""
    made.add_argument("--base", required=required, metavar="B", help="the base: folder, GGUF file or hub id")
    made.add_argument(
        "--expert",
        action="append",
        required=required,
        metavar="NAME=M",
        help="a fine-tune or LoRA adapter of the base: folder, GGUF file or hub id; once for each",
    )


def add_device(made: argparse.ArgumentParser) -> None:
    """Where a model lives, and in which dtype."""
    made.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    made.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16 (default: auto)")


def add_case(made: argparse.ArgumentParser, number: str | None = None) -> None:
    """The table of a study, and who in it is what."""
    made.add_argument("responses", type=Path, nargs=number, help="a response table (.parquet or .csv), models x items")
    kinship = made.add_mutually_exclusive_group()
    kinship.add_argument("--parents", nargs="+", metavar="P", help="whose merges the other models are")
    kinship.add_argument(
        "--triplets", type=Path, help="a CSV file with merge, parent_a, parent_b: parents of each merge"
    )
    made.add_argument(
        "--merges", default="*", help="with --parents: names of the merges, a pattern; others are strangers"
    )
    made.add_argument("--relatives", type=whole, default=0, help="with --parents: merges answered in full (default: 0)")
    made.add_argument(
        "--groups", metavar="SEPARATOR", help="an item's group is what its id has before the last SEPARATOR"
    )
    made.add_argument("--seed", type=whole, default=0, help="seed of all draws (default: 0)")
