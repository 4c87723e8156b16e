"""lm-eval's HF backend, run in its own environment: answers lines of requests on standard input until it ends.

    python lm_eval_answers.py MODEL DTYPE THREADS

A line is {"kind": "loglikelihood" | "generate_until", "requests": [...], "batch": n}; the answer to it is one line,
{"answers": [...], "seconds": s}, the time being that of the backend's call alone.
"""

import json
import sys
from time import perf_counter

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM


def main() -> None:
    """Answer until there are no more lines."""
    folder, dtype, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    answers_to = sys.stdout
    sys.stdout = sys.stderr  # whatever is printed is no answer
    model = HFLM(pretrained=folder, dtype=dtype, device="cpu", batch_size=1)
    for line in sys.stdin:
        asked = json.loads(line)
        model.batch_size_per_gpu = asked["batch"]
        requests = [
            Instance(request_type=asked["kind"], doc={}, arguments=tuple(arguments), idx=index)
            for index, arguments in enumerate(asked["requests"])
        ]
        begin = perf_counter()
        answers = getattr(model, asked["kind"])(requests, disable_tqdm=True)
        seconds = perf_counter() - begin
        print(json.dumps({"answers": answers, "seconds": seconds}), file=answers_to, flush=True)


if __name__ == "__main__":
    main()
