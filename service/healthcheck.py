"""Readiness check for containers: `python -m service.healthcheck` exits with 0 if the service is ready, else with 1.

The address comes from the same environment variables as the service's own. Only the standard library is imported: the check
runs every few seconds beside a service that needs the processor.
"""

from __future__ import annotations

import os
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping

_LOCAL = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - read, not listened on
_SECONDS = 2.0


def ready_url(environment: Mapping[str, str]) -> str:
    """Return the service's address on this machine by its own settings."""
    host = environment.get("TRANSFERAPP_HOST", "127.0.0.1")
    host = _LOCAL.get(host, host)
    port = environment.get("TRANSFERAPP_PORT", "8000")
    if "://" in port:  # set by Kubernetes; the service ignores it, too (`settings.is_service_link`)
        port = "8000"
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/readyz"


def main() -> int:
    """Ask once; print a failure on stderr."""
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
