"""Four inner loops in LLVM IR, for processors with AVX-512 VNNI: what Numba's own vectoriser cannot reach.

VPDPBUSD multiplies 64 unsigned bytes by 64 signed ones and adds them, four by four, to 16 int32 lanes, exactly.
Signed activations become unsigned by adding 128 (flipping bit 7); the layer's start value takes 128 * sum(w) off again.
Addresses are plain integers; the callers in ``accelsim.engine.kernels`` keep the arrays alive and in bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite import binding, ir
from numba.core import config, types
from numba.extending import intrinsic

LANES = 16
_I1, _I8, _I16, _I32, _I64 = (ir.IntType(n) for n in (1, 8, 16, 32, 64))
_F32 = ir.FloatType()
_V16I8, _V64I8 = ir.VectorType(_I8, 16), ir.VectorType(_I8, 64)
_V16I32, _V16F32 = ir.VectorType(_I32, 16), ir.VectorType(_F32, 16)

_FEATURES = ("avx512f", "avx512bw", "avx512vl", "avx512vnni")


def missing() -> str:
    """Why these loops cannot run here, or the empty string if they can."""
    if config.CPU_NAME or config.CPU_FEATURES is not None:
        return "NUMBA_CPU_NAME or NUMBA_CPU_FEATURES is set"
    features = binding.get_host_cpu_features()
    absent = [name for name in _FEATURES if not features.get(name, False)]
    return f"this processor has no {', '.join(absent)}" if absent else ""


def _void(arguments: int, emit: Callable[[ir.IRBuilder, list[ir.Value]], None]) -> Any:
    """An intrinsic's (signature, code generator): int64 ``arguments``, nothing returned."""
    signature = types.void(*([types.int64] * arguments))

    def generate(context: Any, builder: ir.IRBuilder, _: Any, values: list[ir.Value]) -> ir.Value:
        emit(builder, values)
        return context.get_dummy_value()

    return signature, generate


def _const(value: int, kind: ir.Type = _I64) -> ir.Constant:
    return ir.Constant(kind, value)


def _fill(value: int | float, kind: ir.VectorType) -> ir.Constant:
    return ir.Constant(kind, [ir.Constant(kind.element, value)] * kind.count)


def _load(b: ir.IRBuilder, address: ir.Value, kind: ir.Type) -> ir.Value:
    value = b.load(b.inttoptr(address, kind.as_pointer()), typ=kind)
    value.align = 1
    return value


def _store(b: ir.IRBuilder, value: ir.Value, address: ir.Value) -> None:
    b.store(value, b.inttoptr(address, value.type.as_pointer()), align=1)


def _splat(b: ir.IRBuilder, value: ir.Value, kind: ir.VectorType) -> ir.Value:
    one = b.insert_element(ir.Constant(kind, ir.Undefined), value, _const(0, _I32))
    return b.shuffle_vector(one, ir.Constant(kind, ir.Undefined), _fill(0, ir.VectorType(_I32, kind.count)))


def _call(b: ir.IRBuilder, name: str, result: ir.Type, *values: ir.Value) -> ir.Value:
    kind = ir.FunctionType(result, [v.type for v in values])
    module = b.module
    function = module.globals.get(name) or ir.Function(module, kind, name)
    return b.call(function, values)


def _lanes(b: ir.IRBuilder, count: ir.Value, lanes: int) -> ir.Value:
    """Mask of the first ``count`` lanes."""
    kind = ir.VectorType(_I32, lanes)
    numbers = ir.Constant(kind, [_const(i, _I32) for i in range(lanes)])
    return b.icmp_signed("<", numbers, _splat(b, b.trunc(count, _I32), kind))


