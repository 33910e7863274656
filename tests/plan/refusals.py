"""Which rules refuse a plan."""

from treadle.plan.ir import CompiledPlan
from treadle.plan.rules.subject import Subject
from treadle.plan.verify import RULES


def broken(compiled: CompiledPlan) -> set[str]:
    """The names of the rules that find something in one stage."""
    subject = Subject(compiled)
    return {rule.name for rule in RULES if next(rule.check(subject), None) is not None}
