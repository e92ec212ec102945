"""Vectors of sixteen numbers for numba kernels: one state of Mamba's usual sixteen is one vector.

LLVM's own vectoriser finds the loop over states, but keeps the state in memory, checks at every step whether arrays
overlap, and drops vectors altogether where many arrays are involved, as in the backward pass. So the kernels say what
they mean: `Lanes` is LLVM's <16 x float> (or double), held in as many registers as the processor needs, with +, -, *
and /, and the transcendental functions as polynomials. Multiplications and additions may be fused; nothing else is
relaxed, so NaN and infinity pass through as IEEE 754 says.
"""

# mypy: ignore-errors
# Kernels are in numba's dialect: compiled, intrinsics lose their first argument and arrays have other types.

from __future__ import annotations

import math
import operator

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_jitable, register_model

LANES = 16
LOG2_E = 1 / math.log(2)

_INT32 = ir.IntType(32)
_FLOAT = {32: ir.FloatType(), 64: ir.DoubleType()}
_INT = {32: ir.IntType(32), 64: ir.IntType(64)}
# 2^x on [-1/2, 1/2] with the constant term fixed to one, so that a decay close to one has the right rate: degree 5
# with the smallest relative error (9e-8) for float32, Taylor's series for float64; highest power first.
_EXP2 = {
    32: [0.001326472731307149, 0.009671512991189957, 0.05550733581185341, 0.24022242426872253, 0.6931470036506653, 1.0],
    64: [math.log(2) ** k / math.factorial(k) for k in range(13, -1, -1)],
}
_MANTISSA_BITS = {32: 23, 64: 52}
_BIAS = {32: 127, 64: 1023}
# Terms of atanh's series that log1p needs on [0, 1].
_LOG1P_TERMS = {32: 8, 64: 18}


class Lanes(types.Type):
    """Sixteen numbers of one floating-point type."""

    def __init__(self, dtype: types.Float) -> None:
        self.dtype = dtype
        super().__init__(name=f"Lanes({dtype})")


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager, lanes: Lanes) -> None:
        super().__init__(manager, lanes, _vector(lanes))


def _vector(lanes: Lanes) -> ir.VectorType:
    return ir.VectorType(_FLOAT[lanes.dtype.bitwidth], LANES)


def _constant(vector: ir.VectorType, value: float) -> ir.Constant:
    return ir.Constant(vector, [value] * LANES)


def _splat(builder, scalar):
    vector = ir.VectorType(scalar.type, LANES)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(_INT32, 0))
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(_INT32, LANES), [0] * LANES))


def _pointer(context, builder, array_type, array, index, vector):
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), vector.as_pointer())


@intrinsic
def load(typing_context, array, index):
    """Sixteen numbers from a contiguous array, from its element `index` on in memory order."""
    lanes = Lanes(array.dtype)

    def generate(context, builder, signature, arguments):
        value = builder.load(_pointer(context, builder, array, *arguments, _vector(lanes)))
        value.align = array.dtype.bitwidth // 8
        return value

    return lanes(array, types.intp), generate


@intrinsic
def store(typing_context, array, index, value):
    """Write sixteen numbers to a contiguous array, from its element `index` on in memory order."""

    def generate(context, builder, signature, arguments):
        pointer = _pointer(context, builder, array, *arguments[:2], _vector(value))
        builder.store(arguments[2], pointer).align = array.dtype.bitwidth // 8
        return context.get_dummy_value()

    return types.void(array, types.intp, value), generate


@intrinsic
def total(typing_context, value):
    """The sum of the sixteen numbers, as a balanced tree."""

    def generate(context, builder, signature, arguments):
        (vector,) = arguments
        for half in (8, 4, 2, 1):
            low = ir.Constant(ir.VectorType(_INT32, half), list(range(half)))
            high = ir.Constant(ir.VectorType(_INT32, half), list(range(half, 2 * half)))
            vector = builder.fadd(
                builder.shuffle_vector(vector, vector, low), builder.shuffle_vector(vector, vector, high)
            )
        return builder.extract_element(vector, ir.Constant(_INT32, 0))

    return value.dtype(value), generate


