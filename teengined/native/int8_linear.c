/* Products of activations with an int8 weight, exact in integers.

   A row of activations becomes fixed-point numbers of G signed base-256 digits against its largest element. Each digit
   is a row of int8, so that x @ W.T is G integer products, which VNNI sums exactly. A row's result depends on nothing
   but the row and the weight: neither on its neighbours nor on the number of threads.

   The instruction multiplies unsigned by signed bytes, so digits are stored plus 128 and 128 * (sum of a weight row) is
   taken off again. The weight stays as it is stored, (O, I) row after row; while a group of its rows is multiplied with
   all activations, the next group is fetched.

   Legend: M rows of activations, G digits, R = G * M digit rows, I inputs, O outputs. */

#include "kernels.h"

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512F__)
#include "lanes.h"

/* Weight rows and digit rows of one register tile: 16 sums, which hide the latency of the instruction. */
enum { TILE_O = 4, TILE_R = 4 };
/* Columns handled before the next tile: 4 weight rows and as many digit rows stay in the first-level cache. */
enum { CHUNK_I = 2048 };
/* Digit rows for which a weight row is read once: with 8192 inputs, what fits the second-level cache. */
enum { PASS_R = 96 };
/* Tiles over which the fetching of the next weight rows is spread, at most. */
enum { FETCH_TILES = 4 };

typedef struct {
    const int8_t *next; /* weights to fetch meanwhile, one line after the other, or NULL */
    int lines;          /* in each step of a tile */
} fetch_t;

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

/* Adds to out[r * TILE_O + o] the products of `num_rows` digit rows with TILE_O weight rows over `width` columns, and
   to row_sums[o] the sums of the weight rows, where that is not NULL. */
static inline __attribute__((always_inline)) void tile_of(const int num_rows, const uint8_t *x, int64_t x_stride,
                                                          const int8_t *const *w, int64_t width, int32_t *out,
                                                          int32_t *row_sums, fetch_t fetch) {
    __m512i sums[TILE_R][TILE_O], ones_sums[TILE_O];
    const __m512i ones = _mm512_set1_epi8(1);
    for (int r = 0; r < num_rows; r++)
        for (int o = 0; o < TILE_O; o++) sums[r][o] = _mm512_setzero_si512();
    for (int o = 0; o < TILE_O; o++) ones_sums[o] = _mm512_setzero_si512();
    for (int64_t i = 0; i < width; i += 64) {
        const __mmask64 mask = width - i >= 64 ? ~0ULL : ~0ULL >> (64 - (width - i));
        __m512i weights[TILE_O];
        for (int o = 0; o < TILE_O; o++) weights[o] = _mm512_maskz_loadu_epi8(mask, w[o] + i);
        if (row_sums)
            for (int o = 0; o < TILE_O; o++) ones_sums[o] = _mm512_dpbusd_epi32(ones_sums[o], ones, weights[o]);
        for (int r = 0; r < num_rows; r++) {
            const __m512i digits = _mm512_loadu_si512(x + r * x_stride + i);
            for (int o = 0; o < TILE_O; o++) sums[r][o] = _mm512_dpbusd_epi32(sums[r][o], digits, weights[o]);
        }
        if (fetch.next)
            for (int line = 0; line < fetch.lines; line++)
                _mm_prefetch(fetch.next + i * fetch.lines + 64 * line, _MM_HINT_T0);
    }
    for (int r = 0; r < num_rows; r++) add_sums(out + r * TILE_O, sums[r]);
    if (row_sums) add_sums(row_sums, ones_sums);
}

static void tile(int num_rows, const uint8_t *x, int64_t x_stride, const int8_t *const *w, int64_t width, int32_t *out,
                 int32_t *row_sums, fetch_t fetch) {
#define TILE(n)                                                                \
    case n:                                                                    \
        if (row_sums) tile_of(n, x, x_stride, w, width, out, row_sums, fetch); \
        else tile_of(n, x, x_stride, w, width, out, NULL, fetch);              \
        break;
    switch (num_rows) { TILE(1) TILE(2) TILE(3) TILE(4) }
#undef TILE
}

/* Writes a row's digits, lowest first, each `stride` bytes long; returns what one unit stands for: NaN where the row
   holds a number that is not finite, so that its results say so. */
