"""The `execution` section of a pipeline file: what holds for each stage, its own settings over the default ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from infra.config_check import check, did_you_mean
from infra.errors import Problem
from infra.execution import Execution
from infra.yaml_source import Document, dotted


def executions(
    raw: Any, raw_stages: dict[str, Any], folder: Path, document: Document, problems: list[Problem]
) -> dict[str, Execution]:
    if not isinstance(raw, dict):
        return {}
    raw = {name: _with_config_file(settings, name, folder, document, problems) for name, settings in raw.items()}
    for name in raw:
        if name != "default" and name not in raw_stages:
            message = f"no such stage; {did_you_mean(name, ['default', *raw_stages])}"
            problems.append(Problem(document.place(("execution", name)), f"execution.{name}", message))
    default = {} if raw.get("default") is None else raw["default"]
    check(Execution, default, ("execution", "default"), document, problems)
    found = {}
    for name in raw_stages:
        own = {} if raw.get(name) is None else raw[name]
        if own != {} and check(Execution, own, ("execution", name), document, problems) is None:
            continue
        if isinstance(default, dict) and isinstance(own, dict):
            merged = check(Execution, _merged(default, own), ("execution", name), document, [])
            if merged is not None:
                found[name] = merged
    return found


def _with_config_file(settings: Any, name: str, folder: Path, document: Document, problems: list[Problem]) -> Any:
    """Settings whose `deepspeed` names a JSON file, with what that file holds instead."""
    if not isinstance(settings, dict) or not isinstance(settings.get("deepspeed"), str):
        return settings
    place, path = ("execution", name, "deepspeed"), settings["deepspeed"]
    try:
        content = json.loads((folder / Path(path).expanduser()).read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: `~nobody`, and brackets nested without end
        wrong = isinstance(error, ValueError | RecursionError)
        reason = f"not valid JSON ({error})" if wrong else getattr(error, "strerror", None) or str(error)
        problems.append(Problem(document.place(place), dotted(place), f"cannot read {path}: {reason}"))
        content = {}
    return {**settings, "deepspeed": content}


def _merged(default: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """`own` over `default`, nested mappings field by field."""
    both = {
        k: _merged(default[k], v) if isinstance(v, dict) and isinstance(default.get(k), dict) else v
        for k, v in own.items()
    }
    return {**default, **both}
