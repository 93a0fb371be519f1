"""What the kit found."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Failure:
    """One promise that a task does not keep.

    Attributes:
        rule: Name of the promise.
        what: What is wrong: expected, got.
        where: At which decision, row or piece it showed first.
        remedy: What to do.
    """

    rule: str
    what: str
    where: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.what} [{self.where}]. {self.remedy}"


@dataclass(frozen=True)
class Report:
    """What was checked.

    Attributes:
        task: The task's name.
        passed: Rules that hold.
        skipped: Rules that were not checked, and why.
        failures: In the order of the rules, the more basic first: mend the first first.
    """

    task: str
    passed: Sequence[str] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)
    failures: Sequence[Failure] = ()

    def __str__(self) -> str:
        lines = [f"task {self.task}: {len(self.failures) or 'no'} failing, {len(self.passed)} rules hold"]
        lines += [f"  {number}. {failure}" for number, failure in enumerate(self.failures, 1)]
        return "\n".join(lines + [f"  not checked: {rule}: {why}" for rule, why in self.skipped.items()])


class TaskError(AssertionError):
    """A task does not keep its promises.

    Attributes:
        report: What was found.
    """

    def __init__(self, report: Report):
        super().__init__(str(report))
        self.report = report


class SkippedRuleWarning(UserWarning):
    """A rule was not checked."""
