/* Products of rows of bytes, exact in integers: what the int8 and the int4 kernel share.

   A row of activations becomes G rows of signed bytes, its base-256 digits (numbers.h). The instruction multiplies
   unsigned by signed bytes, so a weight is taken plus 128, and 128 * (sum of a digit row) is taken off again. Sums are
   exact in any order, so that the shapes of tiles, chunks and blocks are free.

   While a block of weight rows is multiplied, the next one is fetched, line after line as it lies in memory: memory
   gives twice as much to one such walk as to several at once. A chunk of columns of a tile of digit rows stays in the
   first-level cache while the block passes.

   Legend: G digits of an activation, R digit rows, I inputs, O outputs. */

#ifndef TEENGINE_DIGITS_H
#define TEENGINE_DIGITS_H

#include "tiles.h"

/* Columns of one step along a tile. */
enum { STEP_I = 64 };
/* Digit rows for which a weight row is read once; bytes of a chunk of a tile's columns; columns that are decoded at
   once; the largest block of weight rows, and its bytes: this one and the next stay in the second-level cache. */
enum { PASS_R = 64, CHUNK_BYTES = 1 << 14, DECODED_I = 1024, MAX_BLOCK_O = 32, BLOCK_BYTES = 1 << 17 };
enum { MOST_DIGITS = 3 };

/* Digits lie tile after tile, and within a tile STEP_I columns of each of its rows, then the next columns: so they fall
   evenly on the lines of a cache. Behind them lie the sums of all digit rows. */
typedef struct {
    const void *x; /* (num_rows, num_inputs) of dtype, rows x_stride elements apart */
    uint8_t *digits;
    float *units; /* (num_rows) */
    int64_t (*place_of)(int64_t); /* where sixteen inputs from i on lie among the columns */
    int64_t num_rows, num_inputs, x_stride, num_digits, dtype;
    int64_t width; /* of a digit row: at least the inputs, zeros behind them */
} activations_t;

typedef struct {
    activations_t x;
    const void *weight; /* (num_outputs, row_bytes) */
    const float *scale; /* (num_outputs) */
    void *y;            /* (num_rows, num_outputs) of x's dtype */
    /* Writes `width` columns of a weight row, plus 128, in the digits' order; NULL where the weight is int8 itself. */
    void (*decode)(const void *call, int64_t output, int64_t column, int64_t width, uint8_t *target);
    const void *call;
    int64_t row_bytes, num_outputs, num_threads;
} products_t;

/* As an instruction, since a compiler that sees the function copies every sum from one register to another. */
static inline __attribute__((always_inline)) void add_products_of(__m512i *sum, __m512i weights, __m512i digits) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(*sum) : "v"(weights), "v"(digits));
}

/* What a tile of digit rows is multiplied with, and where the sums go: a vector for each tile of weight rows. */
typedef struct {
    const uint8_t *x, *w;
    int64_t w_stride, num_weight_rows, width;
    __m512i *sums;
    int is_first; /* of the chunks: nothing to add to */
} strip_t;

/* Multiplies `num_rows` digit rows with weight rows, num_outputs at a time. Sum (row, output) is element num_outputs *
   row + output. A weight that is int8 itself is flipped to be plus 128. */
static inline __attribute__((always_inline)) void strip_of(const int num_outputs, const int num_rows, const int flip,
                                                           const int lines, const strip_t *strip, fetch_t *fetch) {
    const __m512i sign = _mm512_set1_epi8((char)(flip ? 0x80 : 0));
    const int64_t width = strip->width, num_weight_rows = strip->num_weight_rows;
    const char *next = fetch->next;
    for (int64_t first = 0; first < num_weight_rows; first += num_outputs) {
        const uint8_t *x = strip->x, *w[THIN_O];
        UNROLLED for (int o = 0; o < num_outputs; o++)
            w[o] = strip->w + (first + o < num_weight_rows ? first + o : num_weight_rows - 1) * strip->w_stride;
        __m512i sums[TILE_SUMS];
        UNROLLED for (int j = 0; j < TILE_SUMS; j++) sums[j] = _mm512_setzero_si512();
        for (int64_t i = 0; i < width; i += STEP_I) {
            __m512i weights[THIN_O];
            UNROLLED for (int o = 0; o < num_outputs; o++) {
                weights[o] = _mm512_loadu_si512(w[o] + i);
                if (flip) weights[o] = _mm512_xor_si512(weights[o], sign);
            }
            UNROLLED for (int r = 0; r < num_rows; r++) {
                const __m512i digits = _mm512_load_si512(x + r * STEP_I);
                UNROLLED for (int o = 0; o < num_outputs; o++)
                    add_products_of(&sums[TILE_PLACE(num_outputs, r, o)], weights[o], digits);
            }
            x += num_rows * STEP_I;
            UNROLLED for (int line = 0; line < lines; line++)
                _mm_prefetch(next + 64 * line, num_outputs == THIN_O ? _MM_HINT_T0 : _MM_HINT_T1);
            next += 64 * lines;
        }
        __m512i *target = strip->sums + first / num_outputs;
        const __m512i found = whole_sums16(sums);
        *target = strip->is_first ? found : _mm512_add_epi32(*target, found);
    }
    fetch->next = next;
}

