"""What an ablation decides: claims as plain data, with their comparisons and the conclusions from these.

A claim is written beside the tasks and variants that it names, in the ablation's config.
`flaxformer_lab/report/claims.py` derives the verdicts.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Literal

from flaxformer_lab.errors import ConfigError
from flaxformer_lab.parsing import NOT_EMPTY, Name, Rule, nearest

BASELINE = "baseline"  # the variant that is the unchanged recipe
Verdict = Literal["supported", "refuted", "supported only when", "undecided"]
# What is measured on each replica beside its metrics (`Population` measures it).
Measure = Literal[
    "cross_feature_energy",
    "cross_token_energy",
    "token_equivariance_error",
    "feature_equivariance_error",
    "attention_entropy",
    "head_diversity",
    "object_attention",
    "object_attention_untrained",
    "object_saliency",
    "object_saliency_untrained",
]
Text = Annotated[Name, Rule("must be printable", str.isprintable)]


@dataclass(frozen=True)
class Quantity:
    """A value for each seed: the test score of a variant on a task, or one of its measures.

    also: more tasks, of which one alone is too small to tell; the value is the mean over all.
    """

    task: Text
    variant: Text = BASELINE
    measure: Measure | None = None
    also: tuple[Text, ...] = ()

    def __str__(self) -> str:
        return f"{self.measure or 'score'} of {self.variant} on {' and '.join((self.task, *self.also))}"

    @property
    def parts(self) -> tuple["Quantity", ...]:
        """Its value on each task alone."""
        return tuple(dataclasses.replace(self, task=task, also=()) for task in (self.task, *self.also))


@dataclass(frozen=True)
class Comparison:
    """Is `more` above `less` (or above 0, without it) by more than `threshold`? name: for the conclusions.

    within: ask instead whether they differ by less than `threshold`, as every "as good as" must (two one-sided tests).
    because: why the threshold is what it is.
    """

    name: Text
    question: Text
    more: Quantity
    less: Quantity | None = None
    threshold: float = 0.0
    within: bool = False
    because: Text | None = None

    @property
    def parts(self) -> tuple[Quantity, ...]:
        """What is compared, task by task."""
        return self.more.parts + (() if self.less is None else self.less.parts)

    def rules(self) -> None:
        """Raises ConfigError where no difference could be within the threshold."""
        if self.within and not self.threshold > 0:
            raise ConfigError(
                f"the comparison {self.name} asks for a difference within threshold={self.threshold:g}, which none is; "
                "set a threshold above 0, the largest difference that does not matter"
            )


@dataclass(frozen=True)
class Conclusion:
    """A verdict, and the answers that lead to it, by comparison; without any it holds where no other does."""

    verdict: Literal["supported", "refuted", "supported only when"]
    reason: Text
    when: dict[str, Literal["yes", "no"]] = field(default_factory=dict)


@dataclass(frozen=True)
class Claim:
    """A statement, the comparisons that decide it, and the conclusions, of which the first that applies holds."""

    name: Text
    statement: Text
    comparisons: Annotated[tuple[Comparison, ...], NOT_EMPTY]
    conclusions: Annotated[tuple[Conclusion, ...], NOT_EMPTY]
    source: Text | None = None

    def rules(self) -> None:
        """Raises ConfigError unless the conclusions cover every case and name comparisons that exist."""
        names = [comparison.name for comparison in self.comparisons]
        if len(set(names)) < len(names):
            raise ConfigError(f"the claim {self.name} has comparisons of the same name: {', '.join(names)}")
        *conditional, last = self.conclusions
        if last.when or not all(each.when for each in conditional):
            raise ConfigError(
                f"each conclusion of the claim {self.name} must say `when`, but for the last one, which holds where no "
                "other does"
            )
        for name in (name for each in conditional for name in each.when):
            if name not in names:
                raise ConfigError(
                    f"a conclusion of the claim {self.name} names the comparison {name}, which it does not have: "
                    f"{nearest(name, names)}choose from {', '.join(names)}"
                )

    @property
    def quantities(self) -> Iterator[tuple[str, Quantity]]:
        """Every quantity that is compared, task by task, with the comparison's name."""
        for comparison in self.comparisons:
            yield from ((comparison.name, part) for part in comparison.parts)
