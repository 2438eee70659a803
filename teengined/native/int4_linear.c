/* Products of activations with a weight of four bits, exact in integers.

   A code of four bits is a place in a book of 16 signed bytes; each group of 16 inputs of an output names its book. So
   the weight is one of signed bytes with a scale for each output, and is multiplied as int8_linear.c does: rows of
   activations become digits, integers are summed exactly, and a row's result depends on nothing but the row and the
   weight. What is read from memory are the codes: a byte shuffle looks 64 of them up at a time.

   Codes lie as they are stored, (O, I / 2): 16 bytes hold 32 inputs, the first 16 in the low halves and the next 16 in
   the high halves. The inputs of the activations are put into the same order, which no sum notices.

   Legend: M rows of activations, G digits, R = G * M digit rows, I inputs, O outputs. */

#include "kernels.h"

#include <math.h>
#include <string.h>

/* Inputs of one group, of 16 bytes of codes, and of one vector of 64 bytes of codes. */
enum { GROUP_I = 16, LANE_I = 32, BLOCK_I = 128 };
/* Outputs handled together, and columns of them that stay in the first-level cache once they are looked up. */
enum { TILE_O = 4, CHUNK_I = 2048 };
/* Digit rows for which a weight row is read once: with 8192 inputs, what fits the second-level cache. */
enum { PASS_R = 96 };

typedef struct {
    int32_t sums[PASS_R * TILE_O], row_sums[TILE_O];
    int8_t weights[TILE_O * CHUNK_I] __attribute__((aligned(64)));
} work_t;

int te_has_int4_linear(void) { return 1; }

/* Bytes of one digit row. Not a multiple of a large power of two, which would let all rows fall on the same few lines
   of a cache. */
int64_t te_int4_stride(int64_t num_inputs) { return (num_inputs + BLOCK_I - 1) / BLOCK_I * BLOCK_I + 64; }

/* Where the group of inputs that starts at `i` lies in a digit row: low halves of a block before high ones. */
static inline int64_t place_of(int64_t i) {
    const int64_t within = i % BLOCK_I;
    return i - within + within / LANE_I * GROUP_I + (within % LANE_I ? BLOCK_I / 2 : 0);
}

static inline float one_of(int num_digits) {
    return num_digits == 1 ? 127.f : num_digits == 2 ? 127.f * 256.f : 127.f * 65536.f;
}

static inline int32_t bias_of(int num_digits) {
    return num_digits == 1 ? 0x80 : num_digits == 2 ? 0x8080 : 0x808080;
}

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512F__)
#include "lanes.h"

/* Digit rows of one register tile: 16 sums, which hide the latency of the instruction. */
enum { TILE_R = 4 };

/* Four books side by side; those at `books` with an even or an odd place, as `books` points to the first of them. */
static inline __m512i tables_of(const int8_t *tables, const uint8_t *books, int64_t num_lanes) {
#define BOOK(lane) _mm_load_si128((const __m128i *)(tables + 16 * (int64_t)books[2 * (lane)]))
    __m512i found = _mm512_zextsi128_si512(BOOK(0));
    if (num_lanes > 1) found = _mm512_mask_broadcast_i32x4(found, 0x00f0, BOOK(1));
    if (num_lanes > 2) found = _mm512_mask_broadcast_i32x4(found, 0x0f00, BOOK(2));
    if (num_lanes > 3) found = _mm512_mask_broadcast_i32x4(found, 0xf000, BOOK(3));
#undef BOOK
    return found;
}

/* The weights of one block of inputs: of the low halves, and of the high ones. Zeros beyond the last lane. */
static inline __attribute__((always_inline)) void look_up(const te_int4_linear *call, const uint8_t *codes,
                                                          const uint8_t *books, int64_t num_lanes, __m512i *low,
                                                          __m512i *high) {
    const __mmask64 mask = num_lanes >= 4 ? ~0ULL : (1ULL << 16 * num_lanes) - 1;
    const __m512i packed = _mm512_maskz_loadu_epi8(mask, codes), half = _mm512_set1_epi8(15);
    *low = _mm512_shuffle_epi8(tables_of(call->tables, books, num_lanes), _mm512_and_si512(packed, half));
    *high = _mm512_shuffle_epi8(tables_of(call->tables, books + 1, num_lanes),
                                _mm512_and_si512(_mm512_srli_epi16(packed, 4), half));
}

