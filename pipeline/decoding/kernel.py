"""Two machine-code functions, one per pass of a resize, written in LLVM's language and compiled at start.

They repeat Pillow's integer arithmetic: each sample is the sum of 8-bit samples times coefficients of `PRECISION_BITS`
fractional bits, plus one half, shifted and clipped to 8 bits. Sums of integers do not depend on their order, so that
vectors give the bits of Pillow's loops. Compiling takes some 50 ms and needs no file; see `docs/decisions/0027`.

An image is an array of pixels of four bytes, R, G, B and one that is ignored, as Pillow stores it.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import llvmlite.binding as llvm
from llvmlite import ir

from pipeline.decoding.coefficients import PRECISION_BITS

if TYPE_CHECKING:
    from collections.abc import Callable

ROWS = 8
"""Rows that `across` computes at once, and the least width and height of an image."""
LANES = 64
"""Bytes that `down` computes at once, a multiple of 4; the least width of its rows."""

_BYTE, _INT32, _INT64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
_POINTER = ir.PointerType()


@dataclass(frozen=True, slots=True)
class Kernel:
    """The compiled functions; both release the interpreter's lock.

    Attributes
    ----------
    across : callable
        ``(source, stride, rows, width, block, starts, coefficients, taps, columns, out, out_stride)``: resize rows of
        ``width`` pixels to ``columns`` pixels of three bytes (`across_rgb`) or four (`across`). Column j is the sum
        over ``taps`` pixels from ``starts[j]`` on. ``block`` is room for ``ROWS × width`` pixels. Addresses and sizes
        are integers, strides count bytes.
    down : callable
        ``(source, stride, width, starts, coefficients, taps, rows, out, out_stride)``: the same for columns.
    """

    across: Callable[..., None]
    across_rgb: Callable[..., None]
    down: Callable[..., None]
    down_rgb: Callable[..., None]
    _engine: Any = field(repr=False)  # owns the machine code


def compile_kernel() -> Kernel:
    """Compile for this processor.

    Raises
    ------
    Exception
        LLVM does not know the processor, or refuses the code.
    """
    module = ir.Module("resample")
    for name, channels in (("across", 4), ("across_rgb", 3)):
        _define_across(module, name, channels)
    for name, channels in (("down", 4), ("down_rgb", 3)):
        _define_down(module, name, channels)
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3
    )
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(str(module)), target)
    engine.finalize_object()

    def function(name: str, arguments: int) -> Callable[..., None]:
        prototype = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * arguments)
        return prototype(engine.get_function_address(name))

    return Kernel(
        function("across", 11), function("across_rgb", 11), function("down", 9), function("down_rgb", 9), engine
    )


def _define_across(module: ir.Module, name: str, channels: int) -> None:
    """Define `Kernel.across`: blocks are transposed, so that one vector holds a pixel of each of `ROWS` rows."""
    builder, arguments = _function(module, name, 11)
    source, stride, rows, width, block, starts, coefficients, taps, columns, out, out_stride = arguments
    pixel = 4 * ROWS  # bytes of one pixel of all rows

    def rows_at_once(turn: ir.Value) -> None:
        row = _begin(builder, turn, rows, ROWS)
        first = builder.add(source, builder.mul(row, stride))
        first_out = builder.add(out, builder.mul(row, out_stride))
        _each(builder, _turns(builder, width, ROWS), lambda turn: transpose(first, turn))
        _each(builder, columns, lambda column: one_column(first_out, column))

    def transpose(first: ir.Value, turn: ir.Value) -> None:
        column = _begin(builder, turn, width, ROWS)
        place = builder.add(first, builder.mul(column, _int(4)))
        lines = [
            _load(builder, ir.VectorType(_INT32, ROWS), builder.add(place, builder.mul(stride, _int(r))))
            for r in range(ROWS)
        ]
        target = builder.add(block, builder.mul(column, _int(pixel)))
        for number, line in enumerate(_transposed(builder, lines)):
            _store(builder, line, builder.add(target, _int(number * pixel)))

    def one_column(first_out: ir.Value, column: ir.Value) -> None:
        place = builder.add(block, builder.mul(_int_at(builder, starts, column), _int(pixel)))
        sums = _weighted_sum(builder, place, _int(pixel), coefficients, column, taps, pixel)
        target = builder.add(first_out, builder.mul(column, _int(channels)))
        for r in range(ROWS):
            lanes = [4 * r + c for c in range(channels)]
            _store(builder, _pick(builder, sums, lanes), builder.add(target, builder.mul(out_stride, _int(r))))

    _each(builder, _turns(builder, rows, ROWS), rows_at_once)
    builder.ret_void()


def _define_down(module: ir.Module, name: str, channels: int) -> None:
    """Define `Kernel.down`: one vector holds `LANES` neighbouring bytes of a row."""
    builder, arguments = _function(module, name, 9)
    source, stride, width, starts, coefficients, taps, rows, out, out_stride = arguments
    pixels = LANES // 4

    def one_row(row: ir.Value) -> None:
        first = builder.add(source, builder.mul(_int_at(builder, starts, row), stride))
        first_out = builder.add(out, builder.mul(row, out_stride))
        _each(builder, _turns(builder, width, pixels), lambda turn: some_columns(row, first, first_out, turn))

    def some_columns(row: ir.Value, first: ir.Value, first_out: ir.Value, turn: ir.Value) -> None:
        column = _begin(builder, turn, width, pixels)
        place = builder.add(first, builder.mul(column, _int(4)))
        sums = _weighted_sum(builder, place, stride, coefficients, row, taps, LANES)
        lanes = [lane for lane in range(LANES) if lane % 4 < channels]
        _store(builder, _pick(builder, sums, lanes), builder.add(first_out, builder.mul(column, _int(channels))))

    _each(builder, rows, one_row)
    builder.ret_void()


def _weighted_sum(
    builder: ir.IRBuilder, place: ir.Value, step: ir.Value, coefficients: ir.Value, line: ir.Value, taps: ir.Value,
    lanes: int,
) -> ir.Value:  # fmt: skip
    """Return the bytes Σ coefficient[line, tap] × byte[place + tap × step], rounded and clipped."""
    wide = ir.VectorType(_INT32, lanes)
    weights = builder.mul(line, taps)

    def add(tap: ir.Value, total: ir.Value) -> ir.Value:
        weight = _load(builder, _INT32, builder.add(coefficients, builder.mul(builder.add(weights, tap), _int(4))))
        samples = _load(builder, ir.VectorType(_BYTE, lanes), builder.add(place, builder.mul(tap, step)))
        return builder.add(total, builder.mul(builder.zext(samples, wide), _splat(builder, weight, wide)))

    total = _fold(builder, taps, add, ir.Constant(wide, [1 << (PRECISION_BITS - 1)] * lanes))
    total = builder.ashr(total, ir.Constant(wide, [PRECISION_BITS] * lanes))
    for limit, relation in ((0, ">"), (255, "<")):
        bound = ir.Constant(wide, [limit] * lanes)
        total = builder.select(builder.icmp_signed(relation, total, bound), total, bound)
    return builder.trunc(total, ir.VectorType(_BYTE, lanes))


def _transposed(builder: ir.IRBuilder, lines: list[ir.Value]) -> list[ir.Value]:
    """Transpose a square of vectors: log2(n) rounds of interleaving line i with line i + n/2."""
    half = len(lines) // 2
    low = [n for pair in zip(range(half), range(2 * half, 3 * half), strict=True) for n in pair]
    for _ in range(half.bit_length()):
        lines = [
            _shuffle(builder, lines[i], lines[i + half], [n + upper for n in low])
            for i in range(half)
            for upper in (0, half)
        ]
    return lines


# ---- what the builder lacks ----


def _function(module: ir.Module, name: str, arguments: int) -> tuple[ir.IRBuilder, list[ir.Value]]:
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [_INT64] * arguments), name)
    return ir.IRBuilder(function.append_basic_block()), list(function.args)


def _fold(
    builder: ir.IRBuilder, count: ir.Value, body: Callable[[ir.Value, ir.Value], ir.Value], start: ir.Value
) -> ir.Value:
    """Return ``start`` after ``body(i, value)`` for i in 0 … count - 1; count is 1 at least."""
    before, loop = builder.block, builder.append_basic_block()
    after = builder.append_basic_block()
    builder.branch(loop)
    builder.position_at_end(loop)
    index, value = builder.phi(_INT64), builder.phi(start.type)
    index.add_incoming(_int(0), before)
    value.add_incoming(start, before)
    result = body(index, value)
    following = builder.add(index, _int(1))
    index.add_incoming(following, builder.block)
    value.add_incoming(result, builder.block)
    builder.cbranch(builder.icmp_signed("<", following, count), loop, after)
    builder.position_at_end(after)
    return result


def _each(builder: ir.IRBuilder, count: ir.Value, body: Callable[[ir.Value], None]) -> None:
    """Run ``body(i)`` for i in 0 … count - 1; count is 1 at least."""

    def step(index: ir.Value, value: ir.Value) -> ir.Value:
        body(index)
        return value

    _fold(builder, count, step, _int(0))


def _turns(builder: ir.IRBuilder, length: ir.Value, step: int) -> ir.Value:
    return builder.sdiv(builder.add(length, _int(step - 1)), _int(step))


def _begin(builder: ir.IRBuilder, turn: ir.Value, length: ir.Value, step: int) -> ir.Value:
    """Return where a turn begins: the last one ends with ``length``, and repeats some of the one before."""
    begin, last = builder.mul(turn, _int(step)), builder.sub(length, _int(step))
    return builder.select(builder.icmp_signed("<", begin, last), begin, last)


def _int(value: int) -> ir.Constant:
    return ir.Constant(_INT64, value)


def _int_at(builder: ir.IRBuilder, array: ir.Value, index: ir.Value) -> ir.Value:
    return builder.sext(_load(builder, _INT32, builder.add(array, builder.mul(index, _int(4)))), _INT64)


def _load(builder: ir.IRBuilder, what: ir.Type, address: ir.Value) -> ir.Value:
    return builder.load(builder.inttoptr(address, _POINTER), typ=what, align=1)


def _store(builder: ir.IRBuilder, value: ir.Value, address: ir.Value) -> None:
    builder.store(value, builder.inttoptr(address, _POINTER), align=1)


def _splat(builder: ir.IRBuilder, value: ir.Value, vector: ir.VectorType) -> ir.Value:
    undefined = ir.Constant(vector, ir.Undefined)
    return _shuffle(
        builder, builder.insert_element(undefined, value, ir.Constant(_INT32, 0)), undefined, [0] * vector.count
    )


def _pick(builder: ir.IRBuilder, vector: ir.Value, lanes: list[int]) -> ir.Value:
    return _shuffle(builder, vector, ir.Constant(vector.type, ir.Undefined), lanes)


def _shuffle(builder: ir.IRBuilder, one: ir.Value, other: ir.Value, lanes: list[int]) -> ir.Value:
    return builder.shuffle_vector(one, other, ir.Constant(ir.VectorType(_INT32, len(lanes)), lanes))