/* Each shape as a function of its own: a compiler that sees several in one runs out of registers. */
typedef void (*run_strip_t)(const strip_t *, fetch_t *);
#define STRIP(o, r, flip, lines)                                                                                  \
    static __attribute__((noinline)) void strip_##o##_##r##_##flip##_##lines(const strip_t *strip, fetch_t *fetch) { \
        strip_of(o, r, flip, lines, strip, fetch);                                                                \
    }
#define STRIPS(o, r, flip) STRIP(o, r, flip, 0) STRIP(o, r, flip, 1) STRIP(o, r, flip, 2) STRIP(o, r, flip, 4)
#define BOTH(o, r) STRIPS(o, r, 0) STRIPS(o, r, 1)
BOTH(4, 1) BOTH(4, 2) BOTH(4, 3) BOTH(4, 4)
BOTH(2, 1) BOTH(2, 2) BOTH(2, 3) BOTH(2, 4) BOTH(2, 5) BOTH(2, 6) BOTH(2, 7) BOTH(2, 8)
#define NAMES(o, r, f) {strip_##o##_##r##_##f##_0, strip_##o##_##r##_##f##_1, strip_##o##_##r##_##f##_2, strip_##o##_##r##_##f##_4}
#define NAMED(o, r) {NAMES(o, r, 0), NAMES(o, r, 1)}
static const run_strip_t thin_strips[THIN_R][2][4] = {NAMED(4, 1), NAMED(4, 2), NAMED(4, 3), NAMED(4, 4)};
static const run_strip_t wide_strips[WIDE_R][2][4] = {NAMED(2, 1), NAMED(2, 2), NAMED(2, 3), NAMED(2, 4),
                                                      NAMED(2, 5), NAMED(2, 6), NAMED(2, 7), NAMED(2, 8)};

/* How a pass over some activations is cut. */
typedef struct {
    int tile_outputs, tile_rows /* digit rows */, num_tiles;
} tiles_t;

static inline tiles_t tiles_of(int64_t num_rows, int64_t num_digits) {
    const int is_thin = num_rows * num_digits <= THIN_R;
    const int64_t most = (is_thin ? THIN_R : WIDE_R) / num_digits, num_tiles = (num_rows + most - 1) / most;
    const int64_t rows = (num_rows + num_tiles - 1) / num_tiles;
    return (tiles_t){is_thin ? THIN_O : WIDE_O, (int)(rows * num_digits), (int)((num_rows + rows - 1) / rows)};
}

static inline int64_t pass_rows(int64_t num_digits) { return PASS_R / num_digits; }

/* Activations of the pass that begins with this one. */
static inline int64_t rows_in_pass(const activations_t *x, int64_t first) {
    const int64_t left = x->num_rows - first, most = pass_rows(x->num_digits);
    return left < most ? left : most;
}

static inline int32_t *digit_sums(const activations_t *x) {
    return (int32_t *)(x->digits + x->num_rows * x->num_digits * x->width);
}

/* Writes a row's digits, lowest first, and their sums. What one unit of it stands for is NaN where it holds a number
   that is not finite, so that its results say so. */
