"""What an ablation compares: tasks x variants, each with all learning rates and seeds; and which pairs are meaningful.

A cell is one variant on one task with all its replicas. Its key is a digest of everything that its result follows from.
"""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from flaxformer_lab import registry
from flaxformer_lab.ablation.claim_config import BASELINE, Claim, Text
from flaxformer_lab.ablation.population import Replica
from flaxformer_lab.ablation.variants import VARIANTS, apply_variants
from flaxformer_lab.config import Config, OptimizerConfig, ParallelismConfig, as_dict, parse_config
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.models.cost import forward_flops, parameters
from flaxformer_lab.parsing import (
    DISTINCT,
    NOT_EMPTY,
    Decay,
    Name,
    NonNegative,
    Positive,
    Seed,
    current_name,
    flatten,
    nearest,
    override,
    parse,
)
from flaxformer_lab.task_config import TaskConfig
from flaxformer_lab.tasks import PrimaryMetric, Task, controls, make_task, primary_metric
from flaxformer_lab.training.optimizer import maps_by_rule

# Named variants with commas between them, or a table of overrides. Its key `ablation` may name variants too, `recipe`
# the recipe that is changed, instead of the task's, and `control` what is fitted instead of a model.
Change = str | dict[str, Any]
ReadRecipe = Callable[[str, Mapping[str, Any]], dict[str, Any]]
Match = Literal["none", "parameters", "flops"]
SAME, UNMATCHED = "the same as", "nothing comes within"  # why a pair is left out that is no mistake
RESULT_FORMAT = 2  # to be raised when a result of the same config means something else, or a default changes


@dataclass(frozen=True)
class TaskEntry:
    """One task of an ablation.

    Attributes:
        recipe: a training recipe, relative to the ablation's own file.
        overrides: keys set in it, for every variant.
        learning_rates: those to begin with here; none for the ablation's.
        variant_rates: by name, those that single variants begin with here, where others fit them better. A grid that
            extends itself finds the same rates from anywhere; from nearby it needs fewer runs.
        seeds: those of this task; none for the ablation's. Where five leave an answer open, one task may have more.
        search_seeds: how many of them search for the rate; none for the ablation's number.
        variants: more variants, for this task alone.
        only: of the common variants, these; none for all.
        threshold: the validation score to which the steps are counted.
    """

    recipe: Name
    overrides: dict[str, Any] = field(default_factory=dict)
    variants: dict[str, Change] = field(default_factory=dict)
    only: tuple[Name, ...] | None = None
    threshold: float | None = None
    learning_rates: Annotated[tuple[Positive, ...], DISTINCT] | None = None
    variant_rates: dict[str, Annotated[tuple[Positive, ...], DISTINCT]] = field(default_factory=dict)
    seeds: Annotated[tuple[Seed, ...], DISTINCT] | None = None
    search_seeds: NonNegative | None = None


@dataclass(frozen=True)
class Factor:
    """One of the two factors of a factorial.

    Attributes:
        name: of the factor.
        levels: its values.
    """

    name: Text
    levels: Annotated[tuple[Name, ...], DISTINCT]


