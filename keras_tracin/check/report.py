"""The result of a preflight, as an object and as text."""

from __future__ import annotations

import dataclasses
import re
import textwrap

from keras_tracin.engine.planning import Plan, in_words

_WIDTH = 78
_MOST_NAMED = 5  # layers
# Remedies are sentences that begin with what to do.
_REMEDY = re.compile(
    r"(?<=[.)`])\s+(?=(?:Attach|Build|Call|Check|Choose|Compile|Convert|Copy|"
    r"Correct|Delete|Give|Install|Keep|Leave|Let|Load|Look|Make|Name|Pass|Put|"
    r"Reduce|Remove|Rename|Record|Restore|Return|Save|Select|Set|Switch|Take|"
    r"Train|Turn|Undo|Unless|Use|Wait|Write)\b)"
)
# Paths and numbers, in which messages about several checkpoints differ.
_PARTICULARS = re.compile(r"\S*[/\\]\S+|\d[\d.e+-]*")
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

    @property
    def remedy(self) -> str:
        """The sentences of the message that say what to do, or ""."""
        return self.message[self._end_of_fault() :].strip()

    @property
    def fault(self) -> str:
        """The sentences of the message before its remedy."""
        return self.message[: self._end_of_fault()].strip()

    def _end_of_fault(self) -> int:
        starts = [
            match.end()
            for match in _REMEDY.finditer(self.message)
            if match.start()
        ]
        return starts[0] if starts else len(self.message)


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
        parts = [_cost(self), _coverage(self)]
        parts += _paragraphs(self.findings)
        counts = [
            f"{len(selected)} {severity}{'s' * (len(selected) != 1)}"
            for severity in SEVERITIES
            if (selected := self._with_severity(severity))
        ]
        verdict = "ready" if self.ok else "not ready"
        summary = ", ".join(counts) or "no findings"
        return "\n".join([*filter(None, parts), f"{verdict}: {summary}"])


def _cost(report: CheckReport) -> str:
    """What the job needs, the time first."""
    plan = report.plan
    if plan is None:
        return "" if report.ok else "cost: not known before errors are fixed"
    time = "time unknown, as the number of examples is"
    if plan.seconds is not None:
        time = in_words(plan.seconds)
    call = "top_k" if plan.num_queries else "self_influence"
    return _fill(f"cost of TracIn.{call}: {time}, {plan.space}") + (
        f"\n{_fill(f'  for {plan.work}')}"
    )


def _coverage(report: CheckReport) -> str:
    """Which parameters gradients cover, and which layers are slow."""
    if not report.layers:
        return ""
    count = len(report.layers)
    text = (
        f"covered: {report.parameters:,} parameters in {count} "
        f"layer{'s' * (count != 1)}"
    )
    if report.left_out:
        reasons = [f"{n:,} {reason}" for reason, n in report.left_out.items()]
        text += f"; left out: {', '.join(reasons)}"
    slow = [
        f"{layer.name} ({layer.kind})"
        for layer in report.layers
        if layer.method == "fallback"
    ]
    if slow:
        more = len(slow) - _MOST_NAMED
        named = ", ".join(slow[:_MOST_NAMED]) + f" and {more} more" * (more > 0)
        text += f"; exact but slower, without a rule: {named}"
    return _fill(text)


def _paragraphs(findings: tuple[Finding, ...]) -> list[str]:
    """A paragraph for each finding, or for several that are alike."""
    alike: dict[tuple[str, str, str], list[Finding]] = {}
    for finding in findings:
        general = _PARTICULARS.sub("", finding.message)
        key = finding.severity, finding.topic, general
        alike.setdefault(key, []).append(finding)
    return [_paragraph(first, len(more)) for first, *more in alike.values()]


def _paragraph(finding: Finding, num_more: int = 0) -> str:
    """The fault of a finding, and below it what to do."""
    text = f"{finding.severity}, {finding.topic}: {finding.fault}"
    if num_more:
        text += f" And {num_more} more like this."
    lines = [_fill(text)]
    if finding.remedy:
        lines.append(_fill(f"  fix: {finding.remedy}", indent="    "))
    return "\n".join(lines)


def _fill(text: str, indent: str = "  ") -> str:
    return textwrap.fill(
        text,
        _WIDTH,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
