"""Train, predict and serve in one go: `make demo`, or `make demo DATA=./dogs` for images of your own.

Trains a classifier, predicts the class of an image that it was not trained on, serves it over HTTP and predicts again. Every
step is the real command, printed as it would be typed. Without DATA the images are those in the package conformal-clip-data
(MIT): woven textile without a defect, with a local one, and with a defect all over.
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
SHORT = ("--backbone", "efficientnet_lite0", "--tune", "most", "--epochs", "4")
"""Options that keep the demo on the textile images short: one small backbone, one fine-tuned part of it, few epochs."""

PACKAGE = "conformal_clip_data"
IMAGES = Path("data", "textile_images", "simulated")

READY_SECONDS = 60.0
"""Time for the service to become ready. It usually takes one or two seconds."""

GRACE_SECONDS = 10.0
"""Time for a command to end after SIGTERM."""

INTERRUPTED = 130

ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""Signals that end the demo and its commands."""


class DemoError(Exception):
    """A failed step of the demo.

    Args:
        message: The problem and a hint; None if the command that failed has printed them.
        exit_code: Exit code of the demo.
    """

    def __init__(self, message: str | None, exit_code: int = 1) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo and return its exit code: 0, 130 after Ctrl-C, or that of the command that failed."""
    parser = argparse.ArgumentParser(prog="demo.py", description="Train, predict and serve on real images.")
    parser.add_argument(
        "data", nargs="?", help="Folder with one sub-folder of images per class.  [default: textile images]"
    )
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
    """Run all steps in order.

    Args:
        data: A folder of images, or None for the packaged ones.

    Raises:
        DemoError: A step failed.
    """
    begun = time.perf_counter()
    images = shown(packaged_images()) if data is None else data
    what = "images of woven textile" if data is None else f"the images in {data}"
    print(f"This trains a classifier on {what}, predicts a test image, and serves the classifier over HTTP.")
    bundle = shown(BUNDLE)
    run("fit", "--data", images, "--out", bundle, *(SHORT if data is None else ()))
    image, class_name = held_out_image(BUNDLE)
    run("predict", bundle, shown(image))
    print(f"(One of the held-out images, from the folder `{class_name}`.)")
    with serving(bundle) as url:
        print(pretty(ask(f"{url}/predict", image)), flush=True)
        print(pretty(shortened(ask(f"{url}/info"))), flush=True)
    print(f"\nDone in {time.perf_counter() - begun:.0f} seconds. Next:\n")
    for step, meaning in (
        (shown(BUNDLE / "report.html"), "the report: open it in a browser"),
        ("make demo DATA=./images", "the same with your own images: one sub-folder per class"),
        ("source .venv/bin/activate", "then `transferapp --help` lists every command"),
    ):
        print(f"  {step:<26} {meaning}")


def packaged_images() -> Path:
    """Return the class folders in the package conformal-clip-data, without importing it.

    Raises:
        DemoError: The package is missing, or has other contents.
    """
    spec = importlib.util.find_spec(PACKAGE)
    for location in (spec.submodule_search_locations or []) if spec else []:
        if (Path(location) / IMAGES).is_dir():
            return Path(location) / IMAGES
    raise DemoError(
        "The demo's images are missing: they come with the package conformal-clip-data 0.1.4. "
        "Install it with `pip install conformal-clip-data==0.1.4`, or use images of your own: "
        "`make demo DATA=./images`.",
        exit_code=5,
    )


def held_out_image(bundle: Path) -> tuple[Path, str]:
    """Return the first held-out image in the bundle's split.csv, and its class.

    Raises:
        DemoError: No such image is on this disk.
    """
    origin = Path(json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))["data"]["origin"])
    with (bundle / "split.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    for split in ("test", "val"):
        for row in rows:
            if row["split"] == split and (origin / row["name"]).is_file():
                return origin / row["name"], row["class_name"]
    raise DemoError(f"{shown(bundle / 'split.csv')} names no held-out image in {origin}.", 3)


# Commands


def run(*words: str) -> None:
    """Print and run a `transferapp` command; its output goes to the terminal.

    Raises:
        DemoError: The command failed.
    """
    with started(*words) as process:
        code = process.wait()
    if code:
        raise DemoError(None, code if code > 0 else 128 - code)


@contextlib.contextmanager
def started(*words: str) -> Iterator[subprocess.Popen[bytes]]:
    """Print and start a `transferapp` command; it has ended when the block has, whatever happens in it."""
    announce("transferapp", *words)
    # In a process group of its own, Ctrl-C reaches the demo alone, which then ends the command. Otherwise a Python process
    # that is still starting would print a traceback.
    command = [sys.executable, "-m", "transferapp", *words]
    process: subprocess.Popen[bytes] | None = None
    try:
        with signals_held():  # a signal between start and assignment would leave the command running
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
            finally:  # also after a second Ctrl-C
                process.kill()  # has no effect on a process that has ended
                process.wait()


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Delay signals until the block has ended."""
    received: list[int] = []
    usual = {number: signal.signal(number, lambda number, _: received.append(number)) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
        for number in received:
            signal.raise_signal(number)


def ended(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Return whether a process ends within `seconds`."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    return process.returncode is not None


@contextlib.contextmanager
def serving(bundle: str) -> Iterator[str]:
    """Serve the bundle in the block, and yield the URL.

    Raises:
        DemoError: The service did not start, or did not stop with exit code 0.
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
    """Return a port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_ready(process: subprocess.Popen[bytes], url: str) -> None:
    """Poll /readyz until it answers 200.

    Raises:
        DemoError: The service has ended, or takes too long.
    """
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise DemoError(None, process.returncode if process.returncode > 0 else 1)
        with contextlib.suppress(OSError), opener().open(url, timeout=5):
            return
        time.sleep(0.05)
    raise DemoError(f"The service was not ready within {READY_SECONDS:.0f} seconds.")


def environment() -> dict[str, str]:
    """Return the environment without settings that would change what the demo shows."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TRANSFERAPP_")}
    for name in ("TRANSFERAPP_CACHE", "TRANSFERAPP_DEBUG"):
        if name in os.environ:
            kept[name] = os.environ[name]
    # The demo prints requests and answers itself; the service still logs warnings.
    return {**kept, "TRANSFERAPP_LOG_LEVEL": "warning", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}


# HTTP


def ask(url: str, image: Path | None = None) -> dict[str, Any]:
    """GET a page, or POST an image as the form field `file`: with curl if it is installed, printed first.

    Returns:
        The JSON object of the answer.

    Raises:
        DemoError: The answer is no JSON object, or a problem document.
    """
    words = ["-F", f"file=@{curl_form_path(shown(image))}"] if image else []
    announce("curl", *words, url)
    if shutil.which("curl"):
        done = subprocess.run(["curl", "-sS", *words, url], env=environment(), stdout=subprocess.PIPE, check=False)  # noqa: S603, S607
        if done.returncode:
            raise DemoError(None)
        body = done.stdout
    else:
        print("(curl is not installed; Python sends the same request.)", flush=True)
        body = fetch(url, image)
    try:
        answer = json.loads(body)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise DemoError(f"The service answered {body[:200]!r} instead of a JSON object.")
    if "code" in answer:
        raise DemoError(f"The service refused: {answer.get('detail', answer)}")
    return answer


def curl_form_path(path: str) -> str:
    """Quote a path for curl's -F if it has a comma or semicolon."""
    if not any(sign in path for sign in ',;"\\'):
        return path
    return '"' + path.replace("\\", "\\\\").replace('"', '\\"') + '"'


def fetch(url: str, image: Path | None) -> bytes:
    """Send the request of `ask` without curl.

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
    """Return an opener that uses no proxy, to which 127.0.0.1 would be the proxy itself."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))


# Showing


def announce(*words: str) -> None:
    """Print a command as it would be typed."""
    print(f"\n$ {shlex.join(words)}", flush=True)


def pretty(value: Any, indent: int = 0) -> str:
    """Format JSON over several lines, short values on one."""
    flat = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, (dict, list)) or len(flat) + indent <= 100:
        return flat
    inner = " " * (indent + 2)
    if isinstance(value, dict):
        parts = [f"{inner}{json.dumps(name, ensure_ascii=False)}: {pretty(v, indent + 2)}" for name, v in value.items()]
        return "{\n" + ",\n".join(parts) + "\n" + " " * indent + "}"
    return "[\n" + ",\n".join(inner + pretty(v, indent + 2) for v in value) + "\n" + " " * indent + "]"


def shortened(info: dict[str, Any]) -> dict[str, Any]:
    """Return /info without its long tables."""
    metrics = info.get("metrics") or {}
    names = ("num_images", "accuracy", "loss")
    brief = {split: {name: figures.get(name) for name in names} for split, figures in metrics.items() if figures}
    return {**info, "metrics": brief}


def shown(path: Path) -> str:
    """Return a path relative to the current folder if it is inside."""
    path = path.absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _end(number: int, _frame: object) -> NoReturn:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise DemoError("Demo stopped by a signal; nothing is left running.", 128 + number)


if __name__ == "__main__":
    sys.exit(main())