static float split_row(const void *x, int64_t dtype, int64_t num_inputs, int num_digits, uint8_t *digits, int64_t stride) {
    const uint32_t largest = largest_of(x, dtype, num_inputs);
    const int32_t bias = bias_of(num_digits);
    const __m512 factor = _mm512_set1_ps(digit_factor(largest, num_digits));
    for (int64_t i = 0; i < num_inputs; i += 16) {
        const __mmask16 mask = mask16(num_inputs - i);
        __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(load16(x, dtype, i, mask), factor));
        whole = _mm512_add_epi32(whole, _mm512_set1_epi32(bias));
        for (int g = 0; g < num_digits; g++) {
            _mm_storeu_si128((__m128i *)(digits + g * stride + i), _mm512_cvtepi32_epi8(whole));
            whole = _mm512_srli_epi32(whole, 8);
        }
    }
    return digit_unit(largest, num_digits);
}

/* The sums of TILE_O outputs for the digit rows [first, last), written as rows of y. */
static void finish(const te_int8_linear *call, int64_t first, int64_t last, int64_t output, int num_outputs,
                   const int32_t *sums, const int32_t *row_sums) {
    const int num_digits = (int)call->num_digits;
    for (int64_t r = first; r < last; r += num_digits) {
        const int64_t row = r / num_digits;
        const int32_t *digits = sums + (r - first) * TILE_O;
        for (int o = 0; o < num_outputs; o++) {
            const float total = joined_digits(digits + o, TILE_O, row_sums + o, 0, num_digits);
            float value = total * call->units[row] * call->scale[output + o];
            store(call->y, call->dtype, row * call->num_outputs + output + o, value);
        }
    }
}

static void outputs_of(const te_int8_linear *call, int64_t output, int64_t first, int64_t last, int64_t stride) {
    const int64_t num_inputs = call->num_inputs, left = call->num_outputs - output;
    const int num_outputs = left < TILE_O ? (int)left : TILE_O;
    int32_t sums[PASS_R * TILE_O], row_sums[TILE_O] = {0};
    memset(sums, 0, (size_t)(last - first) * TILE_O * sizeof *sums);
    for (int64_t column = 0; column < num_inputs; column += CHUNK_I) {
        const int64_t width = num_inputs - column < CHUNK_I ? num_inputs - column : CHUNK_I;
        const int8_t *w[TILE_O];
        for (int o = 0; o < TILE_O; o++)
            w[o] = call->weight + (output + (o < num_outputs ? o : num_outputs - 1)) * num_inputs + column;
        /* The next tile's rows follow this one's, so they are one run of memory. */
        const int has_next = output + 2 * TILE_O <= call->num_outputs;
        const int8_t *next = call->weight + (output + TILE_O) * num_inputs + column * TILE_O;
        const int64_t num_tiles = (last - first + TILE_R - 1) / TILE_R;
        const int share = num_tiles >= FETCH_TILES ? FETCH_TILES : num_tiles >= 2 ? 2 : 1;
        fetch_t fetch = {NULL, TILE_O / share};
        for (int64_t r = first, t = 0; r < last; r += TILE_R, t++) {
            const int num_rows = last - r < TILE_R ? (int)(last - r) : TILE_R;
            fetch.next = has_next && t < share ? next + t * fetch.lines * width : NULL;
            tile(num_rows, call->digits + r * stride + column, stride, w, width, sums + (r - first) * TILE_O,
                 r == first ? row_sums : NULL, fetch);
        }
    }
    finish(call, first, last, output, num_outputs, sums, row_sums);
}

int te_has_int8_linear(void) { return 1; }

/* Bytes of one digit row. Not a multiple of a large power of two, which would let all rows fall on the same few lines
   of a cache. */
int64_t te_int8_stride(int64_t num_inputs) { return (num_inputs + 63) / 64 * 64 + 64; }

void te_int8_linear_run(const te_int8_linear *call) {
    const int64_t stride = te_int8_stride(call->num_inputs), num_digits = call->num_digits;
    const int64_t num_digit_rows = num_digits * call->num_rows, element = element_bytes(call->dtype);
    const int64_t pass = PASS_R / num_digits * num_digits;
#pragma omp parallel num_threads((int)call->num_threads)
    {
#pragma omp for schedule(static)
        for (int64_t row = 0; row < call->num_rows; row++)
            call->units[row] = split_row((const char *)call->x + row * call->x_stride * element, call->dtype,
                                         call->num_inputs, (int)num_digits, call->digits + row * num_digits * stride, stride);
        for (int64_t first = 0; first < num_digit_rows; first += pass) {
            const int64_t last = first + pass < num_digit_rows ? first + pass : num_digit_rows;
#pragma omp for schedule(static) nowait
            for (int64_t output = 0; output < call->num_outputs; output += TILE_O)
                outputs_of(call, output, first, last, stride);
        }
    }
}

#else

int te_has_int8_linear(void) { return 0; }
int64_t te_int8_stride(int64_t num_inputs) { return num_inputs; }
void te_int8_linear_run(const te_int8_linear *call) { (void)call; }

#endif
