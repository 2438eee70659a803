/* Products of activations with a weight of four bits, exact in integers.

   A code of four bits is a place in a book of 16 bytes; each group of 16 inputs of an output names its book. So the
   weight is one of bytes with a scale for each output. A row of activations becomes fixed-point numbers of G signed
   base-256 digits against its largest element, each digit a row of bytes, so that x @ W.T is G integer products, which
   are summed exactly. A row's result depends on nothing but the row and the weight. What is read from memory are the
   codes: a byte shuffle looks 64 of them up at a time.

   The instruction multiplies unsigned by signed bytes, so books hold a weight plus 128, and 128 * (sum of a digit row)
   is taken off again. Codes lie as they are stored, (O, I / 2): 16 bytes hold 32 inputs, the first 16 in the low halves
   and the next 16 in the high ones. Digits are put into the same order, which no sum notices.

   Legend: M rows of activations, G digits, R = G * M digit rows, I inputs, O outputs. */

#include "numbers.h"

/* Inputs of one group, of 16 bytes of codes, and of one vector of 64 bytes of codes. */
enum { GROUP_I = 16, LANE_I = 32, BLOCK_I = 128 };

int te_has_int4_linear(void) { return 1; }

static inline int64_t padded(int64_t num_inputs) { return (num_inputs + BLOCK_I - 1) / BLOCK_I * BLOCK_I; }

/* Where the group of inputs that starts at `i` lies in a digit row: low halves of a block before high ones. */
static inline int64_t place_of(int64_t i) {
    const int64_t within = i % BLOCK_I;
    return i - within + within / LANE_I * GROUP_I + (within % LANE_I ? BLOCK_I / 2 : 0);
}

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512F__)
#include "digits.h"

/* Outputs whose codes are looked up together for one activation row, and those whose results are written together. */
enum { TILE_O = 8, ROUND_O = 16 };

/* Bytes of one digit row, and of its sum. */
int64_t te_int4_stride(int64_t num_inputs) { return padded(num_inputs) + STEP_I; }

/* Four books side by side: those of every other group from `books` on. */
static inline __m512i tables_of(const uint8_t *tables, const uint8_t *books, int64_t num_lanes) {
#define BOOK(lane) _mm_load_si128((const __m128i *)(tables + 16 * (int64_t)books[2 * (lane)]))
    __m512i found = _mm512_zextsi128_si512(BOOK(0));
    if (num_lanes > 1) found = _mm512_mask_broadcast_i32x4(found, 0x00f0, BOOK(1));
    if (num_lanes > 2) found = _mm512_mask_broadcast_i32x4(found, 0x0f00, BOOK(2));
    if (num_lanes > 3) found = _mm512_mask_broadcast_i32x4(found, 0xf000, BOOK(3));
#undef BOOK
    return found;
}

/* The weights of one block of inputs: of the low halves, and of the high ones. Zeros beyond the last lane. */
static inline __attribute__((always_inline)) void look_up(const uint8_t *tables, const uint8_t *codes,
                                                          const uint8_t *books, int64_t num_lanes, __m512i *low,
                                                          __m512i *high) {
    const __mmask64 mask = num_lanes >= 4 ? ~0ULL : (1ULL << 16 * num_lanes) - 1;
    const __m512i half = _mm512_set1_epi8(15);
    const __m512i packed = num_lanes >= 4 ? _mm512_loadu_si512(codes) : _mm512_maskz_loadu_epi8(mask, codes);
    *low = _mm512_shuffle_epi8(tables_of(tables, books, num_lanes), _mm512_and_si512(packed, half));
    *high = _mm512_shuffle_epi8(tables_of(tables, books + 1, num_lanes),
                                _mm512_and_si512(_mm512_srli_epi16(packed, 4), half));
}

static int64_t lanes_at(int64_t num_inputs, int64_t column) {
    return num_inputs - column >= BLOCK_I ? BLOCK_I / LANE_I : (num_inputs - column) / LANE_I;
}

