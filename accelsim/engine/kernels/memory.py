"""Single bytes at addresses, and rounding: the instructions that Numba does not offer."""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic


@intrinsic
def byte_at(typingctx, address, index):  # type: ignore[no-untyped-def]
    """int8 at an address: inputs may be read-only arrays, which Numba would compile everything again for."""

    def generate(context, builder, _, values):  # type: ignore[no-untyped-def]
        return builder.load(builder.inttoptr(builder.add(*values), ir.IntType(8).as_pointer()))

    return types.int8(types.int64, types.int64), generate


@intrinsic
def put(typingctx, address, index, value):  # type: ignore[no-untyped-def]
    """Write an int8 to an address."""

    def generate(context, builder, _, values):  # type: ignore[no-untyped-def]
        address, index, value = values
        builder.store(value, builder.inttoptr(builder.add(address, index), ir.IntType(8).as_pointer()))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int8), generate


@intrinsic
def pointer(typingctx, address):  # type: ignore[no-untyped-def]
    """An address as what ``carray`` takes."""

    def generate(context, builder, _, values):  # type: ignore[no-untyped-def]
        return builder.inttoptr(values[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), generate


@intrinsic
def rint(typingctx, value):  # type: ignore[no-untyped-def]
    """float32 to the nearest integer, half to even, as a vector instruction."""

    def generate(context, builder, _, values):  # type: ignore[no-untyped-def]
        kind = ir.FloatType()
        module = builder.module
        name = "llvm.nearbyint.f32"
        function = module.globals.get(name) or ir.Function(module, ir.FunctionType(kind, [kind]), name)
        return builder.call(function, values)

    return types.float32(types.float32), generate


@njit(nogil=True, inline="always")
def number(byte, zero):  # type: ignore[no-untyped-def]
    """int32 of an activation's byte: an int8 where ``zero`` is 128, a uint8 where it is 0."""
    return np.int32(np.uint8(byte) ^ np.uint8(zero)) - np.int32(zero)
