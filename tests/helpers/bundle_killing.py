"""Kill a process while it writes a bundle over another, and look at what is left. A program of its own, for it forks.

    python -m tests.helpers.bundle_killing FOLDER exchange|two-steps steps
    python -m tests.helpers.bundle_killing FOLDER exchange|two-steps random COUNT SEED

`steps` kills before each file operation of a write in turn, `random` with SIGKILL at random moments. After each death the
target is read and verified, and written again. Prints one JSON object a death, a line each.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transferapp.bundle import format as bundle_module
from transferapp.bundle.format import read_bundle, write_manifest, writing

FILES = ("model.xml", "model.bin", "model.keras", "report.html")


def write(target: Path, generation: int) -> None:
    """Write a bundle whose files all say which generation they are of."""
    with writing(target) as staging:
        for name in FILES:
            (staging / name).write_bytes(f"{name} {generation} ".encode() * 2000)
        write_manifest(
            staging,
            {
                "name": target.name,
                "generation": generation,
                "class_names": ["a", "b"],
                "input": {"image_size": [224, 224], "default_views": 10},
            },
        )


def verify(target: Path) -> int:
    """The generation that is at `target`, once each of its files has been checked to be of it."""
    bundle = read_bundle(target)
    generation = int(bundle.manifest["generation"])
    for name in FILES:
        assert bundle.file(name).read_bytes().startswith(f"{name} {generation} ".encode())
    return generation


def in_child(work: Callable[[], None], watch: Callable[[int], None] = lambda pid: None) -> int:
    """Run `work` in a process of its own; gives how that ended."""
    pid = os.fork()
    if not pid:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    watch(pid)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def report(target: Path, before: int, **facts: Any) -> int:
    """Say what a death has left: a bundle, of which generation, and whether the next write tidies up."""
    left = verify(target)
    write(target, left + 1)
    usual = {target.name, f".{target.name}.lock"}
    litter = sorted(path.name for path in target.parent.iterdir() if path.name not in usual)
    print(json.dumps({"before": before, "left": left, "after": verify(target), "litter": litter, **facts}), flush=True)
    return left + 1


def kill_at_each_step(target: Path) -> None:
    generation = verify(target)
    for step in range(1, 10_000):

        def dying(step: int = step, generation: int = generation) -> None:
            seen = 0

            def hook(event: str, _arguments: tuple[Any, ...]) -> None:
                nonlocal seen
                if event.startswith(("os.", "shutil.", "open", "ctypes.call")):
                    seen += 1
                    if seen == step:
                        os._exit(9)

            sys.addaudithook(hook)
            write(target, generation + 1)

        code = in_child(dying)
        generation = report(target, generation, step=step, code=code)
        if code != 9:
            return


def kill_at_random(target: Path, count: int, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(count):
        before = verify(target)

        def writing_on(before: int = before) -> None:
            for generation in range(before + 1, before + 1000):
                write(target, generation)

        def killer(pid: int) -> None:
            time.sleep(chance.uniform(0.001, 0.06))
            os.kill(pid, signal.SIGKILL)

        report(target, before, code=in_child(writing_on, killer))


def main(folder: str, way: str, mode: str, *numbers: str) -> None:
    if way == "two-steps":
        bundle_module._exchange = lambda first, second: False
    target = Path(folder) / "dogs"
    write(target, 1)
    if mode == "steps":
        kill_at_each_step(target)
    else:
        kill_at_random(target, *map(int, numbers))


if __name__ == "__main__":
    main(*sys.argv[1:])