/* Writes columns of a weight row, plus 128, in the order of the digits. */
static void decode(const void *of, int64_t output, int64_t column, int64_t width, uint8_t *target) {
    const te_int4_linear *call = of;
    const int64_t num_inputs = call->num_inputs;
    const uint8_t *codes = call->codes + output * num_inputs / 2, *books = call->books + output * num_inputs / GROUP_I;
    _mm_prefetch((const char *)books + (column + MAX_BLOCK_O * num_inputs) / GROUP_I, _MM_HINT_T1);
    for (int64_t i = column; i < column + width; i += BLOCK_I, target += BLOCK_I) {
        __m512i low, high;
        const int64_t num_lanes = lanes_at(num_inputs, i);
        if (num_lanes == 4) look_up(call->tables, codes + i / 2, books + i / GROUP_I, 4, &low, &high);
        else look_up(call->tables, codes + i / 2, books + i / GROUP_I, num_lanes, &low, &high);
        _mm512_store_si512(target, low);
        _mm512_store_si512(target + BLOCK_I / 2, high);
    }
}

/* Writes, for each digit g, to half g * ROUND_O / TILE_O of the sums the products of one row's digits with TILE_O weight rows, from `output` on; beyond the
   last it repeats that. Fetches the codes of the rows behind them, as they lie in memory. */
static inline __attribute__((always_inline)) void multiply_row(const int num_digits, const te_int4_linear *call,
                                                               const uint8_t *x, int64_t output, __m256i *sums) {
    const int64_t num_inputs = call->num_inputs;
    const uint8_t *next = call->codes + (output + TILE_O) * num_inputs / 2;
    const uint8_t *next_books = call->books + (output + TILE_O) * num_inputs / GROUP_I;
    const uint8_t *codes[TILE_O], *books[TILE_O];
    __m512i found[MOST_DIGITS + 1][TILE_O];
    for (int o = 0; o < TILE_O; o++) {
        const int64_t row = output + o < call->num_outputs ? output + o : call->num_outputs - 1;
        codes[o] = call->codes + row * num_inputs / 2;
        books[o] = call->books + row * num_inputs / GROUP_I;
    }
    UNROLLED for (int g = 0; g <= MOST_DIGITS; g++)
        UNROLLED for (int o = 0; o < TILE_O; o++) found[g][o] = _mm512_setzero_si512();
    for (int64_t i = 0; i < num_inputs; i += BLOCK_I) {
        const int64_t num_lanes = lanes_at(num_inputs, i);
        _mm_prefetch((const char *)next_books + i / BLOCK_I * 64, _MM_HINT_T0);
        UNROLLED for (int o = 0; o < TILE_O; o++) {
            __m512i low, high;
            if (num_lanes == 4) look_up(call->tables, codes[o] + i / 2, books[o] + i / GROUP_I, 4, &low, &high);
            else look_up(call->tables, codes[o] + i / 2, books[o] + i / GROUP_I, num_lanes, &low, &high);
            _mm_prefetch((const char *)next + (i / BLOCK_I * TILE_O + o) * 64, _MM_HINT_T0);
            UNROLLED for (int g = 0; g < num_digits; g++) {
                const uint8_t *digits = x + i * num_digits + g * STEP_I;
                add_products_of(&found[g][o], low, _mm512_loadu_si512(digits));
                add_products_of(&found[g][o], high, _mm512_loadu_si512(digits + num_digits * STEP_I));
            }
        }
    }
    for (int g = 0; g < num_digits; g += 2) {
        __m512i placed[2 * TILE_O];
        UNROLLED for (int j = 0; j < 2 * TILE_O; j++) placed[(j & 3) * 4 + (j >> 2)] = found[g + j / TILE_O][j % TILE_O];
        const __m512i both = lane_sums16(placed);
        sums[g * ROUND_O / TILE_O] = _mm512_castsi512_si256(both);
        if (g + 1 < num_digits) sums[(g + 1) * ROUND_O / TILE_O] = _mm512_extracti64x4_epi64(both, 1);
    }
}

/* Each number of digits as a function of its own: a compiler that sees them in one runs out of registers. */
#define ROW(n)                                                                                                       \
    static __attribute__((noinline)) void multiply_row_##n(const te_int4_linear *call, const uint8_t *x,             \
                                                           int64_t output, __m256i *sums) {                          \
        multiply_row(n, call, x, output, sums);                                                                      \
    }
ROW(1) ROW(2) ROW(3)

