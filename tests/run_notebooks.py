"""Run the lessons of all notebooks as tests: one process per core, each held to its core.

Two processes that each use all cores get in each other's way; held to one core each they take
two thirds of the time. Notebooks named in ALONE run afterwards, by themselves, on all cores.
"""

import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from nbdev.config import get_config
from nbdev.test import test_nb

ROOT = Path(__file__).parent.parent
SKIPPED = {"benchmarks"}  # measured by `make bench`
ALONE = {"04_eval_cluster.ipynb", "13_cluster.ipynb"}  # a local Ray needs the machine to itself


def notebooks() -> list[Path]:
    """All notebooks below nbs, without hidden ones and benchmarks."""
    found = sorted((ROOT / "nbs").rglob("*.ipynb"))
    parts = [(path, path.relative_to(ROOT).parts) for path in found]
    hidden = {path for path, names in parts if any(name[0] in "._" for name in names)}
    return [p for p, names in parts if p not in hidden and not SKIPPED & set(names)]


def hold(cores: "multiprocessing.Queue[int]") -> None:
    """Bind this process to a core of its own, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {cores.get()})


def run(path: Path) -> tuple[Path, bool, float]:
    """Execute the cells of one notebook; whether they passed, and the seconds that it took."""
    flags = get_config().tst_flags.split()
    passed, seconds = test_nb(path, skip_flags=flags, basepath=get_config().config_path)
    return path, passed, seconds


def main() -> int:
    """Run everything, tell the slowest, and name what failed."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = sorted(affinity(0)) if affinity else list(range(os.cpu_count() or 1))
    free: multiprocessing.Queue[int] = multiprocessing.Queue()
    for core in cores:
        free.put(core)
    every = notebooks()
    together = [path for path in every if path.name not in ALONE]
    results = []
    with ProcessPoolExecutor(len(cores), initializer=hold, initargs=(free,)) as pool:
        for done in as_completed([pool.submit(run, path) for path in together]):
            results.append(done.result())
            path, passed, seconds = results[-1]
            print(f"{'ok  ' if passed else 'FAIL'} {path.relative_to(ROOT)} {seconds:.0f} s")
    for path in sorted(set(every) - set(together)):
        with ProcessPoolExecutor(1) as pool:
            results.append(pool.submit(run, path).result())
    for path, _, seconds in sorted(results, key=lambda result: -result[2])[:8]:
        print(f"{path.relative_to(ROOT)}: {seconds:.0f} s")
    failed = [str(path.relative_to(ROOT)) for path, passed, _ in results if not passed]
    print(f"{len(results) - len(failed)} of {len(results)} notebooks passed", *failed)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