@dataclass(frozen=True)
class AblationConfig:
    """A whole ablation.

    Attributes:
        question: what it asks, the title of its report.
        tasks: what is learned, by name: each a recipe (tasks.NAME.recipe=FILE) with overrides and variants of its own.
        variants: what is compared, by name: variants of the lab (`ffn_off,single_head`), or a table of overrides; with
            the key `recipe`, of another training recipe, in which the task's overrides are set too; with the key
            `control`, of the task that something is fitted to instead of a model (`trees`), with a grid of rates of its
            own.
        learning_rates: the grid to begin with. Where the best (on validation, mean over seeds) is its highest or
            lowest, as many rates again are tried beyond it, in the same geometric steps. A single rate is given, not
            searched.
        max_extensions: how often, for each cell.
        score_tolerance: a score that is better by no more than this counts as equal: an edge of the grid gives way to
            the rate beside it, and a validation curve that gains no more in its last quarter is flat.
        noise_tolerance: or no more than so many standard errors of what it gains.
        seeds: those that each variant is trained with, at every learning rate.
        search_seeds: or only so many of them, the first, at every rate, and the others at the best one alone: half the
            runs, for a rate found from fewer. 0: all.
        baseline: the variant that the others are compared with; `baseline` is the unchanged recipe.
        match: widen or narrow each variant, and its FFN, until it has the baseline's parameters or forward FLOPs.
        match_tolerance: the largest relative difference that counts as matched; a variant that misses it is left out.
        claims: what the ablation decides.
        decide: of the claims, these, with only the cells that they need; none for all.
        only: of the tasks, these; none for all. Claims about others stay undecided.
        factors: none, or two: each pair of levels is a variant, `LEVEL + LEVEL`; the one pair that is not stands for
            the baseline. The report adds main effects and interaction.
        series: variants that are one structure in growing doses, by its name; the report draws a curve for each.
        keep: which replicas stay as ordinary run folders: none, those of the chosen learning rate, or all.
        exports: measure the replicas of the chosen rate as ONNX files too, in float32 and int8: bytes, latency on one
            thread, and the score in int8. They must be kept.
        mixed_optimizers: allow a task on which Muon trains dense maps and AdamW the diagonal ones beside them.
    """

    tasks: Annotated[dict[str, TaskEntry], NOT_EMPTY]
    variants: dict[str, Change] = field(default_factory=dict)
    learning_rates: Annotated[tuple[Positive, ...], DISTINCT] = (0.001, 0.003, 0.01)
    max_extensions: NonNegative = 3
    score_tolerance: Decay = 0.002
    noise_tolerance: Decay = 2.0
    seeds: Annotated[tuple[Seed, ...], DISTINCT] = (0, 1, 2, 3, 4)
    search_seeds: NonNegative = 0
    baseline: Name = BASELINE
    match: Match = "none"
    match_tolerance: Decay = 0.02
    claims: tuple[Claim, ...] = ()
    decide: tuple[Name, ...] | None = None
    only: tuple[Name, ...] | None = None
    factors: tuple[Factor, ...] = ()
    series: dict[str, tuple[Name, ...]] = field(default_factory=dict)
    keep: Literal["none", "chosen", "all"] = "none"
    exports: bool = False
    question: Text | None = None
    mixed_optimizers: bool = False

    def rules(self) -> None:
        """Raises ConfigError when keys contradict one another."""
        variants_of_tasks = tuple(name for entry in self.tasks.values() for name in entry.variants)
        for name in (*self.tasks, *self.variants, *variants_of_tasks):
            if not name.isprintable() or name[:1] in {"", "=", "+", "-", "@"}:
                raise ConfigError(
                    f"the name {name!r} of a task or variant must be printable and must not begin with =, +, - or @, "
                    "which a spreadsheet would take for a formula; choose another"
                )
        for task, entry in self.tasks.items():
            known = {BASELINE} | self.variants.keys()
            for name in entry.only or ():
                if name not in known:
                    raise ConfigError(
                        f"tasks.{task}.only names {name}, which is not among variants: {nearest(name, known)}"
                        f"choose from {', '.join(sorted(known))}"
                    )
            for name in entry.variants:
                if name in known:
                    raise ConfigError(f"tasks.{task}.variants.{name} is a common variant already; give it another name")
            known |= entry.variants.keys()
            for name in entry.variant_rates:
                if name not in known:
                    raise ConfigError(
                        f"tasks.{task}.variant_rates names {name}, which is no variant of it: {nearest(name, known)}"
                        f"choose from {', '.join(sorted(known))}"
                    )
            if self.baseline not in known:
                raise ConfigError(
                    f"baseline={self.baseline} is no variant of task {task}: {nearest(self.baseline, known)}"
                    f"choose from {', '.join(sorted(known))}"
                )
        if self.exports and self.keep == "none":
            raise ConfigError("exports=true reads the replicas of the chosen rate, but keep=none; set keep=chosen")
        for task in self.tasks:
            searching, seeds = self.search_seeds_of(task), self.seeds_of(task)
            if self.exports and searching:
                raise ConfigError("exports=true measures seeds that trained in one cell; set search_seeds=0")
            if searching >= len(seeds):
                raise ConfigError(
                    f"search_seeds={searching}, but {task} has {len(seeds)} seeds; choose fewer, or 0 for all"
                )
        self._rules_of_designs({BASELINE} | self.variants.keys() | set(variants_of_tasks))
        claims = [claim.name for claim in self.claims]
        if len(set(claims)) < len(claims):
            raise ConfigError(f"claims has two of the same name: {', '.join(claims)}")
        for name in self.only or ():
            if name not in self.tasks:
                raise ConfigError(
                    f"only names {name}, which is not among tasks: {nearest(name, self.tasks)}"
                    f"choose from {', '.join(self.tasks)}"
                )
        for name in self.decide or ():
            if name not in claims:
                raise ConfigError(
                    f"decide names {name}, which is not among claims: {nearest(name, claims)}"
                    f"choose from {', '.join(claims) or 'none'}"
                )

    def _rules_of_designs(self, known: Set[str]) -> None:
        if len(self.factors) not in (0, 2):
            raise ConfigError(f"factors has {len(self.factors)} entries; a factorial has two")
        lacking = [pair for pair in self.pairs.values() if pair not in known]
        if len(lacking) > 1:
            raise ConfigError(
                f"factors: {lacking[0]} and {lacking[1]} are no variants; only the baseline's pair is not"
            )
        for name, variant in ((name, each) for name, variants in self.series.items() for each in variants):
            if variant not in known:
                raise ConfigError(
                    f"series.{name} names {variant}, which is no variant: {nearest(variant, known)}"
                    f"choose from {', '.join(sorted(known))}"
                )

    @property
    def pairs(self) -> dict[tuple[str, str], str]:
        """The name of each pair of levels of the two factors; none without factors."""
        if not self.factors:
            return {}
        return {pair: " + ".join(pair) for pair in itertools.product(*(factor.levels for factor in self.factors))}

    def seeds_of(self, task: str) -> tuple[int, ...]:
        """The seeds that a task's variants are trained with."""
        return self.tasks[task].seeds or self.seeds

    def search_seeds_of(self, task: str) -> int:
        """How many of them find the learning rate, the first; 0: all."""
        own = self.tasks[task].search_seeds
        return self.search_seeds if own is None else own

    @property
    def decided_claims(self) -> tuple[Claim, ...]:
        """The claims that `decide` chooses."""
        return tuple(claim for claim in self.claims if self.decide is None or claim.name in self.decide)


