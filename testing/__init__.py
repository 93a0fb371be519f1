"""A conformance kit: does a task of one's own keep the promises that environments, learners and controllers rely on?

`check_task(MyTask(backbone))` says so, as `gymnasium.utils.env_checker.check_env` does for environments.
"""

from .check import RULES, check_task
from .report import Failure, Report, SkippedRuleWarning, TaskError

__all__ = ["RULES", "Failure", "Report", "SkippedRuleWarning", "TaskError", "check_task"]
