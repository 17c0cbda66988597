"""What every program does: parse its flags, work, and fail in one line.

Each program has flags of its own, not those of the process, so that it refuses
what it does not know, and several live in one process.

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

from absl import flags

from keras_tracin import scripts
from keras_tracin.models.errors import brief

SUCCESS, FAILURE, MISUSE, INTERRUPTED = 0, 1, 2, 130

_HELP = "Help"
_EXPECTED = (ValueError, TypeError, LookupError, OSError, ImportError)


class UsageError(ValueError):
    """Flags that do not go together."""


@dataclasses.dataclass(frozen=True)
class Program:
    """A program for the command line.

    Attributes:
        name: as in `keras_tracin-name`.
        text: what `--help` begins with.
        define: defines its flags, section by section.
        work: takes the parsed flags and returns the exit code.
    """

    name: str
    text: str
    define: Callable[[flags.FlagValues], None]
    work: Callable[[flags.FlagValues], int]

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Runs it with arguments, those of the process by default.

        Returns:
            The exit code: that of `work`, or 2 after an error that is the
            caller's to mend, which is one line on stderr. With `--debug`, and
            for any other error, there is a traceback.
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
            self._say("error", f"{error} (--help tells of all flags)")
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

    def _parse(self, values: flags.FlagValues, arguments: list[str]) -> None:
        rest = values([self.name, *arguments])[1:]
        if rest:
            raise UsageError(
                f"Only flags (--name=value) are taken. Received: {rest[0]!r}."
            )

    def _warn(
        self, message, category, filename, lineno, file=None, line=None
    ) -> None:
        if issubclass(category, UserWarning):
            self._say("warning", str(message))

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
    """Parsing has come upon `--help` or `--helpfull`."""


class _HelpFlag(flags.BooleanFlag):
    """Ends parsing, so that nothing else has to be there."""

    def parse(self, argument) -> None:
        """Called for a flag that is given."""
        if self._parse(argument):
            raise _HelpAsked(self.name)


def _define_help(values: flags.FlagValues) -> None:
    for name, text in (
        ("help", "Show this."),
        (
            "helpfull",
            "Show this, absl's flags for logging, and how to write a task.",
        ),
    ):
        helps = _HelpFlag(name, False, text)
        flags.DEFINE_flag(helps, values, module_name=_HELP)
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
