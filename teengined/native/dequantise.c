/* Stored weights as plain numbers: int8, or four-bit codes, each times its row's scale in fp32 and rounded once.

   Codes and books are those of int4_linear.c. */

#include "kernels.h"
#include "numbers.h"

/* Inputs of one book, and those whose codes lie in the halves of GROUP_I bytes. */
enum { GROUP_I = 16, LANE_I = 32 };

#if defined(__AVX512BW__) && defined(__AVX512F__) && defined(__AVX512VL__)
#include "lanes.h"

/* Writes numbers from `first` on of a row, times its scale. */
static inline void scale_bytes(const te_dequantise *call, const int8_t *bytes, int64_t count, float scale, int64_t place) {
    for (int64_t i = 0; i < count; i += 16) {
        const __mmask16 mask = mask16(count - i);
        const __m512 numbers = load16(bytes, TE_I8, i, mask);
        store16(call->y, call->dtype, place + i, _mm512_mul_ps(numbers, _mm512_set1_ps(scale)), mask);
    }
}

static inline void look_up(const uint8_t *tables, const uint8_t *codes, const uint8_t *books, int8_t *bytes) {
    const __m128i packed = _mm_loadu_si128((const __m128i *)codes), half = _mm_set1_epi8(15), sign = _mm_set1_epi8((char)0x80);
    const __m128i low = _mm_load_si128((const __m128i *)(tables + GROUP_I * books[0]));
    const __m128i high = _mm_load_si128((const __m128i *)(tables + GROUP_I * books[1]));
    const __m128i first = _mm_shuffle_epi8(low, _mm_and_si128(packed, half));
    const __m128i second = _mm_shuffle_epi8(high, _mm_and_si128(_mm_srli_epi16(packed, 4), half));
    _mm_storeu_si128((__m128i *)bytes, _mm_xor_si128(first, sign)); /* tables hold numbers plus 128 */
    _mm_storeu_si128((__m128i *)(bytes + GROUP_I), _mm_xor_si128(second, sign));
}

#else

static inline void scale_bytes(const te_dequantise *call, const int8_t *bytes, int64_t count, float scale, int64_t place) {
    for (int64_t i = 0; i < count; i++) store(call->y, call->dtype, place + i, (float)bytes[i] * scale);
}

static inline void look_up(const uint8_t *tables, const uint8_t *codes, const uint8_t *books, int8_t *bytes) {
    for (int i = 0; i < GROUP_I; i++) {
        bytes[i] = (int8_t)(tables[GROUP_I * books[0] + (codes[i] & 15)] - 128);
        bytes[GROUP_I + i] = (int8_t)(tables[GROUP_I * books[1] + (codes[i] >> 4)] - 128);
    }
}

#endif

static void dequantise_row(const te_dequantise *call, int64_t row) {
    const te_matrix *weight = &call->weight;
    const int64_t start = row * weight->num_inputs;
    const float scale = weight->scale[row];
    if (weight->dtype == TE_I8) {
        scale_bytes(call, (const int8_t *)weight->data + start, weight->num_inputs, scale, start);
        return;
    }
    for (int64_t i = start; i < start + weight->num_inputs; i += LANE_I) {
        int8_t bytes[LANE_I];
        look_up(weight->tables, (const uint8_t *)weight->data + i / 2, weight->books + i / GROUP_I, bytes);
        scale_bytes(call, bytes, LANE_I, scale, i);
    }
}

void te_dequantise_run(const te_dequantise *call) {
#pragma omp parallel for schedule(static) num_threads((int)call->num_threads)
    for (int64_t row = 0; row < call->weight.num_outputs; row++) dequantise_row(call, row);
}
