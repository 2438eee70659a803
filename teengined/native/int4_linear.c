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

/* Outputs whose results are written together, and how many outputs ahead codes are fetched. */
enum { ROUND_O = 16, AHEAD_O = 8 };

/* Bytes of one digit row, and of its sum. */
int64_t te_int4_stride(int64_t num_inputs) { return padded(num_inputs) + STEP_I; }

/* Four books side by side, whose places in the tables are 16 times every other byte of `places`, from bit 4 on. */
static inline __attribute__((always_inline)) __m512i four_books(const uint8_t *tables, uint64_t places) {
#define BOOK(lane) _mm_load_si128((const __m128i *)(tables + (places >> (16 * (lane)) & 0xff0)))
    __m512i found = _mm512_castsi128_si512(BOOK(0));
    found = _mm512_mask_broadcast_i32x4(found, 0x00f0, BOOK(1));
    found = _mm512_mask_broadcast_i32x4(found, 0x0f00, BOOK(2));
    return _mm512_mask_broadcast_i32x4(found, 0xf000, BOOK(3));
#undef BOOK
}

/* The weights, plus 128, of one block of inputs: of the low halves, and of the high ones. */
static inline __attribute__((always_inline)) void look_up(const uint8_t *tables, const uint8_t *codes,
                                                          const uint8_t *books, __m512i *low, __m512i *high) {
    const __m512i packed = _mm512_loadu_si512(codes), half = _mm512_set1_epi8(15);
    uint64_t places;
    memcpy(&places, books, 8);
    *low = _mm512_shuffle_epi8(four_books(tables, places << 4), _mm512_and_si512(packed, half));
    *high = _mm512_shuffle_epi8(four_books(tables, places >> 4), _mm512_and_si512(_mm512_srli_epi16(packed, 4), half));
}

/* Writes the weights of the last block of a row, which has less than BLOCK_I inputs; what lies behind them meets zeros. */
static void look_up_rest(const te_int4_linear *call, int64_t output, int64_t column, uint8_t *target) {
    const int64_t num_inputs = call->num_inputs, num_lanes = (num_inputs - column) / LANE_I;
    uint8_t codes[BLOCK_I / 2] = {0}, books[BLOCK_I / GROUP_I] = {0};
    memcpy(codes, call->codes + (output * num_inputs + column) / 2, (size_t)num_lanes * LANE_I / 2);
    memcpy(books, call->books + (output * num_inputs + column) / GROUP_I, (size_t)num_lanes * LANE_I / GROUP_I);
    __m512i low, high;
    look_up(call->tables, codes, books, &low, &high);
    _mm512_storeu_si512(target, low);
    _mm512_storeu_si512(target + BLOCK_I / 2, high);
}

/* Writes columns of a weight row, plus 128, in the order of the digits. */
static void decode(const void *of, int64_t output, int64_t column, int64_t width, uint8_t *target) {
    const te_int4_linear *call = of;
    const uint8_t *tables = call->tables;
    const int64_t start = output * call->num_inputs + column, whole = call->num_inputs - column;
    const int64_t num_whole = (width < whole ? width : whole) / BLOCK_I * BLOCK_I;
    const uint8_t *codes = call->codes + start / 2, *books = call->books + start / GROUP_I;
    _mm_prefetch((const char *)books + MAX_BLOCK_O * call->num_inputs / GROUP_I, _MM_HINT_T1);
    for (int64_t i = 0; i < num_whole; i += BLOCK_I) {
        __m512i low, high;
        look_up(tables, codes + i / 2, books + i / GROUP_I, &low, &high);
        _mm512_store_si512(target + i, low);
        _mm512_store_si512(target + i + BLOCK_I / 2, high);
    }
    if (num_whole < width) look_up_rest(call, output, column + num_whole, target + num_whole);
}

/* Returns the products of a tile of `num_rows` digit rows with `num_outputs` weight rows from `output` on, as a strip
   does (digits.h); beyond the last it repeats that. Codes are used as soon as they are looked up, and further ones are
   fetched as they lie in memory. */
