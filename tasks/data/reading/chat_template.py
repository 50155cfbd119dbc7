"""Chat templates: Jinja that writes a conversation, out of pipeline files and models of other people.

They are compiled when the file is checked, in jinja2's sandbox, with what transformers offers them (`raise_exception`,
`tojson` without HTML, `{% break %}`, `{% generation %}`). Sizes that an expression names are bounded, so is the time of
a conversation and the length of what is written.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from infra.time_limit import TimeLimit

SECONDS = 10.0
"""For one conversation; a template needs some ten microseconds."""
LONGEST = 64 << 20
"""Characters that may be written."""
LARGEST = 10_000
"""Of a number that is given to a filter or a method: a width, an indent."""
WIDTH = re.compile(r"%[^a-zA-Z%]*(\d{5}|\*)")

Messages = Sequence[Mapping[str, Any]]


def check_chat_template(template: str) -> None:
    """Raises ValueError, with the line, where it is none, or does not read `messages`."""
    from jinja2 import TemplateError, TemplateSyntaxError, meta

    environment = _environment()
    try:
        environment.from_string(template)
        names = meta.find_undeclared_variables(environment.parse(template))
    except TemplateSyntaxError as error:
        raise ValueError(f"`chat_template` is no Jinja template: line {error.lineno}: {error.message}") from error
    except (TemplateError, RecursionError, SyntaxError, ValueError, OverflowError) as error:
        raise ValueError(f"`chat_template` cannot be compiled: {error or type(error).__name__}") from error
    if "messages" not in names:
        raise ValueError("`chat_template` never reads `messages`, so it would write the same of every conversation")


def chat_renderer(template: str) -> Callable[[Messages], str]:
    """Writes a conversation. Whatever the template does with it can be raised, TookTooLong and MemoryError included."""
    made = _environment().from_string(template)
    limit = TimeLimit("the chat template", seconds=SECONDS, where="chat_template")

    def render(messages: Messages) -> str:
        pieces, size = [], 0
        for piece in made.generate(messages=messages):
            pieces.append(piece)
            size += len(piece)
            if size > LONGEST:
                raise OverflowError(f"it writes more than {LONGEST >> 20} million characters")
        return "".join(pieces)

    return lambda messages: limit(lambda: render(messages))


@functools.cache
def _environment() -> Any:
    from jinja2 import TemplateError, nodes
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}`, which marks what the assistant says, and writes what stands in it."""

        tags = {"generation"}

        def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    class Bounded(ImmutableSandboxedEnvironment):
        """The sandbox, in which no number makes a text long."""

        intercepted_binops = frozenset({"*", "**", "%"})

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            if operator == "**" and isinstance(left, int) and abs(right) * max(left.bit_length(), 1) > LARGEST:
                raise SecurityError("a power that is too large")
            if operator == "%" and isinstance(left, str) and WIDTH.search(left):
                raise SecurityError("a width that is too large")
            if operator == "*":
                sizes = [len(part) if hasattr(part, "__len__") else part for part in (left, right)]
                longer = any(hasattr(part, "__len__") for part in (left, right))
                if longer and sizes[0] * sizes[1] > LONGEST:
                    raise SecurityError("a repetition that is too long")
            return super().call_binop(context, operator, left, right)

        def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
            if __obj is not __self.globals["range"]:
                _bounded(args, kwargs)
            return super().call(__context, __obj, *args, **kwargs)

        def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
            if isinstance(obj, str) and attr in ("format", "format_map"):
                return False
            return super().is_safe_attribute(obj, attr, value)

    def _bounded(args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        if any(isinstance(value, int) and abs(value) > LARGEST for value in (*args, *kwargs.values())):
            raise SecurityError(f"a number above {LARGEST:,} is given to a filter or a method")

    def bounded(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def called(*args: Any, **kwargs: Any) -> Any:
            _bounded(args, kwargs)
            return function(*args, **kwargs)

        return called

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    environment = Bounded(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation])
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, **{"ensure_ascii": False, **options})
    environment.filters = {name: bounded(function) for name, function in environment.filters.items()}
    environment.filters.pop("format")
    environment.globals["raise_exception"] = raise_exception
    return environment
