"""The result of a preflight, as an object and as text."""

from __future__ import annotations

import dataclasses
import textwrap

from keras_tracin.engine.planning import Plan

_WIDTH = 78
SEVERITIES = ("error", "warning", "note")


@dataclasses.dataclass(frozen=True)
class Finding:
    """An error, a warning or a note of a preflight.

    Attributes:
        severity: "error" if scoring will be refused or wrong, "warning" if it
            may not do what was intended, or "note".
        topic: "model", "loss", "train", "test", "run" or "job".
        message: the fault and its remedy, or the information.
    """

    severity: str
    topic: str
    message: str


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """How gradients of one layer are computed.

    Attributes:
        name: path of the layer in the model.
        kind: name of its class.
        method: "rule" if gradients are computed as factors; "fallback" if
            they are computed from the layer alone, one example at a time,
            which is exact but slower.
        parameters: number of trainable parameters that are covered.
    """

    name: str
    kind: str
    method: str
    parameters: int


@dataclasses.dataclass(frozen=True)
class CheckReport:
    """The result of `kt.check`; print it.

    Attributes:
        layers: the layers whose gradients are covered.
        parameters: number of parameters of these layers.
        left_out: number of the model's other parameters, by reason.
        findings: errors first, then warnings, then notes.
        plan: passes, memory and time that the job needs on this machine; None
            if errors prevent a plan.
    """

    layers: tuple[LayerReport, ...]
    left_out: dict[str, int]
    findings: tuple[Finding, ...]
    plan: Plan | None

    @property
    def seconds(self) -> float | None:
        """Seconds that the plan estimates; None without an estimate."""
        return None if self.plan is None else self.plan.seconds

    @property
    def ok(self) -> bool:
        """Whether there is no error."""
        return not self.errors

    @property
    def parameters(self) -> int:
        """Number of parameters that the gradients cover."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Findings because of which scoring will be refused or wrong."""
        return self._with_severity("error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """Findings because of which scores may not be what was intended."""
        return self._with_severity("warning")

    @property
    def notes(self) -> tuple[Finding, ...]:
        """Findings for information."""
        return self._with_severity("note")

    def _with_severity(self, severity: str) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.severity == severity)

    def __str__(self) -> str:
        parts = [_layers_table(self), *map(_paragraph, self.findings)]
        if self.plan is not None:
            job = f"job: {self.plan}"
            parts.append(textwrap.fill(job, _WIDTH, subsequent_indent="  "))
        counts = [
            f"{len(selected)} {severity}{'s' * (len(selected) != 1)}"
            for severity in SEVERITIES
            if (selected := self._with_severity(severity))
        ]
        verdict = "ready" if self.ok else "not ready"
        summary = ", ".join(counts) or "no findings"
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


def _paragraph(finding: Finding) -> str:
    return textwrap.fill(
        f"{finding.severity}, {finding.topic}: {finding.message}",
        _WIDTH,
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