@intrinsic
def totals(typing_context, array):
    """Lane i is the sum of row i of sixteen rows that lie one after the other: a third of sixteen `total`s' work."""
    lanes = Lanes(array.dtype)

    def generate(context, builder, signature, arguments):
        rows = []
        for i in range(LANES):
            index = context.get_constant(types.intp, i * LANES)
            rows.append(builder.load(_pointer(context, builder, array, arguments[0], index, _vector(lanes))))
            rows[-1].align = array.dtype.bitwidth // 8

        def add(a, b, first, second):
            masks = [ir.Constant(ir.VectorType(_INT32, LANES), places) for places in (first, second)]
            return builder.fadd(*(builder.shuffle_vector(a, b, mask) for mask in masks))

        # Neighbours are added within quarters, which processors shuffle fastest, then quarter to quarter.
        even, odd = ([q + i + n for q in range(0, 16, 4) for n in (0, 16) for i in (k, k + 2)] for k in (0, 1))
        rows = [add(rows[i], rows[i + 1], even, odd) for i in range(0, 16, 2)]
        rows = [add(rows[i], rows[i + 1], even, odd) for i in range(0, 8, 2)]
        even, odd = ([n + q + i for n in (0, 16) for q in (k, k + 8) for i in range(4)] for k in (0, 4))
        rows = [add(rows[i], rows[i + 1], even, odd) for i in range(0, 4, 2)]
        return add(*rows, even, odd)

    return lanes(array), generate


@intrinsic
def backwards(typing_context, value):
    """The sixteen numbers in reverse."""

    def generate(context, builder, signature, arguments):
        mask = ir.Constant(ir.VectorType(_INT32, LANES), list(range(LANES - 1, -1, -1)))
        return builder.shuffle_vector(*arguments, ir.Constant(arguments[0].type, ir.Undefined), mask)

    return value(value), generate


def _arithmetic(name):
    @intrinsic
    def operation(typing_context, a, b):
        lanes = a if isinstance(a, Lanes) else b

        def generate(context, builder, signature, arguments):
            operands = [
                value if isinstance(kind, Lanes) else _splat(builder, context.cast(builder, value, kind, lanes.dtype))
                for kind, value in zip((a, b), arguments, strict=True)
            ]
            return getattr(builder, name)(*operands, flags=["contract"])

        return lanes(a, b), generate

    return operation


def _register(function, operation):
    @overload(function)
    def choose(a, b):
        if isinstance(a, Lanes) or isinstance(b, Lanes):
            return lambda a, b: operation(a, b)
        return None


for _function, _name in {
    operator.add: "fadd",
    operator.sub: "fsub",
    operator.mul: "fmul",
    operator.truediv: "fdiv",
}.items():
    _register(_function, _arithmetic(_name))


def _multiply_add(builder, x, y, z):
    name = f"llvm.fmuladd.v{LANES}f{_bits(x)}"
    return builder.call(
        cgutils.get_or_insert_function(builder.module, ir.FunctionType(x.type, [x.type] * 3), name), [x, y, z]
    )


def _bits(x):
    return 32 if x.type.element == _FLOAT[32] else 64


def _polynomial(builder, x, coefficients):
    value = _constant(x.type, coefficients[0])
    for coefficient in coefficients[1:]:
        value = _multiply_add(builder, value, x, _constant(x.type, coefficient))
    return value


