"""The replicas of a control: fitted one by one on the host, evaluated as a population is."""

import dataclasses
import time
from collections.abc import Callable, Sequence

import numpy as np

from flaxformer_lab import registry
from flaxformer_lab.ablation.population import Outcome, Replica
from flaxformer_lab.ablation.provenance import describe_devices
from flaxformer_lab.config import Config
from flaxformer_lab.tasks import controls, make_task
from flaxformer_lab.tasks.task import EXAMPLES, examples_of


class Fitted:
    """Takes a `Population`'s place where a control does that of a model."""

    def __init__(self, config: Config, control: str, replicas: Sequence[Replica]):
        self.config, self.control, self.replicas = config, control, tuple(replicas)
        self._fit = controls.lookup(control, config.task.name)

    def with_replicas(self, replicas: Sequence[Replica]) -> "Fitted":
        """The same control for other replicas."""
        return Fitted(self.config, self.control, replicas)

    def run(self, progress: Callable[[int, int], None] = lambda done, total: None) -> Outcome:
        """Fits all replicas; where no seed matters, one for each rate."""
        begin, task = time.perf_counter(), make_task(self.config.task)
        drawn = registry.ask("control", self.control, "drawn") is not False
        known: dict[Replica, tuple[dict, dict, int]] = {}
        rows = []
        for number, replica in enumerate(self.replicas):
            key = replica if drawn else dataclasses.replace(replica, seed=0)
            if key not in known:
                fit = self._fit(task, replica.seed, replica.learning_rate)
                splits = (controls.evaluate(task, fit, split) for split in ("validation", "test"))
                known[key] = (*splits, fit.parameters)
            rows.append(known[key])
            progress(self.config.training.steps * (number + 1) // len(self.replicas), self.config.training.steps)
        validation, test = (_stacked([row[place] for row in rows]) for place in (0, 1))
        names = task.primary_metric.beside
        keys = {EXAMPLES, *map(examples_of, names)}
        return Outcome(
            replicas=self.replicas,
            steps=(self.config.training.steps,),
            validation={name: values[:, None] for name, values in validation.items() if name not in keys},
            test={name: values for name, values in test.items() if name not in keys},
            measures={},
            states=(),
            seconds=time.perf_counter() - begin,
            test_examples=test.get(EXAMPLES),
            beside_examples={name: test[examples_of(name)] for name in names if examples_of(name) in test},
            device=describe_devices(),
            parameters=rows[-1][2],
        )


def _stacked(rows: list[dict]) -> dict[str, np.ndarray]:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