@contextmanager
def _loop(
    b: ir.IRBuilder, count: ir.Value, carried: list[ir.Value], step: int = 1
) -> Iterator[tuple[ir.Value, list[ir.Value], list[ir.Value]]]:
    """``for i in range(0, count, step)``, count > 0. Yields i, the carried values, and a list for their successors.

    Behind the loop that list holds the final values.
    """
    before, body, after = b.block, b.append_basic_block("body"), b.append_basic_block("after")
    b.branch(body)
    b.position_at_end(body)
    i = b.phi(_I64)
    i.add_incoming(_const(0), before)
    phis = [b.phi(v.type) for v in carried]
    for phi, value in zip(phis, carried, strict=True):
        phi.add_incoming(value, before)
    following: list[ir.Value] = []
    yield i, list(phis), following
    end = b.block
    i_next = b.add(i, _const(step))
    i.add_incoming(i_next, end)
    for phi, value in zip(phis, following, strict=True):
        phi.add_incoming(value, end)
    b.cbranch(b.icmp_signed("<", i_next, count), body, after)
    b.position_at_end(after)


def _dot4(b: ir.IRBuilder, acc: ir.Value, unsigned: ir.Value, signed: ir.Value) -> ir.Value:
    """acc + sum of four products in each lane (VPDPBUSD)."""
    name = "llvm.x86.avx512.vpdpbusd.512"
    if binding.llvm_version_info[0] >= 22:
        return _call(b, name, _V16I32, acc, b.bitcast(unsigned, _V64I8), b.bitcast(signed, _V64I8))
    return _call(b, name, _V16I32, acc, unsigned, signed)


def _multiply(rows: int, blocks: int) -> Any:
    """``(a, a_stride, b, b_stride, start, c, c_stride, quads)``: c[rows, 16*blocks] = start + a @ b, in int32.

    a: uint8, rows ``a_stride`` bytes apart, 4*quads columns. b: int8, blocks ``b_stride`` bytes apart, each
    [quads][16][4]. start: int32 [16*blocks]. c: rows ``c_stride`` bytes apart.
    """

    @intrinsic
    def multiply(typingctx: Any, a: Any, sa: Any, b_: Any, sb: Any, start: Any, c: Any, sc: Any, quads: Any) -> Any:
        def emit(b: ir.IRBuilder, values: list[ir.Value]) -> None:
            a, sa, w, sw, start, c, sc, quads = values
            row = [b.add(a, b.mul(sa, _const(i))) for i in range(rows)]
            block = [b.add(w, b.mul(sw, _const(j))) for j in range(blocks)]
            first = [_load(b, b.add(start, _const(64 * j)), _V16I32) for j in range(blocks)]
            with _loop(b, quads, first * rows) as (k, acc, following):
                at_b = b.mul(k, _const(64))
                at_a = b.mul(k, _const(4))
                columns = [_load(b, b.add(address, at_b), _V16I32) for address in block]
                for i in range(rows):
                    x = _splat(b, _load(b, b.add(row[i], at_a), _I32), _V16I32)
                    following += [_dot4(b, acc[i * blocks + j], x, columns[j]) for j in range(blocks)]
            for i in range(rows):
                for j in range(blocks):
                    address = b.add(c, b.add(b.mul(sc, _const(i)), _const(64 * j)))
                    _store(b, following[i * blocks + j], address)

        return _void(8, emit)

    return multiply


# Rows and blocks fill the 32 vector registers; every row count divides ROWS.
ROWS = 24
multiply_6x4 = _multiply(6, 4)
multiply_8x3 = _multiply(8, 3)
multiply_12x2 = _multiply(12, 2)
multiply_24x1 = _multiply(24, 1)


@intrinsic
def copy_xor(typingctx: Any, to: Any, source: Any, count: Any, flip: Any) -> Any:
    """``(to, source, count, flip)``: copies bytes, each xor ``flip``; count > 0.

    Writes whole 64-byte blocks (so leave that much room), and reads no byte too many.
    """

    def emit(b: ir.IRBuilder, values: list[ir.Value]) -> None:
        to, source, count, flip = values
        _copy_blocks(b, to, source, count, _splat(b, b.trunc(flip, _I8), _V64I8))

    return _void(4, emit)