@dataclass(frozen=True)
class Cell:
    """One variant on one task. config: that of every replica, but for seed and learning rate.

    extension: 0, or its number among what follows a cell: more rates, or more seeds. base_key: of that cell.
    control: what is fitted instead of the config's model (`tasks/controls.py`).
    """

    task: str
    variant: str
    config: Config
    replicas: tuple[Replica, ...]
    extension: int = 0
    base_key: str | None = None
    control: str | None = None

    @property
    def primary_metric(self) -> PrimaryMetric:
        """The metric that its task is judged by."""
        return primary_metric(self.config.task)

    @property
    def key(self) -> str:
        """A digest of everything that the result follows from: names, and what differs from the defaults."""
        optimizer = dataclasses.replace(self.config.optimizer, learning_rate=OptimizerConfig.learning_rate)
        # The devices that it trains on change only rounding.
        config = dataclasses.replace(self.config, seed=0, optimizer=optimizer, parallelism=ParallelismConfig())
        content = {
            "format": RESULT_FORMAT,
            "config": _differing(config),
            "replicas": [dataclasses.astuple(replica) for replica in self.replicas],
        } | ({} if self.control is None else {"control": self.control})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _differing(config: Any) -> dict[str, Any]:
    """A config's values that are not its dataclass's defaults, and each `name`: a new knob leaves them as they were.

    So does a new name of a knob: values that the old one could have are written under it.
    """
    default, values = type(config)(), {}
    former = {
        (new, now): (old, before)
        for old, (new, choices) in getattr(config, "RENAMED", {}).items()
        for before, now in choices.items()
    }
    for knob in dataclasses.fields(config):
        value = getattr(config, knob.name)
        if dataclasses.is_dataclass(value):
            values |= {knob.name: inner} if (inner := _differing(value)) else {}
        elif knob.name == "name" or value != getattr(default, knob.name):
            name, value = former.get((knob.name, value), (knob.name, value)) if former else (knob.name, value)
            values[name] = value
    return values


