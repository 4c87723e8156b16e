"""One mergekit merge, in mergekit's own environment: prints its seconds and the peak of the process's memory.

python mergekit_merge.py RECIPE.yaml OUT
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from time import perf_counter

import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import MergeOptions, run_merge


def main() -> None:
    """Merge, and say what it took."""
    recipe, out = sys.argv[1:]
    config = MergeConfiguration.model_validate(yaml.safe_load(Path(recipe).read_text()))
    options = MergeOptions(copy_tokenizer=False, lazy_unpickle=True, write_model_card=False)
    begin = perf_counter()
    run_merge(config, out, options)
    seconds = perf_counter() - begin
    print(json.dumps({"seconds": seconds, "peak": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}))


if __name__ == "__main__":
    main()
