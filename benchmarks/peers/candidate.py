"""mergekit and lm-eval in one process: a line of standard input is a candidate, until it ends.

    python candidate.py BASE DTYPE THREADS

A line is {"recipe": file, "requests": [...], "batch": n}; the answer to it is one line,
{"answers": [...], "merging": s, "loading": s, "answering": s}. The tokenizer is the base's.
"""

import json
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from time import perf_counter

import torch
import yaml
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from mergekit.config import MergeConfiguration
from mergekit.merge import MergeOptions, run_merge


def main() -> None:
    """Answer until there are no more lines."""
    base, dtype, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    answers_to = sys.stdout
    sys.stdout = sys.stderr  # whatever is printed is no answer
    options = MergeOptions(copy_tokenizer=False, lazy_unpickle=True, write_model_card=False)
    for line in sys.stdin:
        asked = json.loads(line)
        config = MergeConfiguration.model_validate(yaml.safe_load(Path(asked["recipe"]).read_text()))
        with tempfile.TemporaryDirectory() as out:
            times = [perf_counter()]
            run_merge(config, out, options)
            times.append(perf_counter())
            model = HFLM(pretrained=out, tokenizer=base, dtype=dtype, device="cpu", batch_size=asked["batch"])
            times.append(perf_counter())
            requests = [
                Instance(request_type="loglikelihood", doc={}, arguments=tuple(arguments), idx=index)
                for index, arguments in enumerate(asked["requests"])
            ]
            answers = [value for value, _ in model.loglikelihood(requests, disable_tqdm=True)]
            times.append(perf_counter())
        spent = dict(zip(("merging", "loading", "answering"), (b - a for a, b in pairwise(times)), strict=True))
        print(json.dumps({"answers": answers, **spent}), file=answers_to, flush=True)


if __name__ == "__main__":
    main()
