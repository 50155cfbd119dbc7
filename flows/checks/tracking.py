"""The check of Weights & Biases: where metrics would go, and whether that answers."""

from __future__ import annotations

from collections.abc import Mapping

from flows.checks.check import Check, Finding
from infra.tracking import TrackingSettings
from infra.wandb_replay import PROBE_SECONDS, reachable

CLOUD = "https://api.wandb.ai"


def checks(environ: Mapping[str, str]) -> list[Check]:
    return [Check("W&B", lambda: wandb(environ), seconds=4 * PROBE_SECONDS, overdue="warning")]


def wandb(environ: Mapping[str, str]) -> Finding:
    """How `tracking: {mode: auto}` ends here. No run depends on it, so nothing of it is a fault."""
    mode = TrackingSettings().resolved_mode(environ)
    if mode == "disabled":
        return Finding("ok", f"switched off ({'WANDB_DISABLED' if environ.get('WANDB_DISABLED') else 'WANDB_MODE'})")
    if mode == "offline":
        why = f"WANDB_MODE={environ['WANDB_MODE']}" if environ.get("WANDB_MODE") else "WANDB_API_KEY is not set"
        return Finding("ok", f"offline ({why}): metrics go to folders for `wandb sync`")
    if not environ.get("WANDB_API_KEY"):
        return Finding(
            "warning", "WANDB_MODE is online, but WANDB_API_KEY is not set", "Set it, or WANDB_MODE=offline."
        )
    url = environ.get("WANDB_BASE_URL") or CLOUD
    if not reachable(url):
        mend = "Check the network and WANDB_BASE_URL. Until then runs are kept offline, for `wandb sync`."
        return Finding("warning", f"{url} does not answer within {PROBE_SECONDS:.0f} s", mend)
    return Finding("ok", f"{url} answers, a key is set")
