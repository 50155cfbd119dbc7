"""Whether a Prefect server answers, asked without Prefect, whose import takes seconds."""

from __future__ import annotations

import base64
import os
import urllib.error
import urllib.request


def answers(url: str) -> bool:
    """Whether a GET of a URL on this machine succeeds. PREFECT_API_AUTH_STRING is the login, where it is set."""
    asked = urllib.request.Request(url)  # noqa: S310 - of our own making
    if login := os.environ.get("PREFECT_API_AUTH_STRING"):
        asked.add_header("Authorization", f"Basic {base64.b64encode(login.encode()).decode()}")
    try:
        with urllib.request.urlopen(asked, timeout=3.0):  # noqa: S310
            return True
    except (OSError, urllib.error.URLError):
        return False
