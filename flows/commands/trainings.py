"""`forgeline doctor resume` and `forgeline checkpoint`: commands on a training stage of a pipeline file."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from flows.commands.parsing import Commands, load, say


def add(commands: Commands) -> None:
    sub = commands.add(
        "checkpoint", checkpoint, "list what a training run has saved, or write its weights to a folder", file=True
    )
    sub.add_argument("stage", help="stage name, e.g. base")
    sub.add_argument("--step", type=int, help="which checkpoint (default: the newest)")
    sub.add_argument("--to", type=Path, metavar="FOLDER", help="write config.json and model.safetensors there")


def add_checks(checks: Commands) -> None:
    text = "train a few steps, kill the training, resume it, compare with an undisturbed one"
    sub = checks.add("resume", doctor_resume, text, file=True)
    sub.add_argument("--stage", help="stage to try (default: every stage that trains and whose inputs are made)")
    sub.add_argument("--steps", type=int, default=20, help="steps to train (default: 20)")
    sub.add_argument("--json", action="store_true", help="machine-readable proof on stdout")


def doctor_resume(arguments: argparse.Namespace) -> int:
    from flows.doctor import diagnose_resume

    found = diagnose_resume(load(arguments), arguments.stage, arguments.steps, say)
    print(json.dumps(found.to_json(), indent=2) if arguments.json else found)
    return 0 if found.holds else 3


def checkpoint(arguments: argparse.Namespace) -> int:
    from flows.checkpoints import checkpoints_of, describe, export

    found = checkpoints_of(load(arguments), arguments.stage)
    print(export(found, arguments.step, arguments.to) if arguments.to else describe(found))
    return 0