static inline __m128i sums_of(__m512i a, __m512i b, __m512i c, __m512i d) {
    __m256i a2 = _mm256_add_epi32(_mm512_castsi512_si256(a), _mm512_extracti64x4_epi64(a, 1));
    __m256i b2 = _mm256_add_epi32(_mm512_castsi512_si256(b), _mm512_extracti64x4_epi64(b, 1));
    __m256i c2 = _mm256_add_epi32(_mm512_castsi512_si256(c), _mm512_extracti64x4_epi64(c, 1));
    __m256i d2 = _mm256_add_epi32(_mm512_castsi512_si256(d), _mm512_extracti64x4_epi64(d, 1));
    __m256i all = _mm256_hadd_epi32(_mm256_hadd_epi32(a2, b2), _mm256_hadd_epi32(c2, d2));
    return _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
}

static inline void add_sums(int32_t *target, const __m512i *sums) {
    __m128i *place = (__m128i *)target;
    _mm_storeu_si128(place, _mm_add_epi32(_mm_loadu_si128(place), sums_of(sums[0], sums[1], sums[2], sums[3])));
}

/* Looks the codes of TILE_O outputs up over `width` columns and adds their products with `num_rows` digit rows. Keeps
   the weights for further digit rows where `keeps`. Meanwhile the codes of the next outputs are fetched. */
static inline __attribute__((always_inline)) void first_tile_of(const te_int4_linear *call, const int num_rows,
                                                                const int keeps, const uint8_t *x, int64_t x_stride,
                                                                const int64_t *outputs, int64_t column, int64_t width,
                                                                work_t *work) {
    __m512i sums[TILE_R][TILE_O], row_sums[TILE_O];
    const __m512i ones = _mm512_set1_epi8(1);
    const int64_t row_bytes = call->num_inputs / 2;
    const uint8_t *codes[TILE_O], *books[TILE_O];
    for (int o = 0; o < TILE_O; o++) {
        codes[o] = call->codes + outputs[o] * row_bytes + column / 2;
        books[o] = call->books + outputs[o] * (call->num_inputs / GROUP_I) + column / GROUP_I;
        row_sums[o] = _mm512_setzero_si512();
        for (int r = 0; r < num_rows; r++) sums[r][o] = _mm512_setzero_si512();
    }
    for (int64_t i = 0; i < width; i += BLOCK_I) {
        const int64_t num_lanes = width - i >= BLOCK_I ? 4 : (width - i) / LANE_I;
        for (int o = 0; o < TILE_O; o++) {
            __m512i low, high;
            if (num_lanes == 4) look_up(call, codes[o] + i / 2, books[o] + i / GROUP_I, 4, &low, &high);
            else look_up(call, codes[o] + i / 2, books[o] + i / GROUP_I, num_lanes, &low, &high);
            _mm_prefetch((const char *)(codes[o] + i / 2 + TILE_O * row_bytes), _MM_HINT_T0);
            row_sums[o] = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(row_sums[o], ones, low), ones, high);
            for (int r = 0; r < num_rows; r++) {
                const __m512i first = _mm512_loadu_si512(x + r * x_stride + i);
                const __m512i second = _mm512_loadu_si512(x + r * x_stride + i + 64);
                sums[r][o] = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(sums[r][o], first, low), second, high);
            }
            if (keeps) {
                _mm512_store_si512(work->weights + o * CHUNK_I + i, low);
                _mm512_store_si512(work->weights + o * CHUNK_I + i + 64, high);
            }
        }
    }
    for (int r = 0; r < num_rows; r++) add_sums(work->sums + r * TILE_O, sums[r]);
    add_sums(work->row_sums, row_sums);
}

static inline __attribute__((always_inline)) void next_tile_of(const int num_rows, const uint8_t *x, int64_t x_stride,
                                                               const int8_t *weights, int64_t width, int32_t *out) {
    __m512i sums[TILE_R][TILE_O];
    for (int r = 0; r < num_rows; r++)
        for (int o = 0; o < TILE_O; o++) sums[r][o] = _mm512_setzero_si512();
    for (int64_t i = 0; i < width; i += 64) {
        __m512i held[TILE_O];
        for (int o = 0; o < TILE_O; o++) held[o] = _mm512_load_si512(weights + o * CHUNK_I + i);
        for (int r = 0; r < num_rows; r++) {
            const __m512i digits = _mm512_loadu_si512(x + r * x_stride + i);
            for (int o = 0; o < TILE_O; o++) sums[r][o] = _mm512_dpbusd_epi32(sums[r][o], digits, held[o]);
        }
    }
    for (int r = 0; r < num_rows; r++) add_sums(out + r * TILE_O, sums[r]);
}

