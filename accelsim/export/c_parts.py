"""The C of each layer type: the specification of ``accelsim.int8.network`` once more, for ``c_header``."""

from __future__ import annotations

from typing import Final

PROLOGUE: Final = r"""
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(FLT_EVAL_METHOD) && FLT_EVAL_METHOD != 0
#error "floats must be computed as floats: on x86 compile with -msse2 -mfpmath=sse"
#endif
#ifndef R2F_INT8_NETWORK
#define R2F_INT8_NETWORK
typedef struct { int h, w, c, is_signed; } r2f_shape;
static inline int r2f_at(const uint8_t *x, r2f_shape s, int i) { return s.is_signed ? (int)(int8_t)x[i] : (int)x[i]; }
static inline int r2f_size(r2f_shape s) { return s.h * s.w * s.c; }
static inline int r2f_clamped(float value, int low, int high)
{
    value = value < (float)low ? (float)low : value;
    return (int)(value > (float)high ? (float)high : value);
}
#endif
""".strip("\n")
"""What every header begins with."""


def _guarded(kind: str, body: str) -> str:
    """Two networks in one program have their layers' functions once."""
    return f"#ifndef R2F_{kind.upper()}\n#define R2F_{kind.upper()}\n{body.strip()}\n#endif"


PARTS: Final = {
    kind: _guarded(kind, body)
    for kind, body in {
        "Conv": r"""
static inline void r2f_conv(const uint8_t *x, r2f_shape in, uint8_t *y, r2f_shape out, const int8_t *weight,
                            const int32_t *bias, const float *multiplier, const int16_t *high, int low, int rows, int columns,
                            int sy, int sx, int py, int px, int dy, int dx, int groups)
{
    const int inputs = in.c / groups, outputs = out.c / groups;
    for (int h = 0; h < out.h; h++)
        for (int w = 0; w < out.w; w++)
            for (int o = 0; o < out.c; o++) {
                int32_t sum = bias[o];
                for (int r = 0; r < rows; r++) {
                    const int a = h * sy - py + r * dy;
                    if (a < 0 || a >= in.h) continue;
                    for (int s = 0; s < columns; s++) {
                        const int b = w * sx - px + s * dx;
                        if (b < 0 || b >= in.w) continue;
                        const int first = (a * in.w + b) * in.c + o / outputs * inputs;
                        for (int i = 0; i < inputs; i++)
                            sum += r2f_at(x, in, first + i) * weight[((o * inputs + i) * rows + r) * columns + s];
                    }
                }
                y[(h * out.w + w) * out.c + o] = (uint8_t)r2f_clamped(rintf((float)sum * multiplier[o]), low, high[o]);
            }
}
""",
        "Add": r"""
static inline void r2f_add(const uint8_t *const *x, const r2f_shape *in, int count, uint8_t *y, r2f_shape out,
                           const float *multiplier, int low, int high)
{
    for (int i = 0; i < r2f_size(out); i++) {
        int sum = 0;
        for (int k = 0; k < count; k++) sum += (int)rintf((float)r2f_at(x[k], in[k], i) * multiplier[k]);
        y[i] = (uint8_t)(sum < low ? low : sum > high ? high : sum);
    }
}
""",
        "Concat": r"""
static inline void r2f_concat(const uint8_t *const *x, const r2f_shape *in, int count, uint8_t *y, r2f_shape out,
                              const float *multiplier, int low, int high)
{
    for (int pixel = 0, at = 0; pixel < out.h * out.w; pixel++)
        for (int k = 0; k < count; k++)
            for (int c = 0; c < in[k].c; c++, at++)
                y[at] = (uint8_t)r2f_clamped(rintf((float)r2f_at(x[k], in[k], pixel * in[k].c + c) * multiplier[k]), low, high);
}
""",
        "MaxPool": r"""
static inline void r2f_maxpool(const uint8_t *x, r2f_shape in, uint8_t *y, r2f_shape out, int rows, int columns, int sy, int sx,
                               int py, int px, int dy, int dx)
{
    for (int h = 0; h < out.h; h++)
        for (int w = 0; w < out.w; w++)
            for (int c = 0; c < out.c; c++) {
                int most = in.is_signed ? -128 : 0;
                for (int r = 0; r < rows; r++)
                    for (int s = 0; s < columns; s++) {
                        const int a = h * sy - py + r * dy, b = w * sx - px + s * dx;
                        if (a < 0 || a >= in.h || b < 0 || b >= in.w) continue;
                        const int value = r2f_at(x, in, (a * in.w + b) * in.c + c);
                        most = value > most ? value : most;
                    }
                y[(h * out.w + w) * out.c + c] = (uint8_t)most;
            }
}
""",
        "MeanPool": r"""
static inline void r2f_meanpool(const uint8_t *x, r2f_shape in, uint8_t *y, r2f_shape out, int rows, int columns, int sy,
                                int sx, int py, int px, float multiplier, int low, int high)
{
    for (int h = 0; h < out.h; h++)
        for (int w = 0; w < out.w; w++)
            for (int c = 0; c < out.c; c++) {
                int32_t sum = 0;
                for (int r = 0; r < rows; r++)
                    for (int s = 0; s < columns; s++) {
                        const int a = h * sy - py + r, b = w * sx - px + s;
                        if (a >= 0 && a < in.h && b >= 0 && b < in.w) sum += r2f_at(x, in, (a * in.w + b) * in.c + c);
                    }
                y[(h * out.w + w) * out.c + c] = (uint8_t)r2f_clamped(rintf((float)sum * multiplier), low, high);
            }
}
""",
        "Mul": r"""
static inline void r2f_mul(const uint8_t *const *x, const r2f_shape *in, int count, uint8_t *y, r2f_shape out, float multiplier,
                           int low, int high)
{
    (void)count;
    for (int i = 0; i < r2f_size(out); i++) {
        const int other = in[1].h * in[1].w == 1 ? i % out.c : i;
        const int product = r2f_at(x[0], in[0], i) * r2f_at(x[1], in[1], other);
        y[i] = (uint8_t)r2f_clamped(rintf((float)product * multiplier), low, high);
    }
}
""",
        "Table": r"""
static inline void r2f_table(const uint8_t *x, r2f_shape in, uint8_t *y, r2f_shape out, const uint8_t *table,
                             int tables)
{
    for (int i = 0; i < r2f_size(out); i++) y[i] = table[256 * (i % tables) + r2f_at(x, in, i) + (in.is_signed ? 128 : 0)];
}
""",
        "Channels": r"""
static inline void r2f_channels(const uint8_t *x, r2f_shape in, uint8_t *y, r2f_shape out, const int32_t *order)
{
    for (int pixel = 0; pixel < out.h * out.w; pixel++)
        for (int c = 0; c < out.c; c++) y[pixel * out.c + c] = x[pixel * in.c + order[c]];
}
""",
        "Flatten": r"""
static inline void r2f_flatten(const uint8_t *x, r2f_shape in, uint8_t *y, r2f_shape out)
{
    (void)out;
    for (int c = 0; c < in.c; c++)
        for (int pixel = 0; pixel < in.h * in.w; pixel++) *y++ = x[pixel * in.c + c];
}
""",
        "Slice": r"""
static inline void r2f_slice(const uint8_t *x, r2f_shape in, uint8_t *y, r2f_shape out, int first_h, int first_w, int first_c,
                             int step_h, int step_w)
{
    for (int h = 0; h < out.h; h++)
        for (int w = 0; w < out.w; w++)
            for (int c = 0; c < out.c; c++) {
                const int a = first_h + h * step_h, b = first_w + w * step_w, d = first_c + c;
                const int inside = a >= 0 && a < in.h && b >= 0 && b < in.w && d >= 0 && d < in.c;
                *y++ = inside ? x[(a * in.w + b) * in.c + d] : 0;
            }
}
""",
        "Resample": r"""
static inline void r2f_resample(const uint8_t *x, r2f_shape in, uint8_t *y, r2f_shape out, const int32_t *rows,
                                const int32_t *row_weights, const int32_t *columns, const int32_t *column_weights, int a, int b,
                                float multiplier)
{
    for (int h = 0; h < out.h; h++)
        for (int w = 0; w < out.w; w++)
            for (int c = 0; c < out.c; c++) {
                int32_t sum = 0;
                for (int i = h * a; i < (h + 1) * a; i++)
                    for (int j = w * b; j < (w + 1) * b; j++)
                        sum += row_weights[i] * column_weights[j] * r2f_at(x, in, (rows[i] * in.w + columns[j]) * in.c + c);
                *y++ = (uint8_t)(int)rintf((float)sum * multiplier);
            }
}
""",
        "Interleave": r"""
static inline void r2f_interleave(const uint8_t *const *x, const r2f_shape *in, int count, uint8_t *y, r2f_shape out,
                                  const int32_t *blocks, int number, int step_h, int step_w)
{
    (void)count;
    memset(y, 0, (size_t)r2f_size(out));
    for (int b = 0; b < number; b++, blocks += 4)
        for (int i = 0; i < in[blocks[0]].h; i++)
            for (int j = 0; j < in[blocks[0]].w; j++) {
                const int h = blocks[2] + i * step_h, w = blocks[3] + j * step_w;
                if (h < 0 || h >= out.h || w < 0 || w >= out.w) continue;
                const uint8_t *from = x[blocks[0]] + (i * in[blocks[0]].w + j) * in[blocks[0]].c + blocks[1];
                memcpy(y + (h * out.w + w) * out.c, from, (size_t)out.c);
            }
}
""",
    }.items()
}
"""By the name of the layer type."""
