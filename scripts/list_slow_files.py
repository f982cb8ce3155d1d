"""List the unit-test files that ``make test-fast`` leaves out, from the durations of a run.

``pytest tests/unit --durations=0 > run.log``, then
``python scripts/list_slow_files.py run.log > tests/slow_files.txt``.
"""

import collections
import re
import sys
from pathlib import Path

LIMIT_S = 1.5  # a file whose tests take more is left out
_ROW = re.compile(r"^([\d.]+)s (?:call|setup|teardown) +(tests/unit/[^:]+)::", re.MULTILINE)


def list_slow_files(log: str, limit_s: float = LIMIT_S) -> list[str]:
    """Return the files of ``tests/unit`` whose tests took more than ``limit_s`` seconds."""
    seconds: collections.Counter[str] = collections.Counter()
    for duration, file in _ROW.findall(log):
        seconds[file] += float(duration)
    return sorted(file for file, total in seconds.items() if total > limit_s)


if __name__ == "__main__":
    print("\n".join(list_slow_files(Path(sys.argv[1]).read_text(encoding="utf-8"))))
