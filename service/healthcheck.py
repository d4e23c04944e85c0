"""Asks the service on this machine whether it is ready: `python -m service.healthcheck`, exit code 0 or 1.

For a container's health check. It finds the address where the service itself does, in the environment, and imports
nothing but the standard library, since it runs every few seconds beside a service that needs the processor.
"""

from __future__ import annotations

import os
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping

_EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - read, not listened on
_SECONDS = 2.0


def ready_url(environment: Mapping[str, str]) -> str:
    """Where the service answers from this machine, by the settings that it reads itself."""
    host = environment.get("TRANSFERAPP_HOST", "127.0.0.1")
    host = _EVERY_ADDRESS.get(host, host)
    port = environment.get("TRANSFERAPP_PORT", "8000")
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/readyz"


def main() -> int:
    """Ask once; say on stderr what is wrong, if anything is."""
    url = ready_url(os.environ)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy would ask its own machine
    try:
        with opener.open(url, timeout=_SECONDS):
            return 0
    except urllib.error.HTTPError as error:
        reason = error.read(2000).decode("utf-8", "replace")
    except (OSError, ValueError) as error:
        reason = str(error)
    sys.stderr.write(f"{url}: {reason}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