/* Multiplies a single row, whose weights are used as soon as they are looked up. */
static void multiply_alone(const te_int4_linear *call, const products_t *all) {
#pragma omp for schedule(static)
    for (int64_t output = 0; output < call->num_outputs; output += ROUND_O) {
        __m512i sums[MOST_DIGITS];
        const int64_t end = output + ROUND_O < call->num_outputs ? output + ROUND_O : call->num_outputs;
        for (int64_t o = output; o < end; o += TILE_O)
            (call->num_digits == 1 ? multiply_row_1 : call->num_digits == 2 ? multiply_row_2 : multiply_row_3)(
                call, all->x.digits, o, (__m256i *)sums + (o - output) / TILE_O);
        write_results(all, 0, output, end, sums);
    }
}

void te_int4_linear_run(const te_int4_linear *call) {
    const products_t all = {
        .x = {.x = call->x, .digits = call->digits, .units = call->units, .place_of = place_of, .num_rows = call->num_rows,
              .num_inputs = call->num_inputs, .x_stride = call->x_stride, .num_digits = call->num_digits,
              .dtype = call->dtype, .width = padded(call->num_inputs)},
        .weight = call->codes, .scale = call->scale, .y = call->y, .decode = decode, .call = call,
        .row_bytes = call->num_inputs / 2, .num_outputs = call->num_outputs, .num_threads = call->num_threads};
#pragma omp parallel num_threads((int)call->num_threads)
    {
#pragma omp for schedule(static)
        for (int64_t row = 0; row < call->num_rows; row++) split_row(&all.x, row);
        if (call->num_rows == 1) multiply_alone(call, &all);
        else multiply_digits(&all);
    }
}

#else

/* The same for processors without the instructions: one number at a time. */
int64_t te_int4_stride(int64_t num_inputs) { return padded(num_inputs) * 4; }

static inline float load(const void *x, int64_t dtype, int64_t i) {
    if (dtype == TE_F32) return ((const float *)x)[i];
    const uint32_t bits = (uint32_t)((const uint16_t *)x)[i] << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* Writes a row as whole numbers, which fit 24 bits and a sign; returns what one stands for. */
static float round_row(const te_int4_linear *call, int64_t row, int32_t *whole) {
    const int64_t start = row * call->x_stride;
    uint32_t largest = 0;
    for (int64_t i = 0; i < call->num_inputs; i++) {
        const float value = fabsf(load(call->x, call->dtype, start + i));
        uint32_t bits;
        memcpy(&bits, &value, 4);
        largest = bits > largest ? bits : largest;
    }
    const float factor = digit_factor(largest, call->num_digits);
    for (int64_t i = 0; i < call->num_inputs; i++)
        whole[i] = largest < 0x7f800000u ? (int32_t)lrintf(load(call->x, call->dtype, start + i) * factor) : 0;
    return digit_unit(largest, call->num_digits);
}

static void output_of(const te_int4_linear *call, int64_t output, const int32_t *all, int64_t stride) {
    const uint8_t *codes = call->codes + output * call->num_inputs / 2;
    const uint8_t *books = call->books + output * call->num_inputs / GROUP_I;
    for (int64_t row = 0; row < call->num_rows; row++) {
        const int32_t *whole = all + row * stride;
        int64_t sum = 0;
        for (int64_t i = 0; i < call->num_inputs; i++) {
            const uint8_t code = codes[i / LANE_I * GROUP_I + i % GROUP_I] >> (i % LANE_I >= GROUP_I ? 4 : 0) & 15;
            sum += (int64_t)whole[i] * ((int32_t)call->tables[16 * (int64_t)books[i / GROUP_I] + code] - 128);
        }
        const float value = (float)sum * call->units[row] * call->scale[output];
        store(call->y, call->dtype, row * call->num_outputs + output, value);
    }
}

void te_int4_linear_run(const te_int4_linear *call) {
    int32_t *whole = (int32_t *)call->digits;
    const int64_t stride = te_int4_stride(call->num_inputs) / 4;
#pragma omp parallel num_threads((int)call->num_threads)
    {
#pragma omp for schedule(static)
        for (int64_t row = 0; row < call->num_rows; row++) call->units[row] = round_row(call, row, whole + row * stride);
#pragma omp for schedule(static)
        for (int64_t output = 0; output < call->num_outputs; output++) output_of(call, output, whole, stride);
    }
}

#endif
