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
# What is measured on each replica beside its score (by `Population`, or one `beside` the task's primary metric).
Measure = Literal[
    "cross_feature_energy",
    "cross_token_energy",
    "token_equivariance_error",
    "feature_equivariance_error",
    "attention_entropy",
    "head_diversity",
    "mae",
    "object_attention",
    "object_attention_untrained",
    "object_saliency",
    "object_saliency_untrained",
    "int8_score",
]
# What a model costs where it runs: FLOPs of a forward pass, or what is measured on its exported file
# (`ablation/exports.py`): bytes of the file, microseconds for one example on one thread.
Cost = Literal["forward_flops", "float32_bytes", "int8_bytes", "float32_latency", "int8_latency"]
Text = Annotated[Name, Rule("must be printable", str.isprintable)]


@dataclass(frozen=True)
class Quantity:
    """A value for each seed: the test score of a variant on a task, or one of its measures.

    also: more tasks, of which one alone is too small to tell; the value is the mean over all.
    front: in place of a variant, several of one family that cost more and more; the value is that of their Pareto
        front, where the comparison says at equal what (`report/fronts.py`).
    gain_over: less the same on this task, as on one of fewer updates.
    """

    task: Text
    variant: Text = BASELINE
    measure: Measure | None = None
    also: tuple[Text, ...] = ()
    front: tuple[Text, ...] = ()
    gain_over: Text | None = None

    def __str__(self) -> str:
        what = f"the front of {len(self.front)} that begins with {self.front[0]}" if self.front else self.variant
        gained = "" if self.gain_over is None else f", less that on {self.gain_over}"
        return f"{self.measure or 'score'} of {what} on {' and '.join((self.task, *self.also))}{gained}"

    @property
    def parts(self) -> tuple["Quantity", ...]:
        """Its value on each task, and of each variant of a front, alone."""
        before = () if self.gain_over is None else (self.gain_over,)
        return tuple(
            dataclasses.replace(self, task=task, variant=variant, also=(), front=(), gain_over=None)
            for task in (self.task, *self.also, *before)
            for variant in self.front or (self.variant,)
        )


@dataclass(frozen=True)
class Comparison:
    """Is `more` above `less` (or above 0, without it) by more than `threshold`? name: for the conclusions.

    within: ask instead whether they differ by less than `threshold`, as every "as good as" must (two one-sided tests).
    because: why the threshold is what it is.
    at_equal: compare two fronts, by their mean difference over all costs of this kind that both can have.
    cost_ratio: so far off costs may be measured, or further where seeds of one variant differ by more: the answer
        must stay where those of `less` are this many times as high, and as low.
    """

    name: Text
    question: Text
    more: Quantity
    less: Quantity | None = None
    threshold: float = 0.0
    within: bool = False
    because: Text | None = None
    at_equal: Cost | None = None
    cost_ratio: Annotated[float, Rule("must be at least 1", lambda value: value >= 1)] = 1.0

    @property
    def parts(self) -> tuple[Quantity, ...]:
        """What is compared, task by task."""
        return self.more.parts + (() if self.less is None else self.less.parts)

    def rules(self) -> None:
        """Raises ConfigError where no difference could be within the threshold, or fronts lack what is equal."""
        fronts = [bool(each.front) and not each.also for each in (self.more, self.less) if each is not None]
        if (self.at_equal is not None) != any(fronts) or (any(fronts) and fronts != [True, True]):
            raise ConfigError(
                f"the comparison {self.name} needs `front` in both `more` and `less`, each on one task, together with "
                f"`at_equal`, or none of them; at_equal={self.at_equal}"
            )
        for each in (self.more, self.less):
            if each is not None and each.gain_over is not None and (each.also or each.front):
                raise ConfigError(
                    f"the comparison {self.name} has gain_over={each.gain_over} together with `also` or `front`; what "
                    "is gained is that of one variant on one task, so leave them out"
                )
        if self.within and not self.threshold > 0:
            raise ConfigError(
                f"the comparison {self.name} asks for a difference within threshold={self.threshold:g}, and none can "
                "be smaller; set a threshold above 0, the largest difference that does not matter"
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