def _copy_blocks(b: ir.IRBuilder, to: ir.Value, source: ir.Value, count: ir.Value, flips: ir.Value | None) -> None:
    with _loop(b, count, [], step=64) as (i, _, _):
        left = b.sub(count, i)
        some = b.sub(b.shl(_const(1), b.and_(left, _const(63))), _const(1))
        mask = b.select(b.icmp_signed(">=", left, _const(64)), _const(-1), some)
        address = b.inttoptr(b.add(source, i), _V64I8.as_pointer())
        x = _masked_load(b, address, b.bitcast(mask, ir.VectorType(_I1, 64)))
        _store(b, x if flips is None else b.xor(x, flips), b.add(to, i))


@intrinsic
def move(typingctx: Any, to: Any, source: Any, count: Any) -> Any:
    """``(to, source, count)``: copies exactly ``count`` bytes that do not overlap."""

    def emit(b: ir.IRBuilder, values: list[ir.Value]) -> None:
        to, source, count = values
        places = [b.inttoptr(v, _I8.as_pointer()) for v in (to, source)]
        _call(b, "llvm.memcpy.p0.p0.i64", ir.VoidType(), *places, count, _const(0, _I1))

    return _void(3, emit)


@intrinsic
def copy(typingctx: Any, to: Any, source: Any, count: Any) -> Any:
    """``copy_xor`` of 0."""

    def emit(b: ir.IRBuilder, values: list[ir.Value]) -> None:
        to, source, count = values
        _copy_blocks(b, to, source, count, None)

    return _void(3, emit)


