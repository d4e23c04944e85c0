"""Start-up time and memory of the service, and whether the same image always gets the same scores.

    python benchmarks/service_start.py BUNDLE IMAGE [--starts N]

Starts `transferapp serve` N times, measures the seconds until /readyz answers 200, posts the image ten times with ten crops,
and reads the resident memory (Linux). Results go to benchmarks/results/service_start.json.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.common import RESULTS, free_port, write_results

REQUESTS = 10


def get(url: str, body: bytes | None = None) -> Any:
    """Return the JSON answer; None if there is none or the service is not ready."""
    request = urllib.request.Request(url, data=body, headers={"content-type": "image/jpeg"} if body else {})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)
    except urllib.error.URLError:
        return None


def resident_megabytes(pid: int) -> float:
    match = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(match[1]) / 1000 if match else float("nan")


def one_start(bundle: Path, image: bytes) -> dict[str, Any]:
    """Return the seconds until ready, the megabytes after the requests, and the number of different answers."""
    base = f"http://127.0.0.1:{(port := free_port())}"
    started = time.perf_counter()
    command = [sys.executable, "-m", "transferapp", "serve", str(bundle), "--port", str(port)]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        while get(f"{base}/readyz") is None:
            if server.poll() is not None:
                sys.exit(f"the service exited with {server.returncode}")
            time.sleep(0.01)
        ready = time.perf_counter() - started
        answers = {json.dumps(get(f"{base}/predict", image)["predictions"]) for _ in range(REQUESTS)}
        return {"seconds": ready, "megabytes": resident_megabytes(server.pid), "different_answers": len(answers)}
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("image", type=Path)
    parser.add_argument("--starts", type=int, default=5)
    arguments = parser.parse_args()
    image = arguments.image.read_bytes()
    starts = [one_start(arguments.bundle, image) for _ in range(arguments.starts)]
    summary = {
        "ready_seconds_median": statistics.median(start["seconds"] for start in starts),
        "megabytes_max": max(start["megabytes"] for start in starts),
        "different_answers": max(start["different_answers"] for start in starts),
    }
    print(json.dumps(summary, indent=2))
    write_results(RESULTS / "service_start.json", {"summary": summary, "starts": starts})


if __name__ == "__main__":
    main()