def _power(builder, x, factor=None):
    """2^(factor x), factor one where None: exactly 0 far below the range, infinity above it, NaN for NaN.

    Adding 1.5 * 2^mantissa bits rounds to the nearest integer and leaves that integer in the low bits, from where it is
    shifted into the exponent; the polynomial does the rest. The bounds give the bit patterns of 0 and of infinity.
    """
    bits = _bits(x)
    integers = ir.VectorType(_INT[bits], LANES)
    low, high = (_constant(x.type, bound / (factor or 1)) for bound in (-_BIAS[bits], _BIAS[bits] + 1))
    # In this order of operands NaN survives.
    x = builder.select(builder.fcmp_ordered("<", x, low), low, x)
    x = builder.select(builder.fcmp_ordered(">", x, high), high, x)
    shifter = _constant(x.type, 1.5 * 2.0 ** _MANTISSA_BITS[bits])
    if factor is None:
        shifted = builder.fadd(x, shifter)
        rest = builder.fsub(x, builder.fsub(shifted, shifter))
    else:
        # The fused product keeps the digits that a rounded factor x would lose, and the factor's own rounding follows.
        rounded = float(np.float32(factor)) if bits == 32 else factor
        multiplier = _constant(x.type, rounded)
        shifted = _multiply_add(builder, x, multiplier, shifter)
        rest = _multiply_add(builder, x, multiplier, builder.fneg(builder.fsub(shifted, shifter)))
        rest = _multiply_add(builder, x, _constant(x.type, factor - rounded), rest)
    exponent = builder.shl(builder.bitcast(shifted, integers), ir.Constant(integers, [_MANTISSA_BITS[bits]] * LANES))
    one = ir.Constant(integers, [_BIAS[bits] << _MANTISSA_BITS[bits]] * LANES)
    power = builder.bitcast(builder.add(exponent, one), x.type)
    return builder.fmul(_polynomial(builder, rest, _EXP2[bits]), power)


@intrinsic
def exp2(typing_context, value):
    """2^x."""
    return value(value), lambda context, builder, signature, arguments: _power(builder, *arguments)


@intrinsic
def exp(typing_context, value):
    """e^x, with a smaller error for large x than 2^(x log2 e)."""
    return value(value), lambda context, builder, signature, arguments: _power(builder, *arguments, factor=LOG2_E)


@intrinsic
def _log1p(typing_context, value):
    """log(1 + x) for x in [0, 1], as 2 atanh(x / (2 + x))."""
    bits = value.dtype.bitwidth

    def generate(context, builder, signature, arguments):
        (x,) = arguments
        s = builder.fdiv(x, builder.fadd(x, _constant(x.type, 2.0)))
        series = _polynomial(
            builder, builder.fmul(s, s), [2 / (2 * k + 1) for k in range(_LOG1P_TERMS[bits] - 1, -1, -1)]
        )
        return builder.fmul(s, series)

    return value(value), generate


@intrinsic
def _positive_and_minus_magnitude(typing_context, value):
    """max(x, 0) and -|x|."""
    pair = types.UniTuple(value, 2)

    def generate(context, builder, signature, arguments):
        (x,) = arguments
        zero = _constant(x.type, 0.0)
        negative = builder.fcmp_ordered("<", x, zero)
        positive = builder.select(negative, zero, x)
        return context.make_tuple(builder, pair, [positive, builder.select(negative, x, builder.fneg(x))])

    return pair(value), generate


@intrinsic
def without_tiny(typing_context, value):
    """Numbers below 1e-30 in magnitude become zero: arithmetic on subnormal numbers is a hundred times slower."""

    def generate(context, builder, signature, arguments):
        (x,) = arguments
        name = f"llvm.fabs.v{LANES}f{value.dtype.bitwidth}"
        absolute = cgutils.get_or_insert_function(builder.module, ir.FunctionType(x.type, [x.type]), name)
        tiny = builder.fcmp_ordered("<", builder.call(absolute, [x]), _constant(x.type, 1e-30))
        return builder.select(tiny, _constant(x.type, 0.0), x)

    return value(value), generate


@register_jitable
def softplus(x):
    """log(1 + e^x), without overflow and with full relative precision for very negative x."""
    positive, minus_magnitude = _positive_and_minus_magnitude(x)
    return positive + _log1p(exp(minus_magnitude))


@register_jitable
def sigmoid(x):
    """1 / (1 + e^-x)."""
    return 1.0 / (exp(x * -1.0) + 1.0)