@intrinsic
def requantise(typingctx: Any, acc: Any, multiplier: Any, low: Any, high: Any, shift: Any, y: Any, count: Any) -> Any:
    """``(acc, multiplier, low, high, shift, y, count)``: y[i] = clamp(v - shift, low, high[i]) + shift.

    Here v is rint(f32(acc[i]) * multiplier[i]); ``shift`` is 0 where y is int8, 128 where it is uint8; ``low``, and ``high``
    (int8, by address) are bounds of the lessened value.
    ``acc``, ``multiplier`` and ``high`` are readable up to the next multiple of 16; ``y`` is written to its end only.
    """

    def emit(b: ir.IRBuilder, values: list[ir.Value]) -> None:
        acc, multiplier, low, high, shift, y, count = values
        low8, shift8 = b.trunc(low, _I8), b.trunc(shift, _I8)
        words_shift = _splat(b, b.trunc(shift, _I16), ir.VectorType(_I16, 32))
        integers_shift = _splat(b, b.trunc(shift, _I32), _V16I32)

        def integers(i: ir.Value) -> ir.Value:
            """Rounded half to even, saturated to int32."""
            at = b.mul(i, _const(4))
            value = b.sitofp(_load(b, b.add(acc, at), _V16I32), _V16F32)
            value = b.fmul(value, _load(b, b.add(multiplier, at), _V16F32))
            # What is too large converts to the lowest integer, right for the negative side alone.
            most = _fill(2.0**30, _V16F32)
            value = b.select(b.fcmp_ordered("<", value, most), value, most)
            nearest = _const(8, _I32)
            return _call(b, "llvm.x86.avx512.mask.cvtps2dq.512", _V16I32, value, _fill(0, _V16I32), _const(-1, _I16), nearest)

        def clamp(bytes_: ir.Value, i: ir.Value) -> ir.Value:
            """Within the bounds, and back to the output's own numbers."""
            kind = bytes_.type
            lowest, highest = _splat(b, low8, kind), _load(b, b.add(high, i), kind)
            bytes_ = b.select(b.icmp_signed(">", bytes_, lowest), bytes_, lowest)
            bytes_ = b.select(b.icmp_signed("<", bytes_, highest), bytes_, highest)
            return b.xor(bytes_, _splat(b, shift8, kind))

        # Packing saturates twice, within 128-bit quarters; the permutation puts the quarters' parts in order.
        order = ir.Constant(_V16I32, [_const(4 * (i % 4) + i // 4, _I32) for i in range(16)])
        whole = b.and_(count, _const(-64))
        with b.if_then(b.icmp_signed(">", whole, _const(0))), _loop(b, whole, [], step=64) as (i, _, _):
            parts = [integers(b.add(i, _const(16 * j))) for j in range(4)]
            words = [_call(b, "llvm.x86.avx512.packssdw.512", ir.VectorType(_I16, 32), *parts[j : j + 2]) for j in (0, 2)]
            words = [_call(b, "llvm.ssub.sat.v32i16", ir.VectorType(_I16, 32), word, words_shift) for word in words]
            packed = _call(b, "llvm.x86.avx512.packsswb.512", _V64I8, *words)
            ordered = _call(b, "llvm.x86.avx512.permvar.si.512", _V16I32, b.bitcast(packed, _V16I32), order)
            _store(b, clamp(b.bitcast(ordered, _V64I8), i), b.add(y, i))

        def narrow(i: ir.Value) -> ir.Value:
            whole, least = integers(i), _fill(-(2**30), _V16I32)
            whole = b.sub(b.select(b.icmp_signed(">", whole, least), whole, least), integers_shift)
            lanes = _call(b, "llvm.x86.avx512.mask.pmovs.db.512", _V16I8, whole, _fill(0, _V16I8), _const(-1, _I16))
            return clamp(lanes, i)

        rest = b.and_(count, _const(48))
        with b.if_then(b.icmp_signed(">", rest, _const(0))), _loop(b, rest, [], step=LANES) as (j, _, _):
            i = b.add(whole, j)
            _store(b, narrow(i), b.add(y, i))
        last = b.and_(count, _const(LANES - 1))
        with b.if_then(b.icmp_signed(">", last, _const(0))):
            i = b.add(whole, rest)
            _masked_store(b, narrow(i), b.inttoptr(b.add(y, i), _V16I8.as_pointer()), _lanes(b, last, LANES))

    return _void(7, emit)


@intrinsic
def add_scaled(typingctx: Any, acc: Any, w: Any, stride: Any, shift: Any, delta: Any, blocks: Any) -> Any:
    """``(acc, w, stride, shift, delta, blocks)``: int32 acc[16*j + i] += delta * int8 weight, for one input value.

    ``w`` is the address of the value's quad in block 0, blocks ``stride`` bytes apart; ``shift`` = 24 - 8 * (k % 4).
    """

    def emit(b: ir.IRBuilder, values: list[ir.Value]) -> None:
        acc, w, stride, shift, delta, blocks = values
        shifts, deltas = (_splat(b, b.trunc(v, _I32), _V16I32) for v in (shift, delta))
        with _loop(b, blocks, []) as (j, _, _):
            quad = _load(b, b.add(w, b.mul(j, stride)), _V16I32)
            byte = b.ashr(b.shl(quad, shifts), _fill(24, _V16I32))
            address = b.add(acc, b.mul(j, _const(64)))
            _store(b, b.add(_load(b, address, _V16I32), b.mul(byte, deltas)), address)

    return _void(6, emit)


CORRECTED_ROWS = 12


@intrinsic
def add_quads(typingctx: Any, a: Any, sa: Any, at: Any, quads: Any, count: Any, start: Any, c: Any, sc: Any) -> Any:
    """``(a, a_stride, at, quads, count, start, c, c_stride)``: what some weights add to one block of 16 channels.

    c[i] += start + sum over f < count of the four products of uint8 a[i, at[f]:at[f]+4] and int8 quads[f], for
    CORRECTED_ROWS rows; ``at`` int64, ``quads`` [count][16][4], ``start`` int32 [16], strides in bytes, count > 0.
    """

    def emit(b: ir.IRBuilder, values: list[ir.Value]) -> None:
        a, sa, at, quads, count, start, c, sc = values
        first = _load(b, start, _V16I32)
        rows = [b.add(a, b.mul(sa, _const(i))) for i in range(CORRECTED_ROWS)]
        places = [b.add(c, b.mul(sc, _const(i))) for i in range(CORRECTED_ROWS)]
        sums = [b.add(_load(b, place, _V16I32), first) for place in places]
        with _loop(b, count, sums) as (f, acc, following):
            quad = _load(b, b.add(quads, b.mul(f, _const(64))), _V16I32)
            offset = _load(b, b.add(at, b.mul(f, _const(8))), _I64)
            for i in range(CORRECTED_ROWS):
                x = _splat(b, _load(b, b.add(rows[i], offset), _I32), _V16I32)
                following.append(_dot4(b, acc[i], x, quad))
        for i in range(CORRECTED_ROWS):
            _store(b, following[i], places[i])

    return _void(8, emit)


DEPTHWISE_PIXELS = 4


@intrinsic
def depthwise(
    typingctx: Any, x: Any, step: Any, at: Any, taps: Any, w: Any, sw: Any, start: Any, c: Any, sc: Any, count: Any, zero: Any
) -> Any:
    """``(x, step, at, taps, w, w_stride, start, c, c_stride, count, zero)``: 16 channels of ``count`` pixels of a row.

    c[p] = start + sum over t < taps of x[p * step + at[t]] * w[t]; x int8 where ``zero`` is 128, uint8 where it is 0.
    ``at``: int64 byte offsets. w: int32 [taps], rows ``w_stride`` bytes apart. c: int32, rows ``c_stride`` bytes apart;
    DEPTHWISE_PIXELS at a time are read and written.
    """

    def emit(b: ir.IRBuilder, values: list[ir.Value]) -> None:
        x, step, at, taps, w, sw, start, c, sc, count, zero = values
        first = _load(b, start, _V16I32)
        # (byte xor 128) - 128 is the int8's number, (byte xor 0) - 0 the uint8's.
        flip, less = _splat(b, b.trunc(zero, _I8), _V16I8), _splat(b, b.trunc(zero, _I32), _V16I32)
        with _loop(b, count, [], step=DEPTHWISE_PIXELS) as (p, _, _):
            source = b.add(x, b.mul(p, step))
            with _loop(b, taps, [first] * DEPTHWISE_PIXELS) as (t, acc, following):
                weight = _load(b, b.add(w, b.mul(t, sw)), _V16I32)
                tap = b.add(source, _load(b, b.add(at, b.mul(t, _const(8))), _I64))
                for i in range(DEPTHWISE_PIXELS):
                    byte = b.xor(_load(b, b.add(tap, b.mul(step, _const(i))), _V16I8), flip)
                    value = b.sub(b.zext(byte, _V16I32), less)
                    following.append(_dot2(b, acc[i], value, weight))
            for i in range(DEPTHWISE_PIXELS):
                _store(b, following[i], b.add(c, b.mul(sc, b.add(p, _const(i)))))

    return _void(11, emit)


def _dot2(b: ir.IRBuilder, acc: ir.Value, x: ir.Value, w: ir.Value) -> ir.Value:
    """acc + sum of two int16 products in each lane (VPDPWSSD)."""
    name, kind = "llvm.x86.avx512.vpdpwssd.512", ir.VectorType(_I16, 32)
    if binding.llvm_version_info[0] >= 22:
        return _call(b, name, _V16I32, acc, b.bitcast(x, kind), b.bitcast(w, kind))
    return _call(b, name, _V16I32, acc, x, w)


def _masked_load(b: ir.IRBuilder, address: ir.Value, mask: ir.Value) -> ir.Value:
    if binding.llvm_version_info[0] >= 22:
        return _call(b, "llvm.masked.load.v64i8.p0", _V64I8, address, mask, _fill(0, _V64I8))
    return _call(b, "llvm.masked.load.v64i8.p0", _V64I8, address, _const(1, _I32), mask, _fill(0, _V64I8))


def _masked_store(b: ir.IRBuilder, value: ir.Value, address: ir.Value, mask: ir.Value) -> None:
    if binding.llvm_version_info[0] >= 22:
        _call(b, "llvm.masked.store.v16i8.p0", ir.VoidType(), value, address, mask)
    else:
        _call(b, "llvm.masked.store.v16i8.p0", ir.VoidType(), value, address, _const(1, _I32), mask)