static inline void split_row(const activations_t *x, int64_t row) {
    const int64_t num_digits = x->num_digits, first = row / pass_rows(num_digits) * pass_rows(num_digits);
    const int64_t num_digit_rows = rows_in_pass(x, first) * num_digits, place = (row - first) * num_digits;
    const int64_t tile_rows = tiles_of(rows_in_pass(x, first), num_digits).tile_rows, start = place / tile_rows * tile_rows;
    const int64_t rows = num_digit_rows - start < tile_rows ? num_digit_rows - start : tile_rows;
    uint8_t *target = x->digits + (first * num_digits + start) * x->width + (place - start) * STEP_I;
    const char *source = (const char *)x->x + row * x->x_stride * element_bytes(x->dtype);
    const uint32_t largest = largest_of(source, x->dtype, x->num_inputs);
    const __m512 factor = _mm512_set1_ps(digit_factor(largest, num_digits));
    const __m512i bias = _mm512_set1_epi32(bias_of(num_digits));
    __m512i sums[MOST_DIGITS] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512()};
    for (int64_t i = 0; i < x->width; i += 16) {
        const int64_t left = x->num_inputs - i, column = x->place_of(i);
        __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(load16(source, x->dtype, i, left > 0 ? mask16(left) : 0), factor));
        whole = _mm512_xor_si512(_mm512_add_epi32(whole, bias), bias);
        for (int g = 0; g < num_digits; g++) {
            const __m128i digit = _mm512_cvtepi32_epi8(whole);
            _mm_store_si128((__m128i *)(target + column / STEP_I * STEP_I * rows + g * STEP_I + column % STEP_I), digit);
            sums[g] = _mm512_add_epi32(sums[g], _mm512_cvtepi8_epi32(digit));
            whole = _mm512_srli_epi32(whole, 8);
        }
    }
    for (int g = 0; g < num_digits; g++) digit_sums(x)[row * num_digits + g] = _mm512_reduce_add_epi32(sums[g]);
    x->units[row] = digit_unit(largest, num_digits);
}

typedef struct {
    tiles_t tiles;
    int64_t chunk, block;
} shape_t;

static shape_t shape_of(const products_t *all, int64_t num_rows) {
    shape_t shape = {.tiles = tiles_of(num_rows, all->x.num_digits)};
    shape.chunk = CHUNK_BYTES / shape.tiles.tile_rows / STEP_I * STEP_I;
    if (all->x.width != all->row_bytes && shape.chunk > DECODED_I) shape.chunk = DECODED_I;
    shape.block = BLOCK_BYTES / all->row_bytes;
    const int64_t fair = all->num_outputs / (8 * all->num_threads);
    if (shape.block > fair) shape.block = fair;
    if (shape.block > MAX_BLOCK_O) shape.block = MAX_BLOCK_O;
    shape.block = shape.block < THIN_O ? THIN_O : shape.block / THIN_O * THIN_O;
    return shape;
}

/* Writes the results of one activation row for up to sixteen outputs, of which these are the sums of its digits. */
static inline void write_results(const products_t *all, int64_t row, int64_t output, int64_t end,
                                 const __m512i sums[MOST_DIGITS]) {
    const int64_t num_digits = all->x.num_digits;
    const int32_t *excess = digit_sums(&all->x) + row * num_digits;
    const __mmask16 mask = mask16(end - output);
    __m512 total = _mm512_setzero_ps();
    for (int64_t g = num_digits - 1; g >= 0; g--) {
        const __m512i sum = _mm512_sub_epi32(sums[g], _mm512_set1_epi32(128 * excess[g]));
        total = _mm512_fmadd_ps(total, _mm512_set1_ps(256.f), _mm512_cvtepi32_ps(sum));
    }
    total = _mm512_mul_ps(total, _mm512_set1_ps(all->x.units[row]));
    total = _mm512_mul_ps(total, _mm512_maskz_loadu_ps(mask, all->scale + output));
    store16(all->y, all->x.dtype, row * all->num_outputs + output, total, mask);
}

/* Of a tile of digit rows: a vector for each tile of weight rows. */
typedef __m512i sums_t[MAX_BLOCK_O / WIDE_O];

typedef struct {
    sums_t sums[PASS_R]; /* of each tile */
    uint8_t decoded[MAX_BLOCK_O * DECODED_I] __attribute__((aligned(64)));
} work_t;