static inline __attribute__((always_inline)) __m512i multiply_codes(const int num_outputs, const int num_rows,
                                                                    const te_int4_linear *call, int64_t output) {
    const int64_t num_inputs = call->num_inputs, num_whole = num_inputs / BLOCK_I * BLOCK_I;
    const uint8_t *tables = call->tables, *x = call->digits, *codes[THIN_O], *books[THIN_O];
    const char *next = (const char *)call->codes + (output + AHEAD_O) * num_inputs / 2;
    const char *next_books = (const char *)call->books + (output + AHEAD_O) * num_inputs / GROUP_I;
    uint8_t rest[THIN_O][BLOCK_I];
    __m512i sums[TILE_SUMS];
    UNROLLED for (int j = 0; j < TILE_SUMS; j++) sums[j] = _mm512_setzero_si512();
    UNROLLED for (int o = 0; o < num_outputs; o++) {
        const int64_t row = output + o < call->num_outputs ? output + o : call->num_outputs - 1;
        codes[o] = call->codes + row * num_inputs / 2;
        books[o] = call->books + row * num_inputs / GROUP_I;
        if (num_whole < num_inputs) look_up_rest(call, row, num_whole, rest[o]);
    }
#define ADD_BLOCK(o, low, high)                                                                                     \
    UNROLLED for (int r = 0; r < num_rows; r++) {                                                                   \
        add_products_of(&sums[TILE_PLACE(num_outputs, r, o)], low, _mm512_load_si512(x + r * STEP_I));                                \
        add_products_of(&sums[TILE_PLACE(num_outputs, r, o)], high, _mm512_load_si512(x + (num_rows + r) * STEP_I));                  \
    }
    for (int64_t i = 0; i < num_whole; i += BLOCK_I, x += num_rows * BLOCK_I) {
        _mm_prefetch(next_books, _MM_HINT_T0);
        UNROLLED for (int o = 0; o < num_outputs; o++) {
            __m512i low, high;
            look_up(tables, codes[o] + i / 2, books[o] + i / GROUP_I, &low, &high);
            _mm_prefetch(next + o * BLOCK_I / 2, _MM_HINT_T0);
            ADD_BLOCK(o, low, high)
        }
        next += num_outputs * BLOCK_I / 2;
        next_books += num_outputs * BLOCK_I / GROUP_I;
    }
    if (num_whole < num_inputs)
        UNROLLED for (int o = 0; o < num_outputs; o++) {
            ADD_BLOCK(o, _mm512_loadu_si512(rest[o]), _mm512_loadu_si512(rest[o] + BLOCK_I / 2))
        }
#undef ADD_BLOCK
    return whole_sums16(sums);
}

/* Each shape as a function of its own: a compiler that sees several in one runs out of registers. */
typedef __m512i (*multiply_codes_t)(const te_int4_linear *, int64_t);
#define CODES(o, r)                                                                                           \
    static __attribute__((noinline)) __m512i multiply_codes_##o##_##r(const te_int4_linear *call, int64_t output) { \
        return multiply_codes(o, r, call, output);                                                            \
    }
CODES(4, 1) CODES(4, 2) CODES(4, 3) CODES(4, 4) CODES(2, 5) CODES(2, 6) CODES(2, 7) CODES(2, 8)
static const multiply_codes_t code_tiles[WIDE_R] = {multiply_codes_4_1, multiply_codes_4_2, multiply_codes_4_3,
                                                    multiply_codes_4_4, multiply_codes_2_5, multiply_codes_2_6,
                                                    multiply_codes_2_7, multiply_codes_2_8};

/* Multiplies the rows of a single tile. */
static void multiply_tile(const te_int4_linear *call, const products_t *all, const tiles_t *tiles) {
#pragma omp for schedule(static)
    for (int64_t output = 0; output < call->num_outputs; output += ROUND_O) {
        sums_t sums;
        const int64_t end = output + ROUND_O < call->num_outputs ? output + ROUND_O : call->num_outputs;
        for (int64_t o = output; o < end; o += tiles->tile_outputs)
            sums[(o - output) / tiles->tile_outputs] = code_tiles[tiles->tile_rows - 1](call, o);
        finish(all, tiles, 0, call->num_rows, output, end, (const sums_t *)&sums);
    }
}

void te_int4_linear_run(const te_int4_linear *call) {
    const products_t all = {
        .x = {.x = call->x, .digits = call->digits, .units = call->units, .place_of = place_of, .num_rows = call->num_rows,
              .num_inputs = call->num_inputs, .x_stride = call->x_stride, .num_digits = call->num_digits,
              .dtype = call->dtype, .width = padded(call->num_inputs)},
        .weight = call->codes, .scale = call->scale, .y = call->y, .decode = decode, .call = call,
        .row_bytes = call->num_inputs / 2, .num_outputs = call->num_outputs, .num_threads = call->num_threads};
    const tiles_t tiles = tiles_of(call->num_rows, call->num_digits);
#pragma omp parallel num_threads((int)call->num_threads)
    {
#pragma omp for schedule(static)
        for (int64_t row = 0; row < call->num_rows; row++) split_row(&all.x, row);
        if (tiles.num_tiles == 1) multiply_tile(call, &all, &tiles);
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