/* Adds the products of `num_rows` digit rows with TILE_O outputs over `width` columns from `column` on. */
static void add_products(const te_int4_linear *call, const uint8_t *x, int64_t num_rows, int64_t x_stride,
                         const int64_t *outputs, int64_t column, int64_t width, work_t *work) {
#define FIRST(n)                                                                                                  \
    case n:                                                                                                       \
        if (num_rows > TILE_R) first_tile_of(call, n, 1, x, x_stride, outputs, column, width, work);              \
        else first_tile_of(call, n, 0, x, x_stride, outputs, column, width, work);                                \
        break;
#define NEXT(n)                                                                                                   \
    case n: next_tile_of(n, x + r * x_stride, x_stride, work->weights, padded, work->sums + r * TILE_O); break;
    switch (num_rows < TILE_R ? num_rows : TILE_R) { FIRST(1) FIRST(2) FIRST(3) FIRST(4) }
    const int64_t padded = (width + BLOCK_I - 1) / BLOCK_I * BLOCK_I;
    for (int64_t r = TILE_R; r < num_rows; r += TILE_R)
        switch (num_rows - r < TILE_R ? num_rows - r : TILE_R) { NEXT(1) NEXT(2) NEXT(3) NEXT(4) }
#undef FIRST
#undef NEXT
}

/* Writes a row's digits, lowest first, each `stride` bytes long and 128 above its value; returns what one unit stands
   for: NaN where the row holds a number that is not finite, so that its results say so. */
static float split_row(const te_int4_linear *call, const void *x, uint8_t *digits, int64_t stride) {
    const int num_digits = (int)call->num_digits;
    __m512i largest = _mm512_setzero_si512();
    for (int64_t i = 0; i < call->num_inputs; i += GROUP_I) {
        __m512i bits = _mm512_castps_si512(load16(x, call->dtype, i, 0xffff));
        largest = _mm512_max_epu32(largest, _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff)));
    }
    const uint32_t bits = _mm512_reduce_max_epu32(largest);
    float amax;
    memcpy(&amax, &bits, 4);
    const __m512 factor = _mm512_set1_ps(bits < 0x7f800000u && amax > 1e-30f ? one_of(num_digits) / amax : 0.f);
    for (int64_t i = 0; i < call->num_inputs; i += GROUP_I) {
        __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(load16(x, call->dtype, i, 0xffff), factor));
        whole = _mm512_add_epi32(whole, _mm512_set1_epi32(bias_of(num_digits)));
        for (int g = 0; g < num_digits; g++) {
            _mm_storeu_si128((__m128i *)(digits + g * stride + place_of(i)), _mm512_cvtepi32_epi8(whole));
            whole = _mm512_srli_epi32(whole, 8);
        }
    }
    return bits < 0x7f800000u ? amax / one_of(num_digits) : NAN;
}

#else

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

static inline int64_t element_bytes(int64_t dtype) { return dtype == TE_F32 ? 4 : 2; }