static void finish(const products_t *all, const tiles_t *tiles, int64_t first, int64_t last, int64_t output,
                   int64_t end, const sums_t *all_sums) {
    const int64_t num_digits = all->x.num_digits;
    for (int64_t row = first; row < last; row++) {
        const int64_t digit_row = (row - first) * num_digits;
        const __m512i *sums = all_sums[digit_row / tiles->tile_rows];
        for (int64_t o = output; o < end; o += 16, sums += 16 / tiles->tile_outputs) {
            __m512i found[MOST_DIGITS];
            for (int64_t g = 0; g < num_digits; g++)
                found[g] = collected(sums, digit_row % tiles->tile_rows + g, tiles->tile_outputs);
            write_results(all, row, o, end, found);
        }
    }
}

/* Puts columns of the weight rows [output, end) in the digits' order and with some bytes behind them that may be read:
   as they are stored, where they have both. */
static inline void place_weights(const products_t *all, int64_t output, int64_t end, int64_t column, strip_t *strip,
                                 uint8_t *decoded) {
    strip->w = (const uint8_t *)all->weight + output * all->row_bytes + column;
    strip->w_stride = all->row_bytes;
    if (!all->decode && (end < all->num_outputs || strip->width % STEP_I == 0)) return;
    const int64_t stride = (strip->width + STEP_I - 1) / STEP_I * STEP_I;
    for (int64_t row = output; row < end; row++) {
        uint8_t *target = decoded + (row - output) * stride;
        if (all->decode) all->decode(all->call, row, column, strip->width, target);
        else memcpy(target, strip->w + (row - output) * all->row_bytes, (size_t)strip->width); /* zero digits meet the rest */
    }
    strip->w = decoded;
    strip->w_stride = stride;
}

/* Multiplies the block of weight rows [output, end) with the activation rows [first, last). */
static void block_of(const products_t *all, const shape_t *shape, int64_t first, int64_t last, int64_t output,
                     int64_t end) {
    work_t work;
    const int64_t num_rows = (last - first) * all->x.num_digits, tile_rows = shape->tiles.tile_rows;
    const int64_t width = all->decode ? all->x.width : all->x.num_inputs;
    const int is_linear = shape->chunk >= width && shape->tiles.num_tiles == 1; /* read as it lies in memory */
    const int64_t ahead = (is_linear ? THIN_O : end - output) * all->row_bytes;
    const int lines = shape->tiles.tile_outputs / (all->decode ? 2 : 1);
    fetch_t fetch = spread((const char *)all->weight + output * all->row_bytes + ahead, lines, shape->tiles.num_tiles);
    for (int64_t column = 0; column < width; column += shape->chunk) {
        strip_t strip = {.num_weight_rows = end - output, .is_first = !column};
        strip.width = width - column < shape->chunk ? width - column : shape->chunk;
        place_weights(all, output, end, column, &strip, work.decoded);
        for (int t = 0; t < shape->tiles.num_tiles; t++) {
            const int64_t r = t * tile_rows, rows = num_rows - r < tile_rows ? num_rows - r : tile_rows;
            strip.x = all->x.digits + (first * all->x.num_digits + r) * all->x.width + column * rows;
            strip.sums = work.sums[t];
            (shape->tiles.tile_outputs == THIN_O ? thin_strips : wide_strips)[rows - 1][!all->decode]
                [lines_index(&fetch, t)](&strip, &fetch);
        }
    }
    finish(all, &shape->tiles, first, last, output, end, work.sums);
}

/* Multiplies every row; called by all threads of a parallel region, once the digits are there. */
static void multiply_digits(const products_t *all) {
    for (int64_t first = 0; first < all->x.num_rows; first += pass_rows(all->x.num_digits)) {
        const int64_t last = first + rows_in_pass(&all->x, first);
        const shape_t shape = shape_of(all, last - first);
        const int64_t num_blocks = (all->num_outputs + shape.block - 1) / shape.block;
#pragma omp for schedule(static) nowait
        for (int64_t block = 0; block < num_blocks; block++) {
            const int64_t output = block * shape.block, end = output + shape.block;
            block_of(all, &shape, first, last, output, end < all->num_outputs ? end : all->num_outputs);
        }
    }
}

#endif
