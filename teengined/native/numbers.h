/* One number at a time, for every processor: stored forms, and activations as base-256 digits.

   A row of activations becomes fixed-point numbers of G signed base-256 digits against its largest element. */

#ifndef TEENGINE_NUMBERS_H
#define TEENGINE_NUMBERS_H

#include <math.h>
#include <string.h>

#include "kernels.h"

static inline int64_t element_bytes(int64_t dtype) { return dtype == TE_F32 ? 4 : dtype == TE_BF16 ? 2 : 1; }

static inline void store(void *y, int64_t dtype, int64_t place, float value) {
    if (dtype == TE_F32) {
        ((float *)y)[place] = value;
        return;
    }
    uint32_t bits;
    memcpy(&bits, &value, 4);
    bits = isnan(value) ? 0x7fc00000u : bits + 0x7fff + ((bits >> 16) & 1); /* to nearest, ties to even */
    ((uint16_t *)y)[place] = (uint16_t)(bits >> 16);
}

/* What the largest element of a row becomes. */
static inline float one_of(int64_t num_digits) {
    return num_digits == 1 ? 127.f : num_digits == 2 ? 127.f * 256.f : 127.f * 65536.f;
}

/* Added to a fixed-point number, it makes every byte its signed digit plus 128. */
static inline int32_t bias_of(int64_t num_digits) {
    return num_digits == 1 ? 0x80 : num_digits == 2 ? 0x8080 : 0x808080;
}

/* What a row whose largest magnitude has these bits is multiplied with; 0 where it holds what is not finite. */
static inline float digit_factor(uint32_t largest_bits, int64_t num_digits) {
    float largest;
    memcpy(&largest, &largest_bits, 4);
    return largest_bits < 0x7f800000u && largest > 1e-30f ? one_of(num_digits) / largest : 0.f;
}

/* What one unit of a row stands for: NaN where it holds what is not finite, so that its results say so. */
static inline float digit_unit(uint32_t largest_bits, int64_t num_digits) {
    float largest;
    memcpy(&largest, &largest_bits, 4);
    return largest_bits < 0x7f800000u ? largest / one_of(num_digits) : NAN;
}

#endif
