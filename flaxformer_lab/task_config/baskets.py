"""What is bought next."""

from dataclasses import dataclass
from typing import Literal

from flaxformer_lab.errors import ConfigError
from flaxformer_lab.parsing import AtLeastOne, AtLeastTwo, Fraction, Name, Positive
from flaxformer_lab.task_config.base import TaskConfig


@dataclass(frozen=True)
class NextBasketConfig(TaskConfig):
    """What a user buys next, from what was bought before: all items are ranked.

    Attributes:
        dataset: `lab_retail`, purchases of yours (`csv:PATH`, `parquet:PATH`: columns user, item, a time, and basket
            where there are some), or a data set with the features of lab_retail.
        split: `time`: what a user buys first after one moment, from all before it; `last`: the last of each user's
            first purchases, from those before it (leave one out).
        cut: that moment, as the share of all events that came before it; 0.8 is an earlier one, to tune on.
        held_out: of users, the share whose last basket before the cut validates instead of training.
        least_baskets: baskets that a user has before the cut, to be asked for the next one.
        least_rows: rows of the source that an item has, to be kept (split=time).
        core: first purchases that a user and an item have at least (split=last).
        tokens: a token is a bought item, or a basket, the mean of its items.
        objective: predict what comes next at every token, or the items that are masked.
        events: items of one example, the last ones, with the mask that asks what follows; longer histories train as
            several examples.
        baskets: baskets of one example, likewise.
        mask_rate: share of the items that `masked` hides.
        half_life: days before the cut after which a basket weighs half in training; none weighs all the same.
        tied: items are predicted by the vectors by which they are read.
        repeats: add to the scores what was bought before, with a learned weight for each number of baskets ago.
    """

    name: Literal["next_basket"] = "next_basket"
    dataset: Name = "lab_retail"
    split: Literal["time", "last"] = "time"
    cut: Fraction = 0.9
    held_out: Fraction = 0.2
    least_baskets: AtLeastOne = 3
    least_rows: AtLeastOne = 20
    core: AtLeastOne = 5
    tokens: Literal["item", "basket"] = "basket"
    objective: Literal["next", "masked"] = "next"
    events: AtLeastTwo = 256
    baskets: AtLeastTwo = 16
    mask_rate: Fraction = 0.2
    half_life: Positive | None = None
    tied: bool = True
    repeats: bool = False

    @property
    def causal(self) -> bool:
        """What comes next must not be seen; a masked item is guessed from both sides."""
        return self.objective == "next"

    def rules(self) -> None:
        """Raises ConfigError when knobs contradict one another."""
        if self.tokens == "basket" and self.objective == "masked":
            raise ConfigError(
                "task.objective=masked with task.tokens=basket: items are masked, not baskets; set task.tokens=item or "
                "task.objective=next"
            )
        if self.repeats and self.tokens == "item":
            raise ConfigError(
                "task.repeats=true with task.tokens=item: what follows within a basket is no repetition; set "
                "task.tokens=basket or task.repeats=false"
            )
