/* Sixteen numbers at a time: loads that widen to fp32, and the functions that softmax needs. */

#ifndef TEENGINE_LANES_H
#define TEENGINE_LANES_H

#include <immintrin.h>

#include "numbers.h"

/* Before a loop over what must stay in registers. */
#define UNROLLED _Pragma("GCC unroll 16")

static inline __mmask16 mask16(int64_t left) { return left >= 16 ? 0xffff : (__mmask16)((1u << left) - 1); }

static inline __m512 load16(const void *x, int64_t dtype, int64_t i, __mmask16 mask) {
    if (dtype == TE_BF16) {
        const __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, (const uint16_t *)x + i));
        return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
    }
    if (dtype == TE_I8) return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(mask, (const int8_t *)x + i)));
    return _mm512_maskz_loadu_ps(mask, (const float *)x + i);
}

/* e^x within 2 units in the last place; 0 far below, infinity far above, NaN for NaN. e^x = 2^n * 2^f with f in
   [-1/2, 1/2], the latter by its Taylor series to the seventh power. */
static inline __m512 exp16(__m512 x) {
    const __m512 t = _mm512_mul_ps(x, _mm512_set1_ps(1.44269504f));
    const __m512 n = _mm512_roundscale_ps(t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    /* f * ln 2, with ln 2 in two parts so that nothing is lost to cancellation */
    __m512 f = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    f = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), f);
    __m512 p = _mm512_set1_ps(1.f / 5040.f);
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.f / 720.f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.f / 120.f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.f / 24.f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.f / 6.f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.5f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.f));
    return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x, _mm512_set1_ps(-104.f), _CMP_NLT_UQ), p, n);
}

static inline __m512 tanh16(__m512 x) {
    const __m512 e = exp16(_mm512_add_ps(x, x)), one = _mm512_set1_ps(1.f);
    return _mm512_sub_ps(one, _mm512_div_ps(_mm512_set1_ps(2.f), _mm512_add_ps(e, one)));
}

/* Sixteen numbers as bf16, to nearest. */
static inline __m256i half16(__m512 x) {
#if defined(__AVX512BF16__)
    return (__m256i)_mm512_cvtneps_pbh(x);
#else
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 is_nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_set1_epi32(rounded, is_nan, 0x7fc00000), 16));
#endif
}

static inline void store16(void *y, int64_t dtype, int64_t place, __m512 values, __mmask16 mask) {
    if (dtype == TE_F32) _mm512_mask_storeu_ps((float *)y + place, mask, values);
    else _mm256_mask_storeu_epi16((uint16_t *)y + place, mask, half16(values));
}

/* What is left of sixteen numbers after they were stored as bf16. */
static inline __m512 rounded16(__m512 x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half16(x)), 16));
}

/* Returns the sums of the lanes of each of sixteen vectors: element 4 * j + i is that of vector 4 * i + j. The same
   moves for numbers of both kinds, which only add differently; the pairs that are added are the same for every vector. */
#define LANE_SUMS(name, vector, add)                                                                                \
    static inline vector name(const vector *v) {                                                                    \
        vector a[8], b[4];                                                                                          \
        UNROLLED for (int i = 0; i < 8; i++) {                                                                      \
            const __m512i x = (__m512i)v[2 * i], y = (__m512i)v[2 * i + 1];                                         \
            a[i] = add((vector)_mm512_shuffle_i32x4(x, y, 0x44), (vector)_mm512_shuffle_i32x4(x, y, 0xee));         \
        }                                                                                                           \
        UNROLLED for (int i = 0; i < 4; i++) {                                                                      \
            const __m512i x = (__m512i)a[2 * i], y = (__m512i)a[2 * i + 1];                                         \
            b[i] = add((vector)_mm512_shuffle_i32x4(x, y, 0x88), (vector)_mm512_shuffle_i32x4(x, y, 0xdd));         \
        }                                                                                                           \
        UNROLLED for (int i = 0; i < 2; i++) {                                                                      \
            const __m512i x = (__m512i)b[2 * i], y = (__m512i)b[2 * i + 1];                                         \
            a[i] = add((vector)_mm512_unpacklo_epi32(x, y), (vector)_mm512_unpackhi_epi32(x, y));                   \
        }                                                                                                           \
        const __m512i low = (__m512i)a[0], high = (__m512i)a[1];                                                    \
        return add((vector)_mm512_unpacklo_epi64(low, high), (vector)_mm512_unpackhi_epi64(low, high));             \
    }
LANE_SUMS(sums16, __m512, _mm512_add_ps)
LANE_SUMS(whole_sums16, __m512i, _mm512_add_epi32)

/* The bits of the largest magnitude among `count` numbers; those of NaN and infinity are above all others. */
static inline uint32_t largest_of(const void *x, int64_t dtype, int64_t count) {
    __m512i largest = _mm512_setzero_si512();
    for (int64_t i = 0; i < count; i += 16) {
        const __m512i bits = _mm512_castps_si512(load16(x, dtype, i, mask16(count - i)));
        largest = _mm512_max_epu32(largest, _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff)));
    }
    return _mm512_reduce_max_epu32(largest);
}

static inline float exp1(float x) { return _mm512_cvtss_f32(exp16(_mm512_set1_ps(x))); }

#endif
