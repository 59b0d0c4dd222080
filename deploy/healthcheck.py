#!/usr/bin/env python3
"""Checks that the container's process serves its metrics: `chainette-healthcheck PORT`; exit code 0 or 1.

A worker that waits for Redis is healthy: ending it would throw its loaded engine away. Alerts report problems of the fleet.
"""

import sys
import urllib.request

try:
    with urllib.request.urlopen(f"http://127.0.0.1:{int(sys.argv[1])}/metrics", timeout=4) as answer:
        well = b"chainette_build_info" in answer.read()
except OSError as error:
    sys.exit(f"no metrics: {error}")
sys.exit(None if well else "the server at that address is not Chainette")
