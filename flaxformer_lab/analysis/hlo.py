"""What a compiled program does, read from its text (HLO): operations, bytes through memory and FLOPs, by group.

An operation is what the device launches: a fusion, a product, a copy. It reads its operands from the device's memory
and writes its results there; what is inside a fusion stays in registers. On a TPU arrays may also be in fast memory,
which counts nothing.
"""

import collections
import functools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

DTYPE_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "c64": 8} | {
    f"{kind}{bits}": bits // 8 for kind in "suf" for bits in (8, 32, 64)
}
COLLECTIVES = "all-gather all-reduce reduce-scatter all-to-all collective-permute collective-broadcast".split()
# They launch nothing.
FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast after-all opt-barrier partition-id replica-id iota".split()
)
PRODUCTS = frozenset({"dot", "convolution"})
MOVING = frozenset(
    "copy transpose slice dynamic-slice dynamic-update-slice concatenate pad reshape reverse broadcast convert bitcast "
    "parameter constant tuple get-tuple-element iota copy-start slice-start".split()
)
SLICES = frozenset({"slice", "dynamic-slice", "gather"})
# Names that `jax.named_scope` gives in the train step.
SCOPES = ("loss", "optimizer")
GROUPS = ("products", "kernels", "collectives", *SCOPES, "copies", "elementwise")

INSTRUCTION = re.compile(
    r"^\s+(?P<root>ROOT )?%?(?P<name>[\w.-]+) = (?P<type>\(.*?\)|\S+) (?P<opcode>[a-z][\w-]*)\((?P<rest>.*)"
)
COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.-]+) \(.*\{\s*$")
SHAPE = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
CALLED = re.compile(r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.-]+)")
TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')


@dataclass(frozen=True)
class Array:
    """One array. is_fast: it is in the fast memory of a TPU."""

    dtype: str
    shape: tuple[int, ...]
    is_fast: bool = False

    @property
    def num_bytes(self) -> int:
        """Bytes in the device's memory."""
        return (
            0
            if self.is_fast
            else int(math.prod(self.shape) * DTYPE_BYTES.get(self.dtype, 1 if "f8" in self.dtype else 0))
        )


@dataclass(frozen=True)
class Instruction:
    """One line of a program. options: what follows the operands."""

    name: str
    opcode: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]
    options: str
    is_root: bool = False

    @property
    def op_name(self) -> str:
        """JAX's name: the functions and scopes that it comes from."""
        return _first(r'op_name="([^"]*)"', self.options)

    @property
    def target(self) -> str:
        """The external kernel that it calls."""
        return _first(r'custom_call_target="([^"]*)"', self.options)

    @property
    def kind(self) -> str:
        """The opcode without `-start`."""
        return self.opcode.removesuffix("-start")


@dataclass(frozen=True)
class Operation:
    """What the device launches, `times` times in one call of the program. num_bytes, flops: of one launch."""

    name: str
    group: str
    num_bytes: int
    flops: int
    times: int


@dataclass
class Totals:
    """Sums over the operations of a group."""

    operations: int = 0
    num_bytes: int = 0
    flops: int = 0


@dataclass(frozen=True)
class Module:
    """A program: its computations, instructions by name."""

    computations: dict[str, dict[str, Instruction]]
    entry: str

    @functools.cached_property
    def operations(self) -> list[Operation]:
        """All that one call launches; a loop's number of iterations is known where the compiler knows it."""
        return list(self._run(self.entry, 1))

    @functools.cached_property
    def by_group(self) -> dict[str, Totals]:
        """Operations, bytes and FLOPs of each group; the FLOPs of products alone."""
        totals: dict[str, Totals] = collections.defaultdict(Totals)
        for each in self.operations:
            total = totals[each.group]
            total.operations += each.times
            total.num_bytes += each.times * each.num_bytes
            total.flops += each.times * each.flops
        return {group: totals[group] for group in GROUPS if group in totals}

    @property
    def num_bytes(self) -> int:
        """Bytes through the device's memory in one call."""
        return sum(each.times * each.num_bytes for each in self.operations)

    def _run(self, computation: str, times: int) -> Iterator[Operation]:
        instructions = self.computations[computation]
        for each in instructions.values():
            called = [name for name in CALLED.findall(each.options) if name in self.computations]
            branches = _first(r"branch_computations=\{([^}]*)\}", each.options)
            called += [name.strip().lstrip("%") for name in branches.split(",") if name]
            if each.opcode in ("while", "call", "conditional", "async-start"):
                trips = int(_first(TRIPS, each.options) or 1)
                for name in called:
                    yield from self._run(name, times * trips)
            elif each.opcode not in FREE and not each.opcode.endswith("-done") and each.target != "ConcatBitcast":
                inner = [self.computations[name] for name in called] if each.opcode == "fusion" else []
                num_bytes = self._traffic(each, instructions, inner)
                flops = sum(self._product_flops(i, body) for body in [{each.name: each}, *inner] for i in body.values())
                yield Operation(each.name, _group(each, inner), num_bytes, flops, times)

    def _product_flops(self, each: Instruction, body: dict[str, Instruction]) -> int:
        """2 for each product of two numbers; those with a convolution's padding count."""
        if each.opcode not in PRODUCTS and "gemm" not in each.target and "matmul" not in each.target:
            return 0
        operands = [body[name].results[0] for name in each.operands if name in body and body[name].results]
        if len(operands) < 2:  # a library's call outside a fusion
            operands = [self._find(name).results[0] for name in each.operands[:2]]
        sums = _conv_sums(each, operands[1]) if each.opcode == "convolution" else _dot_sums(each, operands[0])
        return 2 * math.prod(each.results[0].shape) * sums

    def _find(self, name: str) -> Instruction:
        return next(body[name] for body in self.computations.values() if name in body)

    def _traffic(self, each: Instruction, around: dict[str, Instruction], inner: list[dict[str, Instruction]]) -> int:
        """Bytes read and written."""
        operands = [around[name] for name in each.operands]
        size = lambda instruction: sum(array.num_bytes for array in instruction.results)  # noqa: E731
        if each.opcode in ("copy-start", "slice-start"):  # (result, operand, context) or ((operand), result, context)
            first, second = sorted(each.results[:2], key=lambda array: math.prod(array.shape))
            return first.num_bytes + (0 if second.is_fast else Array(second.dtype, first.shape).num_bytes)
        if each.opcode.endswith("-start"):
            return sum(map(size, operands)) * 2
        if each.opcode in SLICES:
            return 2 * size(each)
        if each.opcode == "dynamic-update-slice":
            return 2 * size(operands[1])
        if not inner:
            return sum(map(size, operands)) + size(each)
        return sum(_read(inner[0], number, size(each)) for number, each in enumerate(operands)) + _written(
            each, inner[0]
        )