@dataclass(frozen=True)
class Grid:
    """An ablation with all pairs resolved. dropped: (task, variant, why) of pairs that are meaningless."""

    config: AblationConfig
    cells: tuple[Cell, ...]
    dropped: tuple[tuple[str, str, str], ...]

    def cell(self, task: str, variant: str) -> Cell | None:
        """The cell of a pair, or None where it was dropped."""
        return next((cell for cell in self.cells if (cell.task, cell.variant) == (task, variant)), None)


def parse_ablation(tree: Mapping[str, Any]) -> AblationConfig:
    """Returns the ablation that a nested mapping of plain values describes.

    Raises:
        ConfigError: an unknown key, a value of the wrong type or out of range, or keys that contradict one another.
    """
    if "tasks" not in tree:
        raise ConfigError("tasks is missing: an ablation needs at least one, like tasks.digits.recipe=../digits.py")
    return parse(AblationConfig, tree, "")


def make_grid(config: AblationConfig, folder: Path, read_recipe: ReadRecipe) -> Grid:
    """Resolves every pair of a task and a variant.

    folder: where recipes are relative to. read_recipe: of a file and overrides by dotted key; what refers to these keys
        in the recipe (`ConfigDict.get_oneway_ref`) follows the overrides of a task, and those of a variant.

    A pair is dropped where the variant changes nothing, or cannot be applied to the task.

    Raises:
        ConfigError: a recipe or a variant that does not exist, a baseline that cannot be, a variant that fits no
            task, or a claim about a cell that the ablation does not have.
    """
    cells: list[Cell] = []
    dropped: list[tuple[str, str, str]] = []
    needed = _needed(config)
    cost_of = functools.cache(functools.partial(_cost_of, match=config.match, task_of=functools.cache(make_task)))
    for task, entry in config.tasks.items():
        if config.only is not None and task not in config.only:
            continue
        if needed is not None and (task, config.baseline) not in needed:
            continue
        changes = {BASELINE: "", **{n: c for n, c in config.variants.items() if entry.only is None or n in entry.only}}
        changes |= entry.variants
        begin: dict[str, Config] = {}  # what each variant changes
        recipes: dict[str, tuple[dict[str, Any], Config]] = {}  # by file, read once
        for name, change in changes.items():
            file, change = _without_recipe(change, entry.recipe)
            read = functools.partial(_read, read_recipe, str((folder / file).resolve()), entry.overrides)
            if file not in recipes:
                tree = read({})
                with _error_context(f"tasks.{task}" + ("" if file == entry.recipe else f", variant {name}")):
                    recipes[file] = tree, parse_config(tree)
            tree, begin[name] = recipes[file]
            changes[name] = _with_what_follows(change, tree, read)
        with _error_context(f"tasks.{task}, baseline {config.baseline}"):
            baseline = apply_change(begin[config.baseline], changes[config.baseline])
        resolved: dict[str, tuple[Config, str | None]] = {}
        for variant, change in changes.items():
            control = None if isinstance(change, str) else change.get("control")
            try:
                if control is not None:
                    model = _controlled(begin[variant], change)
                elif variant == config.baseline:
                    model = baseline
                else:
                    model = _matched(begin[variant], change, baseline, config, cost_of)
            except ConfigError as error:
                _refuse_unknown(change, error)
                dropped.append((task, variant, str(error)))
                continue
            same = next((name for name, other in resolved.items() if other == (model, control)), None)
            if same is not None:
                dropped.append((task, variant, f"{SAME} {same}"))
                continue
            resolved[variant] = model, control
            if needed is None or (task, variant) in needed:
                replicas = replicas_of(config, task, variant, control)
                cells.append(Cell(task, variant, _shared(model), replicas, control=control))
    for variant in config.variants if needed is None and config.only is None else ():
        reasons = [why for _, name, why in dropped if name == variant]
        mistakes = [why for why in reasons if SAME not in why and UNMATCHED not in why]
        if reasons == mistakes != [] and not any(cell.variant == variant for cell in cells):
            raise ConfigError(f"variants.{variant} fits none of the tasks: {reasons[0]}")
    if not cells:
        raise ConfigError("only and decide leave nothing to train: no task of the one belongs to a claim of the other")
    grid = Grid(config, tuple(cells), tuple(dropped))
    _check_claims(grid)
    if not config.mixed_optimizers:
        _check_optimizers(cells)
    return grid


