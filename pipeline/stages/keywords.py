"""Options of the command line as the keywords of a function."""

from __future__ import annotations

import functools
import inspect
import numbers
import os
import textwrap
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ParamSpec, TypeVar, cast

import click

from pipeline.errors import OptionError, near_names
from pipeline.stages.options import Options, add_options

P = ParamSpec("P")
R = TypeVar("R")

_NUMBERS = (click.types.IntParamType, click.types.FloatParamType)


def takes_options(options: Options) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator: the function takes options as keywords, and gets a value for each of them.

    Its signature and its docstring then list them. Values are checked as those of the command line are.

    Parameters
    ----------
    options : Options
        Of `pipeline.stages.options`. The function takes them as ``**options``.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        keywords = Keywords(function.__name__, options)
        own = [
            parameter
            for parameter in inspect.signature(function).parameters.values()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        names = {parameter.name for parameter in own}

        @functools.wraps(function)
        def call(*args: Any, **given: Any) -> R:
            keywords.check_names(given, names)
            values = keywords.read({name: value for name, value in given.items() if name not in names})
            own_values = {name: value for name, value in given.items() if name in names}
            return function(*args, **own_values, **values)

        signature = inspect.signature(function).replace(parameters=[*own, *keywords.parameters()])
        call.__signature__ = signature  # type: ignore[attr-defined]
        call.__doc__ = f"{inspect.cleandoc(function.__doc__ or '')}\n\n{keywords.described()}"
        return cast("Callable[P, R]", call)

    return decorate


class Keywords:
    """The keywords of a function.

    Parameters
    ----------
    function : str
        Its name, for messages.
    options : Options
    """

    def __init__(self, function: str, options: Options) -> None:
        command = click.command(function)(add_options(options)(lambda: None))
        self._function = function
        self._context = command.make_context(function, [])
        self._options = {option.name: option for option in command.params if isinstance(option, click.Option)}

    @property
    def defaults(self) -> dict[str, Any]:
        """The values of keywords that are not given."""
        return {name: self._context.params[name] for name in self._options}

    def read(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values of all options; None stands for the default.

        Raises
        ------
        OptionError
            An option does not take the value.
        """
        found = {name: self._value(self._options[name], value) for name, value in given.items() if value is not None}
        return self.defaults | found

    def check_names(self, given: Iterable[str], others: Iterable[str]) -> None:
        """Refuse a keyword that the function does not have.

        Raises
        ------
        OptionError
            The message names those it has.
        """
        known = [*others, *self._options]
        for name in given:
            if name not in known:
                near = near_names(name, known)
                hint = f"{near} " if near.startswith("did") else ""
                raise OptionError(
                    f"{self._function}() has no keyword {name!r}: {hint}It takes {', '.join(self._options)}"
                )

    def parameters(self) -> list[inspect.Parameter]:
        """Return the keywords with their defaults, for a signature."""
        return [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)
            for name, default in self.defaults.items()
        ]

    def described(self) -> str:
        """Return the keywords and their help, as a section of a docstring."""
        lines = ["Other Parameters", "----------------"]
        for name, option in self._options.items():
            several = "one or several, " if option.multiple else ""
            negated = "False: " if option.opts[0].startswith("--no-") else ""  # the help is about --no-x
            text = textwrap.wrap(negated + (option.help or ""), 110, initial_indent="    ", subsequent_indent="    ")
            lines += [f"{name} : {several}default {self.defaults[name]!r}", *text]
        return "\n".join(lines)

    def _value(self, option: click.Option, value: Any) -> Any:
        may_stand_alone = isinstance(option.flag_value, str)  # True is the option without a value of its own
        if may_stand_alone and isinstance(value, bool):
            if not value:
                return self.defaults[str(option.name)]
            value = option.flag_value
        values: Any = _as_several(value) if option.multiple else value
        try:
            for each in values if option.multiple else (values,):
                _check_kind(option, each)
            return option.type_cast_value(self._context, values)
        except click.BadParameter as error:
            raise OptionError(f"{self._function}({option.name}=…): {error.message.rstrip('.')}") from None


def _as_several(value: Any) -> tuple[Any, ...]:
    """Return the values of an option that may be repeated: one alone, several, or names with their values."""
    if isinstance(value, Mapping):
        return tuple(value.items())
    if isinstance(value, (str, os.PathLike)) or not isinstance(value, Iterable):
        return (value,)
    return tuple(value)


def _check_kind(option: click.Option, value: Any) -> None:
    """Refuse what click would turn into another value, such as 2.5 into 2.

    Raises
    ------
    click.BadParameter
        It would.
    """
    if option.type is click.STRING and not isinstance(value, (str, os.PathLike)):
        raise click.BadParameter(f"expected text, got {type(value).__name__}")
    is_bool = isinstance(value, bool)
    if not isinstance(value, numbers.Real) or not isinstance(option.type, _NUMBERS):
        return
    number, whole = float(value), isinstance(option.type, click.types.IntParamType)
    if is_bool or (whole and not number.is_integer()):
        raise click.BadParameter(f"expected a {'whole ' if whole else ''}number, got {value!r}")
