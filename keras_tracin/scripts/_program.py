"""A command-line program: parses flags, works, and reports errors in a line.

Each program defines its own flags rather than absl's global ones, so that it
refuses unknown flags and several programs can run in one process.

Synopsis:

    def main(argv=None):
        return program("score", __doc__, define, work).main(argv)
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
import warnings
from collections.abc import Callable, Sequence

import tensorflow as tf
from absl import flags

from keras_tracin import scripts
from keras_tracin.models.errors import brief
from keras_tracin.scripts._broken_images import broken_image

SUCCESS, FAILURE, MISUSE, INTERRUPTED = 0, 1, 2, 130

_DATA = ("data", "test_data")
_HELP = "Help"
_EXPECTED = (ValueError, TypeError, LookupError, OSError, ImportError)


class UsageError(ValueError):
    """Flags that are missing, unknown or contradict each other."""


class Note(UserWarning):
    """What a program says beside its result, on stderr."""


@dataclasses.dataclass(frozen=True)
class Program:
    """A program for the command line.

    Attributes:
        name: name of the program, as in `keras_tracin-NAME`.
        text: first paragraphs of `--help`.
        define: function that defines the flags.
        work: function that takes the parsed flags and returns the exit code.
    """

    name: str
    text: str
    define: Callable[[flags.FlagValues], None]
    work: Callable[[flags.FlagValues], int]

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Runs the program.

        Args:
            argv: arguments; by default those of the process.

        Returns:
            The exit code: that of `work`, or 2 after an error that the caller
            can fix, which is reported in one line on stderr. With `--debug`,
            and for any other error, a traceback is shown.
        """
        values = flags.FlagValues()
        self.define(values)
        _define_help(values)
        arguments = sys.argv[1:] if argv is None else argv
        try:
            self._parse(values, list(arguments))
        except _HelpAsked as asked:
            print(self._help(values, full=str(asked) == "helpfull"))
            return SUCCESS
        except (flags.Error, UsageError) as error:
            self._say("error", f"{error} (--help lists all flags)")
            return MISUSE
        try:
            with warnings.catch_warnings():
                warnings.showwarning = self._warn
                return self.work(values)
        except KeyboardInterrupt:
            self._say("error", "interrupted")
            return INTERRUPTED
        except _EXPECTED as error:
            if values.debug:
                raise
            self._say("error", brief(error) or type(error).__name__)
            return MISUSE
        except tf.errors.InvalidArgumentError:
            message = _broken_image(values)
            if values.debug or message is None:
                raise
            self._say("error", message)
            return MISUSE

    def _parse(self, values: flags.FlagValues, arguments: list[str]) -> None:
        positional = values([self.name, *arguments])[1:]
        if positional:
            raise UsageError(
                "Expected flags (--name=value) only. Received: "
                f"{positional[0]!r}."
            )

    def _warn(
        self, message, category, filename, lineno, file=None, line=None
    ) -> None:
        if issubclass(category, UserWarning):
            kind = "note" if issubclass(category, Note) else "warning"
            self._say(kind, str(message))

    def _say(self, kind: str, message: str) -> None:
        line = " ".join(message.split())
        print(f"keras_tracin-{self.name}: {kind}: {line}", file=sys.stderr)

    def _help(self, values: flags.FlagValues, full: bool) -> str:
        sections = list(values.flags_by_module_dict())
        if not full:
            sections = [name for name in sections if "absl" not in name]
        parts = [values.module_help(section) for section in sections]
        if full:
            parts += ["\nHow to write a task:\n", inspect.getdoc(scripts) or ""]
        return "\n".join([self.text.strip(), *parts])


class _HelpAsked(Exception):
    """Raised while parsing, at `--help` or `--helpfull`."""


class _HelpFlag(flags.BooleanFlag):
    """A flag that ends parsing, so that required flags may be missing."""

    def parse(self, argument) -> None:
        """Ends parsing where the flag is true."""
        if self._parse(argument):
            raise _HelpAsked(self.name)


def _define_help(values: flags.FlagValues) -> None:
    for name, text in (
        ("help", "Show this help."),
        (
            "helpfull",
            "Show this help, absl's logging flags, and how to write a task.",
        ),
    ):
        help_flag = _HelpFlag(name, False, text)
        flags.DEFINE_flag(help_flag, values, module_name=_HELP)
    flags.DEFINE_bool(
        "debug",
        False,
        "Show a traceback with every error.",
        flag_values=values,
        module_name=_HELP,
    )
    logging = flags.FLAGS.flags_by_module_dict().get("absl.logging", [])
    for flag in logging:
        flags.DEFINE_flag(flag, values, module_name="absl.logging")


def _broken_image(values: flags.FlagValues) -> str | None:
    """Says which image of the folders of data cannot be read."""
    for name in _DATA:
        folder = values[name].value if name in values else None
        message = folder and broken_image(name, folder)
        if message:
            return message
    return None
