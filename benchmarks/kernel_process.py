"""One contender on one case in a process of its own: seconds, processor seconds and growth of memory, as JSON.

python kernel_process.py BENCHMARK NAME CASE THREADS REPEATS RESULT.json

BENCHMARK names a module beside this file with

    CASES: dict from a name to what `make_inputs` takes
    WARM_UP: what `make_inputs` takes for a tiny case
    CONTENDERS: dict from a name to a function that gives `run(inputs)`, which returns a number to compare
    make_inputs(case): what `run` takes
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from own_process import keep_to_processors, read_peak, release_free_memory, reset_peak


def measure(benchmark: Any, name: str, case: str, threads: int, repeats: int) -> dict[str, object]:
    """Warm up, then one run whose memory counts, then `repeats` runs whose time counts.

    The warm-up is tiny, so that no memory of the size measured is already held; what `torch.compile` makes is made
    for one shape, so that its warm-up has the full size and what that left is given back.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    run = benchmark.CONTENDERS[name]()
    inputs = benchmark.make_inputs(benchmark.CASES[case])
    run(inputs if "compile" in name else benchmark.make_inputs(benchmark.WARM_UP))
    release_free_memory()
    before = reset_peak()
    value = run(inputs)
    growth = read_peak() - before
    seconds, processor_seconds = [], []
    for _ in range(repeats):
        start, worked = time.perf_counter(), time.process_time()
        run(inputs)
        seconds.append(time.perf_counter() - start)
        processor_seconds.append(time.process_time() - worked)
    times = {"seconds": seconds, "processor_seconds": processor_seconds}
    return {**times, "growth_bytes": growth, "value": value}


if __name__ == "__main__":
    module, contender, case, threads, repeats, result = sys.argv[1:]
    keep_to_processors(int(threads))
    found = measure(importlib.import_module(module), contender, case, int(threads), int(repeats))
    Path(result).write_text(json.dumps(found), encoding="utf-8")