def _read(body: dict[str, Instruction], number: int, whole: int) -> int:
    """Bytes that a fusion reads of one operand: of one that is only sliced, the slices."""
    parameter = next(
        (each for each in body.values() if each.opcode == "parameter" and each.options == str(number)), None
    )
    users = [each for each in body.values() if parameter and parameter.name in each.operands]
    if users and all(each.opcode == "dynamic-update-slice" and each.operands[0] == parameter.name for each in users):
        return 0  # updated in place
    if users and all(each.opcode in SLICES and each.operands[0] == parameter.name for each in users):
        sliced = sum(math.prod(each.results[0].shape) for each in users) / max(math.prod(parameter.results[0].shape), 1)
        return int(whole * min(1, sliced))
    return whole


def _written(fusion: Instruction, body: dict[str, Instruction]) -> int:
    """Bytes that a fusion writes: of an array that is updated in place, the update."""
    root = next(each for each in body.values() if each.is_root)
    names = root.operands if root.opcode == "tuple" else (root.name,)
    written = 0
    for name, array in zip(names, fusion.results, strict=False):
        while body[name].opcode in ("bitcast", "copy") and body[name].operands:
            name = body[name].operands[0]
        updates = body[name].opcode == "dynamic-update-slice"
        written += sum(each.num_bytes for each in body[body[name].operands[1]].results) if updates else array.num_bytes
    return written


def _group(each: Instruction, inner: list[dict[str, Instruction]]) -> str:
    opcodes = {each.kind} | {instruction.opcode for body in inner for instruction in body.values()}
    if opcodes & set(COLLECTIVES):
        return "collectives"
    if opcodes & PRODUCTS or "gemm" in each.target or "matmul" in each.target:
        return "products"
    if each.opcode == "custom-call" and (each.target.startswith("__") or "call" in each.target):
        return "kernels"
    if opcodes - {"fusion", "custom-call"} <= MOVING:
        return "copies"
    names = {
        part for i in (each, *(i for body in inner for i in body.values())) for part in re.split(r"[/()]", i.op_name)
    }
    return next((scope for scope in SCOPES if scope in names), "elementwise")


def _dot_sums(each: Instruction, left: Array) -> int:
    contracted = _first(r'lhs_contracting_dim\w*"?[=:][\[{]([^\]}]*)', each.options)
    return math.prod(left.shape[int(axis.strip(' "'))] for axis in contracted.split(",") if axis.strip(' "'))


def _conv_sums(each: Instruction, kernel: Array) -> int:
    """How many products each result sums. A TPU writes a batched product as a convolution of a dilated image."""
    labels = _first(r"dim_labels=\w+_(\w+)->", each.options)
    sizes, dilations = (_first(rf"{name}=([\dx]+)", each.options) for name in (r"[{ ]size", "lhs_dilate"))
    window = [int(size) for size in sizes.split("x")] if sizes else []
    dilate = [int(size) for size in dilations.split("x")] if dilations else [1] * len(window)
    places = math.prod(-(-size // step) for size, step in zip(window, dilate, strict=True))
    return kernel.shape[labels.index("i")] * places


def parse_hlo(text: str) -> Module:
    """The computations of a program's text, as `compiled.as_text()` has it."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = "", {}
    for line in text.splitlines():
        if head := COMPUTATION.match(line):
            current = computations[head["name"]] = {}
            entry = head["name"] if head["entry"] else entry
        elif found := INSTRUCTION.match(line):
            inside, options = _split(found["rest"])
            operands = () if found["opcode"] in ("parameter", "constant") else tuple(re.findall(r"%([\w.-]+)", inside))
            options = inside if found["opcode"] == "parameter" else options
            current[found["name"]] = Instruction(
                found["name"], found["opcode"], _arrays(found["type"]), operands, options, bool(found["root"])
            )
    return Module(computations, entry)


def _split(rest: str) -> tuple[str, str]:
    """What is inside the brackets of an instruction, and what follows them."""
    depth = 1
    for place, letter in enumerate(rest):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return rest[:place], rest[place + 1 :]
    return rest, ""


@functools.lru_cache(maxsize=4096)
def _arrays(text: str) -> tuple[Array, ...]:
    return tuple(
        Array(dtype, tuple(map(int, filter(None, dims.split(",")))), bool(re.search(r"S\([1-9]", layout)))
        for dtype, dims, layout in SHAPE.findall(text)
    )


def _first(pattern: str | re.Pattern, text: str) -> str:
    found = re.search(pattern, text)
    return found[1] if found else ""
