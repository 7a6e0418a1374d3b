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


def main() -> int:
    """Run everything, tell the slowest, and name what failed."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = sorted(affinity(0)) if affinity else list(range(os.cpu_count() or 1))
    free: multiprocessing.Queue[int] = multiprocessing.Queue()
    for core in cores:
        free.put(core)
    config = get_config()
    how = {"skip_flags": config.tst_flags.split(), "basepath": config.config_path}
    every = notebooks()
    together = [path for path in every if path.name not in ALONE]
    taken: dict[Path, tuple[bool, float]] = {}
    with ProcessPoolExecutor(len(cores), initializer=hold, initargs=(free,)) as pool:
        # A notebook takes the place of __main__, so only functions of modules can be sent.
        jobs = {pool.submit(test_nb, path, **how): path for path in together}
        for job in as_completed(jobs):
            taken[jobs[job]] = told(jobs[job], *job.result())
    for path in sorted(set(every) - set(together)):
        with ProcessPoolExecutor(1) as pool:
            taken[path] = told(path, *pool.submit(test_nb, path, **how).result())
    slow = sorted(taken, key=lambda path: -taken[path][1])[:8]
    print("slowest:", *(f"{path.stem} {taken[path][1]:.0f} s" for path in slow))
    failed = [str(path.relative_to(ROOT)) for path in every if not taken[path][0]]
    print(f"{len(every) - len(failed)} of {len(every)} notebooks passed.", *failed)
    return bool(failed)


def told(path: Path, passed: bool, seconds: float) -> tuple[bool, float]:
    """What became of a notebook, on one line, at once."""
    name = path.relative_to(ROOT)
    print(f"{'ok  ' if passed else 'FAIL'} {name} {seconds:.0f} s", flush=True)
    return passed, seconds


if __name__ == "__main__":
    sys.exit(main())
