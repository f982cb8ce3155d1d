"""Peak memory of a run of 10,000 and of 100,000 records, from 1,000 passages.

Usage: bench_engine_memory.py [RECORDS RECORDS]
"""

import sys

from benchmarks.commands import run_command
from benchmarks.synth.engine_runs import WORK, command, make_prompts, say, serve, write_recipe

SEEDS = 1000


def main(sizes: list[int]) -> None:
    """Measure both sizes."""
    peaks = []
    with serve(0.0) as endpoint:
        for size in sizes:
            recipe = write_recipe(
                f"memory-{size}", make_prompts(SEEDS), endpoint, attempts=size // SEEDS
            )
            cost = run_command(command(recipe, WORK / f"memory-{size}", "--overwrite"))
            rows = (WORK / f"memory-{size}/output/records.jsonl").open().read().count("\n")
            assert rows == size, rows
            peaks.append(cost.anon_mb)
            say(
                f"synth/engine/memory_mb/{size}",
                cost.anon_mb,
                rss_mb=round(cost.rss_mb, 1),
                seeds=SEEDS,
                cpu_ms_per_record=round(1000 * cost.cpu / size, 3),
            )
    bytes_each = 1e6 * (peaks[1] - peaks[0]) / (sizes[1] - sizes[0])
    say("synth/engine/memory_bytes_per_record", bytes_each, sizes=sizes)


if __name__ == "__main__":
    main([int(text) for text in sys.argv[1:]] or [10_000, 100_000])