def _read(read_recipe: ReadRecipe, file: str, overrides: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe with a task's overrides set; more: others, that its references follow."""
    overrides = flatten(overrides)
    tree = read_recipe(file, overrides | more)
    for key, value in overrides.items():
        tree = override(tree, key, value)
    return tree


def _without_recipe(change: Change, default: str) -> tuple[str, Change]:
    """The recipe that a variant changes, and the change."""
    if isinstance(change, str):
        return default, change
    return change.get("recipe", default), {key: value for key, value in change.items() if key != "recipe"}


def _with_what_follows(change: Change, recipe: Mapping[str, Any], read: Callable[[dict[str, Any]], Any]) -> Change:
    """A table of overrides, and before them the values that follow them in the recipe."""
    others = ("ablation", "control")
    table = {} if isinstance(change, str) else flatten({k: v for k, v in change.items() if k not in others})
    if not table:
        return change
    before = flatten(recipe)
    return {key: value for key, value in flatten(read(table)).items() if before.get(key, value) != value} | change


def _needed(config: AblationConfig) -> set[tuple[str, str]] | None:
    """The tasks and variants of the chosen claims, and the baselines of these tasks; None where nothing is chosen."""
    if not config.decide:
        return None
    named = {(q.task, q.variant) for claim in config.decided_claims for _, q in claim.quantities}
    return named | {(task, config.baseline) for task, _ in named}


def _check_optimizers(cells: Sequence[Cell]) -> None:
    """Raises ConfigError where Muon trains the maps of one variant of a task and AdamW those of another."""
    rules: dict[str, dict[str, str]] = {}  # of each task, a map for each rule
    for cell in (cell for cell in cells if cell.config.optimizer.name == "muon" and cell.control is None):
        network, known = make_task(cell.config.task).network(cell.config.model), rules.setdefault(cell.task, {})
        for name, rule in maps_by_rule(cell.config.optimizer, network).items():
            known.setdefault(rule, f"{name} of {cell.variant}")
        if len(known) > 1:
            raise ConfigError(
                f"tasks.{cell.task}: optimizer.name=muon trains {known['muon']} by Muon and {known['adamw']} by AdamW, "
                f"so they differ in more than their structure; set tasks.{cell.task}.overrides.optimizer.name=adamw, "
                "or mixed_optimizers=true to compare them anyway"
            )


def _check_claims(grid: Grid) -> None:
    """Raises ConfigError where a claim names what the ablation does not train, or tasks whose seeds make no pairs."""
    for claim in grid.config.decided_claims:
        for comparison, quantity in claim.quantities:
            task, variant = quantity.task, quantity.variant
            chosen = grid.config.tasks if grid.config.only is None else grid.config.only
            if grid.cell(task, variant) is not None or (task in grid.config.tasks and task not in chosen):
                continue
            variants = [cell.variant for cell in grid.cells if cell.task == task]
            reason = next((why for t, v, why in grid.dropped if (t, v) == (task, variant)), None)
            if reason is not None:
                problem = f"{variant} on {task}, which the ablation leaves out: {reason}"
            else:
                kind, name, known = ("variant", variant, variants) if variants else ("task", task, grid.config.tasks)
                problem = f"the {kind} {name}, which is not there: {nearest(name, known)}choose from {', '.join(known)}"
            raise ConfigError(
                f"the claim {claim.name} ({comparison}) names {problem}; or leave the claim out: `decide` names those "
                "to decide"
            )
        for compared in claim.comparisons:
            seeds = {part.task: sorted(grid.config.seeds_of(part.task)) for part in compared.parts}
            first, *others = seeds
            other = next((task for task in others if seeds[task] != seeds[first]), None)
            if other is not None:
                raise ConfigError(
                    f"the claim {claim.name} ({compared.name}) compares {first} with {other} seed by seed, but "
                    f"tasks.{first} has the seeds {seeds[first]} and tasks.{other} {seeds[other]}; give both the same "
                    "`seeds`"
                )


def replicas_of(config: AblationConfig, task: str, variant: str, control: str | None = None) -> tuple[Replica, ...]:
    """One replica for each seed and learning rate that a variant of a task, or a control, begins with."""
    entry = config.tasks[task]
    rates = entry.variant_rates.get(variant) or entry.learning_rates or config.learning_rates
    rates = rates if control is None else registry.ask("control", control, "rates") or rates
    seeds, searching = config.seeds_of(task), config.search_seeds_of(task)
    seeds = seeds[:searching] if searching and len(rates) > 1 else seeds
    return tuple(Replica(seed, rate) for rate in rates for seed in seeds)


def apply_change(config: Config, change: Change) -> Config:
    """The config with named variants, or with a table of overrides (whose key `ablation` may name variants too)."""
    if isinstance(change, str):
        return apply_variants(config, [name.strip() for name in change.split(",") if name.strip()])
    table = {key: value for key, value in change.items() if key != "control"}
    names = table.pop("ablation", "")
    tree = as_dict(apply_change(config, names))
    for key, value in flatten(table).items():
        tree = override(tree, *current_name(config, key, value))
    return parse_config(tree)


def _controlled(recipe: Config, change: dict[str, Any]) -> Config:
    """The config whose task a control is fitted to.

    Raises:
        ConfigError: there is no such control, or it does not fit the task.
    """
    config = apply_change(recipe, change)
    controls.lookup(change["control"], config.task.name)
    return config


def cost(config: Config) -> tuple[int, int]:
    """(parameters, FLOPs of a forward pass of one example) of a config's model."""
    task = make_task(config.task)
    network = task.network(config.model)
    params, model_state = network.shapes
    return parameters(params), forward_flops(network, params, model_state, task.input_spec(1))


def _cost_of(config: Config, match: str, task_of: Callable[[TaskConfig], Task]) -> int:
    """The one of both that `match` names; counting the operations of a forward pass takes longer."""
    return cost(config)[1] if match == "flops" else parameters(task_of(config.task).network(config.model).shapes[0])


def _matched(
    recipe: Config, change: Change, baseline: Config, ablation: AblationConfig, cost_of: Callable[[Config], int]
) -> Config:
    """The variant, at the width (and hidden units, where it has an FFN) at which it costs what the baseline costs.

    Raises:
        ConfigError: none does within the tolerance.
    """
    variant = apply_change(recipe, change)
    if ablation.match == "none" or variant == baseline:
        return variant
    wanted = cost_of(baseline)
    if cost_of(variant) == wanted:
        return variant
    # A head for each feature: the variant sets their number again at every width.
    grows = _heads(variant) == variant.model.width
    unit = _width_unit(recipe if grows else variant)

    def at(units: int) -> Config:
        widened = parse_config(override(as_dict(recipe if grows else variant), "model.width", units * unit))
        return apply_change(widened, change) if grows else widened

    low, high, below = 1, max(2, 2 * variant.model.width // unit), 0
    while (above := cost_of(at(high))) < wanted:
        low, high, below = high, 2 * high, above
    for guesses in itertools.cycle((True, False)):
        if high - low <= 1:
            break
        # A cost grows about with the square of the width: a line through the roots is a good guess where it does.
        line = (math.sqrt(wanted) - math.sqrt(below)) / (math.sqrt(above) - math.sqrt(below))
        middle = min(max(low + round((line if guesses else 0.5) * (high - low)), low + 1), high - 1)
        found = cost_of(at(middle))
        low, below, high, above = (middle, found, high, above) if found < wanted else (low, below, middle, found)
    miss = lambda config: abs(cost_of(config) / wanted - 1)  # noqa: E731
    nearest_one = min((at(low), at(high)), key=miss)
    if miss(nearest_one) > ablation.match_tolerance:
        nearest_one = min((_with_hidden_units(at(units), wanted, cost_of) for units in (low, high)), key=miss)
    if miss(nearest_one) > ablation.match_tolerance:
        has = cost_of(nearest_one)
        raise ConfigError(
            f"match={ablation.match}: {UNMATCHED} {ablation.match_tolerance:.0%} of the baseline's {wanted:,}; the "
            f"nearest, model.width={nearest_one.model.width}, has {has:,} ({has / wanted - 1:+.1%}); set "
            "match_tolerance, or choose a baseline of another size"
        )
    return nearest_one


def _with_hidden_units(config: Config, wanted: int, cost_of: Callable[[Config], int]) -> Config:
    """The config with as many hidden units as bring its cost nearest to `wanted`; as it is without an FFN."""
    ffn = getattr(config.model, "ffn", None)
    if ffn is None or ffn.kind not in ("mlp", "gated", "bilinear") or ffn.projection != "dense":
        return config

    def with_hidden(hidden: int) -> Config:
        return parse_config(override(as_dict(config), "model.ffn.expansion", hidden / config.model.width))

    hidden = config.model.hidden
    now, more = (cost_of(with_hidden(each)) for each in (hidden, hidden + 1))
    return with_hidden(max(1, hidden + round((wanted - now) / (more - now))))


def _heads(config: Config) -> int:
    return getattr(getattr(config.model, "attention", None), "num_heads", 1)


def _width_unit(config: Config) -> int:
    """What a width must be a multiple of: whole heads, pairs of features that positions rotate, and whole blocks."""
    attention, ffn = (getattr(config.model, part, None) for part in ("attention", "ffn"))
    parts = [part for part in (attention, ffn) if part is not None]
    blocks = [
        part.block_size for part in parts if {part.projection, getattr(part, "output", "")} & {"block", "monarch"}
    ]
    if attention is None:
        return math.lcm(*blocks)
    heads, position = attention.num_heads, getattr(config.model, "position", None)
    if position == "rotary":  # a head's features, of which an even number is turned
        return math.lcm(heads * next((n for n in range(2, 257) if n * attention.rotary_share % 2 == 0), 2), *blocks)
    return math.lcm(2 * heads if position == "sinusoidal" else math.lcm(heads, 2), *blocks)


def _shared(config: Config) -> Config:
    """What all replicas share: with a fixed seed and learning rate in place of each replica's own."""
    return Replica(0, 1.0).config(config)


def _refuse_unknown(change: Change, error: ConfigError) -> None:
    """A variant that does not exist anywhere is a mistake, not a pair without meaning."""
    if not isinstance(change, str) and change.get("control") not in (None, *registry.names("control")):
        raise error
    names = change if isinstance(change, str) else change.get("ablation", "")
    if any(name.strip() and name.strip() not in VARIANTS for name in names.split(",")):
        raise error


@contextlib.contextmanager
def _error_context(where: str) -> Iterator[None]:
    """Prefixes a ConfigError with the part of the ablation that it comes from."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
