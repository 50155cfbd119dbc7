"""What commands share: how one is added to the parser, and how its arguments become a pipeline or a store."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.errors import without_credentials
from infra.terminal import printable

if TYPE_CHECKING:
    from flows.search import Load
    from infra.store import Store
    from tasks.pipeline.dag import Pipeline

VERIFY_HELP = "read every source file, whether or not its size and time say that it changed"


class Commands:
    """Commands are added to it."""

    def __init__(self, among: Any) -> None:
        self._among = among

    def add(
        self,
        name: str,
        function: Callable[[argparse.Namespace], int],
        text: str,
        *,
        file: bool = False,
        store: bool = False,
    ) -> argparse.ArgumentParser:
        """A command. file: it takes a pipeline file, `--set` and `--store`; store: only `--store`."""
        sub: argparse.ArgumentParser = self._among.add_parser(name, help=text, description=text)
        sub.set_defaults(command=function, parser=sub)
        if file:
            sub.add_argument("file", type=Path, help="pipeline file (YAML)")
            sub.add_argument(
                "--set", action="append", default=[], metavar="PATH=VALUE", dest="overrides",
                help="override a field, e.g. stages.base.learning_rate=1e-4; may be repeated",
            )  # fmt: skip
        if file or store:
            sub.add_argument("--store", help="folder or s3://bucket/prefix; default: the file's, or .forgeline/store")
        return sub

    def group(
        self, name: str, text: str, metavar: str, alone: Callable[[argparse.Namespace], int]
    ) -> tuple[argparse.ArgumentParser, Commands]:
        """A command that has commands, and those. alone: what it does without one of them."""
        sub: argparse.ArgumentParser = self._among.add_parser(name, help=text, description=text)
        sub.set_defaults(command=alone, parser=sub)
        return sub, Commands(sub.add_subparsers(metavar=metavar))


def port(text: str) -> int:
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: use a number from 1 to 65535")
    return int(text)


def count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of processes: use 1 or more")
    return int(text)


def load(arguments: argparse.Namespace) -> Pipeline:
    """The pipeline a command was given, with the trials of its searches that are known."""
    from flows.search import with_known_trials

    return with_known_trials(loader(arguments))


def loader(arguments: argparse.Namespace) -> Load:
    from tasks.pipeline.load import load_pipeline

    return lambda results: load_pipeline(arguments.file, arguments.overrides, arguments.store, results)


def store_of(arguments: argparse.Namespace) -> Store:
    """The store of a command without a pipeline file. One that the command did not name is printed, on stderr."""
    from infra.open_store import open_store
    from tasks.pipeline.dag import default_store, default_store_is

    url = arguments.store or default_store()
    if not arguments.store:
        say(f"store: {without_credentials(url)}, {default_store_is()}; --store names another")
    return open_store(url)


def say(text: str) -> None:
    """Progress and errors, to stderr."""
    print(printable(text), file=sys.stderr, flush=True)