static inline float load(const void *x, int64_t dtype, int64_t i) {
    if (dtype == TE_F32) return ((const float *)x)[i];
    const uint32_t bits = (uint32_t)((const uint16_t *)x)[i] << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* The same for processors without the instructions: one output and one digit row at a time. */
static void add_products(const te_int4_linear *call, const uint8_t *x, int64_t num_rows, int64_t x_stride,
                         const int64_t *outputs, int64_t column, int64_t width, work_t *work) {
    for (int o = 0; o < TILE_O; o++) {
        const uint8_t *codes = call->codes + (outputs[o] * call->num_inputs + column) / 2;
        const uint8_t *books = call->books + (outputs[o] * call->num_inputs + column) / GROUP_I;
        int8_t *weights = work->weights;
        memset(weights, 0, (size_t)((width + BLOCK_I - 1) / BLOCK_I * BLOCK_I));
        for (int64_t i = 0; i < width; i += GROUP_I) {
            const int8_t *book = call->tables + 16 * (int64_t)books[i / GROUP_I];
            const int shift = i % LANE_I ? 4 : 0;
            for (int b = 0; b < GROUP_I; b++) {
                weights[place_of(i) + b] = book[codes[i / LANE_I * GROUP_I + b] >> shift & 15];
                work->row_sums[o] += weights[place_of(i) + b];
            }
        }
        const int64_t padded = (width + BLOCK_I - 1) / BLOCK_I * BLOCK_I;
        for (int64_t r = 0; r < num_rows; r++) {
            int32_t sum = 0;
            for (int64_t i = 0; i < padded; i++) sum += (int32_t)x[r * x_stride + i] * weights[i];
            work->sums[r * TILE_O + o] += sum;
        }
    }
}

static float split_row(const te_int4_linear *call, const void *x, uint8_t *digits, int64_t stride) {
    const int num_digits = (int)call->num_digits;
    float amax = 0.f;
    for (int64_t i = 0; i < call->num_inputs; i++) {
        const float value = fabsf(load(x, call->dtype, i));
        if (!isfinite(value)) return NAN;
        amax = value > amax ? value : amax;
    }
    const float factor = amax > 1e-30f ? one_of(num_digits) / amax : 0.f;
    for (int64_t i = 0; i < call->num_inputs; i++) {
        int32_t whole = (int32_t)lrintf(load(x, call->dtype, i) * factor) + bias_of(num_digits);
        for (int g = 0; g < num_digits; g++, whole >>= 8)
            digits[g * stride + place_of(i - i % GROUP_I) + i % GROUP_I] = (uint8_t)whole;
    }
    return amax / one_of(num_digits);
}

#endif

/* The sums of TILE_O outputs for the digit rows [first, last), written as rows of y. */
static void finish(const te_int4_linear *call, int64_t first, int64_t last, int64_t output, int num_outputs,
                   const work_t *work) {
    const int num_digits = (int)call->num_digits;
    for (int64_t r = first; r < last; r += num_digits) {
        const int64_t row = r / num_digits;
        const int32_t *digits = work->sums + (r - first) * TILE_O;
        for (int o = 0; o < num_outputs; o++) {
            float total = 0.f;
            for (int g = num_digits - 1; g >= 0; g--)
                total = total * 256.f + (float)(digits[g * TILE_O + o] - 128 * work->row_sums[o]);
            float value = total * call->units[row] * call->scale[output + o];
            if (call->bias) value += call->bias[output + o];
            store(call->y, call->dtype, row * call->num_outputs + output + o, value);
        }
    }
}

static void outputs_of(const te_int4_linear *call, int64_t output, int64_t first, int64_t last, int64_t stride) {
    const int64_t left = call->num_outputs - output;
    const int num_outputs = left < TILE_O ? (int)left : TILE_O;
    work_t work;
    int64_t outputs[TILE_O];
    for (int o = 0; o < TILE_O; o++) outputs[o] = output + (o < num_outputs ? o : num_outputs - 1);
    memset(work.sums, 0, (size_t)(last - first) * TILE_O * sizeof *work.sums);
    memset(work.row_sums, 0, sizeof work.row_sums);
    for (int64_t column = 0; column < call->num_inputs; column += CHUNK_I) {
        const int64_t width = call->num_inputs - column < CHUNK_I ? call->num_inputs - column : CHUNK_I;
        add_products(call, call->digits + first * stride + column, last - first, stride, outputs, column, width, &work);
    }
    finish(call, first, last, output, num_outputs, &work);
}

void te_int4_linear_run(const te_int4_linear *call) {
    const int64_t stride = te_int4_stride(call->num_inputs), num_digits = call->num_digits;
    const int64_t num_digit_rows = num_digits * call->num_rows, element = element_bytes(call->dtype);
    const int64_t pass = PASS_R / num_digits * num_digits, rest = call->num_inputs % BLOCK_I;
#pragma omp parallel num_threads((int)call->num_threads)
    {
#pragma omp for schedule(static)
        for (int64_t row = 0; row < call->num_rows; row++) {
            uint8_t *digits = call->digits + row * num_digits * stride;
            for (int g = 0; rest && g < num_digits; g++) /* zeros where the last block has no inputs */
                memset(digits + g * stride + call->num_inputs - rest, 128, BLOCK_I);
            call->units[row] = split_row(call, (const char *)call->x + row * call->x_stride * element, digits, stride);
        }
        for (int64_t first = 0; first < num_digit_rows; first += pass) {
            const int64_t last = first + pass < num_digit_rows ? first + pass : num_digit_rows;
#pragma omp for schedule(static) nowait
            for (int64_t output = 0; output < call->num_outputs; output += TILE_O)
                outputs_of(call, output, first, last, stride);
        }
    }
}
