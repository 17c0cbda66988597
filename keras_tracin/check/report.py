"""What a preflight found, as an object and as text."""

from __future__ import annotations

import dataclasses
import textwrap

from keras_tracin.engine.planning import Plan

_WIDTH = 78
SEVERITIES = ("error", "warning", "note")


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing worth knowing before the work begins.

    Attributes:
        severity: "error", scoring will be refused or wrong; "warning", it
            will work, but perhaps not as meant; or "note".
        topic: "model", "loss", "train", "test", "run" or "job".
        message: what was found, and what to do about it.
    """

    severity: str
    topic: str
    message: str


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """How the gradients of one layer are made.

    Attributes:
        name: the layer's path in the model.
        kind: its class.
        method: "rule", from factors, or "fallback", exact but slower: from
            the layer alone, one example at a time.
        parameters: how many numbers it trains.
    """

    name: str
    kind: str
    method: str
    parameters: int


@dataclasses.dataclass(frozen=True)
class CheckReport:
    """The result of `kt.check`; print it.

    Attributes:
        layers: those whose gradients are covered.
        parameters: how many numbers these train.
        left_out: how many of the model's other numbers there are, by reason.
        findings: errors first, then warnings, then notes.
        plan: what the job will do, and the memory and time it needs here; None
            where errors are in the way.
    """

    layers: tuple[LayerReport, ...]
    left_out: dict[str, int]
    findings: tuple[Finding, ...]
    plan: Plan | None

    @property
    def seconds(self) -> float | None:
        """The plan's time; None where the size of the data is not known."""
        return None if self.plan is None else self.plan.seconds

    @property
    def ok(self) -> bool:
        """Whether there is no error."""
        return not self.errors

    @property
    def parameters(self) -> int:
        """How many numbers the gradients cover."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that are in the way."""
        return self._of("error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """The findings to think about."""
        return self._of("warning")

    @property
    def notes(self) -> tuple[Finding, ...]:
        """The findings that only tell."""
        return self._of("note")

    def _of(self, severity: str) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.severity == severity)

    def __str__(self) -> str:
        parts = [_layers_table(self), *map(_entry, self.findings)]
        if self.plan is not None:
            job = f"job: {self.plan}"
            parts.append(textwrap.fill(job, _WIDTH, subsequent_indent="  "))
        counts = [
            f"{len(found)} {severity}{'s' * (len(found) != 1)}"
            for severity in SEVERITIES
            if (found := self._of(severity))
        ]
        verdict = "ready" if self.ok else "not ready"
        summary = ", ".join(counts) or "nothing to say"
        return "\n".join([*filter(None, parts), f"{verdict}: {summary}"])


def _layers_table(report: CheckReport) -> str:
    if not report.layers:
        return ""
    rows = [
        (f"{layer.name} ({layer.kind})", f"{layer.parameters:,}", layer.method)
        for layer in report.layers
    ]
    rows.append(("covered", f"{report.parameters:,}", ""))
    rows += [
        (reason, f"{count:,}", "left out")
        for reason, count in report.left_out.items()
    ]
    name, number = (max(len(row[i]) for row in rows) for i in (0, 1))
    lines = [
        f"{first:<{name}}  {second:>{number}}  {third}".rstrip()
        for first, second, third in rows
    ]
    return "\n".join(lines)


def _entry(finding: Finding) -> str:
    return textwrap.fill(
        f"{finding.severity}, {finding.topic}: {finding.message}",
        _WIDTH,
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
