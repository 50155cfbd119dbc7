"""The parser of the command line: what it does not know, it names with the nearest word it does know."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from infra.terminal import one_line

INVALID_CHOICE = re.compile(r"argument .*: invalid choice: (?P<word>.*?) \(choose from .*\)", re.DOTALL)


class Parser(argparse.ArgumentParser):
    """argparse's, with errors in one sentence and a guess at what was meant; options are written in full."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given, allow_abbrev=False)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """As argparse; unknown options are compared with those of the command that was given."""
        found, unknown = self.parse_known_args(args, namespace)
        if not unknown and not hasattr(found, "command"):
            self.error(f"which command? They are {', '.join(self.commands())}")
        if not unknown:
            return found
        parser: Parser = getattr(found, "parser", self)
        option = next((word for word in unknown if word.startswith("-")), None)
        if option is None:
            parser.error(f"{' '.join(unknown)!r} is more than `{parser.prog}` takes")
        parser.error(f"unknown option {option.partition('=')[0]!r}; {_nearest(option, parser.options())}")

    def options(self) -> list[str]:
        """Its options, as they are written."""
        return [option for action in self._actions for option in action.option_strings]

    def commands(self) -> list[str]:
        """The commands it has."""
        among = [action for action in self._actions if isinstance(action, argparse._SubParsersAction)]
        return [name for action in among for name in action.choices]

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, in one line and without the usage, and exit with 2."""
        if (found := INVALID_CHOICE.fullmatch(message)) and (commands := self.commands()):
            word = found["word"].strip("'\"")
            if word.endswith((".yaml", ".yml")):
                message = f"{word!r} is no command; write {self.prog} run {word}"
            else:
                message = f"unknown command {word!r}; {_nearest(word, commands)}"
        self.exit(2, f"forgeline: {one_line(message)}\n  See {self.prog} --help.\n")


class ShowVersion(argparse.Action):
    """`--version`: Forgeline's, and that of the Python it runs on."""

    def __init__(self, option_strings: Sequence[str], dest: str, **given: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help="print the version and exit")

    def __call__(self, parser: argparse.ArgumentParser, *given: Any) -> NoReturn:
        from importlib.metadata import version

        sys.stdout.write(f"forgeline {version('forgeline')} (Python {sys.version.split()[0]})\n")
        parser.exit(0)


def _nearest(word: str, known: Sequence[str]) -> str:
    from infra.config_check import did_you_mean

    return did_you_mean(word.partition("=")[0], known)
