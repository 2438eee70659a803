/* Products of bf16 activations with a weight of bf16, or of int8 or four-bit codes with a scale for each output.

   The weight stays as it is stored, (O, I) row after row. Two things make the speed:
   - A thread reads its part of the weight from front to back: while a block of rows is multiplied, the next one is
     fetched, line after line as it lies in memory, into the second-level cache. Memory gives twice as much to one
     such walk as to several at once.
   - Activations are laid out anew, some rows beside each other, and a chunk of columns of all of them stays in the
     first-level cache while a block of weight rows passes. What is fetched and what misses the cache share the same
     few slots, so a miss here would hold up the fetching.
   An int8 weight becomes bf16, which holds every such number exactly, some rows and a chunk of columns at a time; so
   do codes, whose books hold such numbers plus 128.

   Sixteen partial sums of pairs of neighbours run along a chunk and are added up at its end, and so are the chunks, in
   fp32: always in the same order for the same chunk, whatever other rows there are.

   Legend: M rows of activations, I inputs, O outputs. */

#include "kernels.h"

#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512F__)
#include "tiles.h"

/* Columns of one step along a tile; rows for which a weight is read once; the largest block of weight rows, and of such
   as are decoded; numbers that are decoded at once. */
enum { STEP_I = 32, PASS_R = 64, MAX_BLOCK_O = 64, MAX_DECODED_O = 16, DECODED = 1 << 14 };
/* Bytes of a block of weight rows, so that this one and the next fit the second-level cache. */
enum { BLOCK_BYTES = 1 << 18 };
/* Inputs of one book. */
enum { GROUP_I = 16 };

static inline __m512bh pairs(const uint16_t *x) { return (__m512bh)_mm512_loadu_si512(x); }

/* As an instruction, since a compiler that sees the function copies every sum from one register to another. */
static inline __attribute__((always_inline)) void add_products_of(__m512 *sum, __m512bh row, __m512bh weights) {
    __asm__("vdpbf16ps %2, %1, %0" : "+v"(*sum) : "v"(row), "v"(weights));
}

/* What a tile of packed rows is multiplied with, and where the sums go: a vector for each tile of weight rows. */
typedef struct {
    const uint16_t *x, *w;
    int64_t w_stride, num_weight_rows, width;
    __m512 *sums;
    int is_first; /* of the chunks: nothing to add to */
} strip_t;

/* Multiplies `num_rows` rows with weight rows, num_outputs at a time. A tile is packed with TILE_SUMS /
   num_outputs rows. */
static inline __attribute__((always_inline)) void strip_of(const int num_outputs, const int num_rows, const int lines,
                                                           const strip_t *strip, fetch_t *fetch) {
    const int tile_rows = TILE_SUMS / num_outputs;
    const int64_t width = strip->width, num_weight_rows = strip->num_weight_rows;
    const char *next = fetch->next;
    for (int64_t first = 0; first < num_weight_rows; first += num_outputs) {
        const uint16_t *x = strip->x, *w[THIN_O];
        UNROLLED for (int o = 0; o < num_outputs; o++)
            w[o] = strip->w + (first + o < num_weight_rows ? first + o : num_weight_rows - 1) * strip->w_stride;
        __m512 sums[TILE_SUMS];
        UNROLLED for (int j = 0; j < TILE_SUMS; j++) sums[j] = _mm512_setzero_ps();
        for (int64_t i = 0; i < width; i += STEP_I) {
            __m512bh weights[THIN_O];
            UNROLLED for (int o = 0; o < num_outputs; o++) weights[o] = pairs(w[o] + i);
            UNROLLED for (int r = 0; r < num_rows; r++) {
                const __m512bh row = pairs(x + r * STEP_I);
                UNROLLED for (int o = 0; o < num_outputs; o++)
                    add_products_of(&sums[TILE_PLACE(num_outputs, r, o)], row, weights[o]);
            }
            x += tile_rows * STEP_I;
            UNROLLED for (int line = 0; line < lines; line++) _mm_prefetch(next + 64 * line, _MM_HINT_T1);
            next += 64 * lines;
        }
        __m512 *target = strip->sums + first / num_outputs;
        const __m512 found = sums16(sums);
        *target = strip->is_first ? found : _mm512_add_ps(*target, found);
    }
    fetch->next = next;
}

/* Each shape as a function of its own: a compiler that sees several in one runs out of registers. */
typedef void (*run_strip_t)(const strip_t *, fetch_t *);
#define STRIP(o, r, lines)                                                                                     \
    static __attribute__((noinline)) void strip_##o##_##r##_##lines(const strip_t *strip, fetch_t *fetch) { \
        strip_of(o, r, lines, strip, fetch);                                                                   \
    }
#define STRIPS(o, r) STRIP(o, r, 0) STRIP(o, r, 1) STRIP(o, r, 2) STRIP(o, r, 4)
STRIPS(4, 1) STRIPS(4, 2) STRIPS(4, 3) STRIPS(4, 4)
STRIPS(2, 1) STRIPS(2, 2) STRIPS(2, 3) STRIPS(2, 4) STRIPS(2, 5) STRIPS(2, 6) STRIPS(2, 7) STRIPS(2, 8)
#define NAMED(o, r) {strip_##o##_##r##_0, strip_##o##_##r##_1, strip_##o##_##r##_2, strip_##o##_##r##_4}
static const run_strip_t thin_strips[THIN_R][4] = {NAMED(4, 1), NAMED(4, 2), NAMED(4, 3), NAMED(4, 4)};
static const run_strip_t wide_strips[WIDE_R][4] = {NAMED(2, 1), NAMED(2, 2), NAMED(2, 3), NAMED(2, 4),
                                                   NAMED(2, 5), NAMED(2, 6), NAMED(2, 7), NAMED(2, 8)};

/* Whether weight rows are multiplied as they are stored. */
static int is_direct(const te_bf16_linear *call) { return call->weight_dtype == TE_BF16 && call->num_inputs % STEP_I == 0; }

static int tile_outputs(const te_bf16_linear *call) { return call->num_rows <= THIN_R ? THIN_O : WIDE_O; }

static int tile_rows(const te_bf16_linear *call) { return TILE_SUMS / tile_outputs(call); }

/* Lays the rows of one tile out step by step: STEP_I columns of each of its rows, zeros where there are no more. */
static void pack_tile(const te_bf16_linear *call, int64_t first, int64_t last, int64_t width, uint16_t *packed) {
    for (int64_t i = 0; i < width; i += STEP_I) {
        const int64_t left = call->num_inputs - i;
        const __mmask32 mask = left >= STEP_I ? ~0U : ~0U >> (STEP_I - left);
        for (int64_t r = first; r < last; r++)
            _mm512_storeu_si512(packed + i * tile_rows(call) + (r - first) * STEP_I,
                                _mm512_maskz_loadu_epi16(mask, call->x + r * call->x_stride + i));
    }
}

static int64_t row_bytes(const te_bf16_linear *call) {
    const int64_t num_inputs = call->num_inputs;
    return call->weight_dtype == TE_I4 ? num_inputs / 2 : num_inputs * element_bytes(call->weight_dtype);
}

/* The 32 numbers from `column` on that a row of codes stands for: 16 in the low halves of its bytes, 16 in the high. */
static inline __m256i looked_up(const te_bf16_linear *call, int64_t output, int64_t column) {
    const uint8_t *codes = (const uint8_t *)call->weight + (output * call->num_inputs + column) / 2;
    const uint8_t *books = call->books + (output * call->num_inputs + column) / GROUP_I;
    const __m128i both = _mm_loadu_si128((const __m128i *)codes), half = _mm_set1_epi8(15);
    const __m128i low_book = _mm_load_si128((const __m128i *)(call->tables + 16 * books[0]));
    const __m128i high_book = _mm_load_si128((const __m128i *)(call->tables + 16 * books[1]));
    const __m128i low = _mm_shuffle_epi8(low_book, _mm_and_si128(both, half));
    const __m128i high = _mm_shuffle_epi8(high_book, _mm_and_si128(_mm_srli_epi16(both, 4), half));
    return _mm256_xor_si256(_mm256_set_m128i(high, low), _mm256_set1_epi8((char)0x80));
}

/* Writes `width` columns of a weight row from `column` on as bf16, then zeros up to a whole step. */
static void decode(const te_bf16_linear *call, int64_t output, int64_t column, int64_t width, uint16_t *target) {
    const int64_t start = output * call->num_inputs + column;
    for (int64_t i = 0; i < width; i += STEP_I) {
        const __mmask32 mask = width - i >= STEP_I ? ~0U : ~0U >> (STEP_I - (width - i));
        __m512i numbers;
        if (call->weight_dtype == TE_BF16) numbers = _mm512_maskz_loadu_epi16(mask, (const uint16_t *)call->weight + start + i);
        else {
            const __m256i bytes = call->weight_dtype == TE_I4
                                      ? looked_up(call, output, column + i)
                                      : _mm256_maskz_loadu_epi8(mask, (const int8_t *)call->weight + start + i);
            const __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(bytes)));
            const __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_extracti128_si256(bytes, 1)));
            numbers = (__m512i)_mm512_cvtne2ps_pbh(high, low);
        }
        _mm512_storeu_si512(target + i, numbers);
    }
}

/* Lines of the next weight block that are due for each step of a tile. */
static int lines_of(const te_bf16_linear *call) {
    const int bits = call->weight_dtype == TE_BF16 ? 16 : call->weight_dtype == TE_I8 ? 8 : 4;
    const int lines = tile_outputs(call) * STEP_I * bits / 512;
    return lines > 1 ? lines : 1;
}

typedef struct {
    __m512 sums[PASS_R / THIN_R][MAX_BLOCK_O / WIDE_O]; /* of each tile of rows, and of weight rows */
    uint16_t decoded[DECODED] __attribute__((aligned(64)));
} work_t;

static void finish(const te_bf16_linear *call, int64_t first, int64_t last, int64_t output, int64_t end, const work_t *work) {
    const int outputs = tile_outputs(call), rows = tile_rows(call);
    for (int64_t row = first; row < last; row++) {
        const __m512 *sums = work->sums[(row - first) / rows];
        for (int64_t o = output; o < end; o += 16, sums += 16 / outputs) {
            const __mmask16 mask = mask16(end - o);
            __m512 value = (__m512)collected((const __m512i *)sums, (row - first) % rows, outputs);
            if (call->scale) value = _mm512_mul_ps(value, _mm512_maskz_loadu_ps(mask, call->scale + o));
            store16(call->y, TE_BF16, row * call->num_outputs + o, value, mask);
        }
    }
}

/* Puts columns of the weight rows [output, end) as bf16 in whole steps: as they are stored, where they are so. */
static inline void place_weights(const te_bf16_linear *call, int64_t output, int64_t end, int64_t column, int64_t width,
                                 strip_t *strip, uint16_t *decoded) {
    strip->w = (const uint16_t *)call->weight + output * call->num_inputs + column;
    strip->w_stride = call->num_inputs;
    if (is_direct(call)) return;
    for (int64_t row = output; row < end; row++)
        decode(call, row, column, width, decoded + (row - output) * strip->width);
    strip->w = decoded;
    strip->w_stride = strip->width;
}

/* Multiplies the block of weight rows [output, end) with the packed rows [first, last). */
static void block_of(const te_bf16_linear *call, const uint16_t *packed, int64_t width, int64_t first, int64_t last,
                     int64_t output, int64_t end) {
    work_t work;
    const int64_t most = tile_rows(call), num_inputs = call->num_inputs;
    const int num_tiles = (int)((last - first + most - 1) / most);
    const char *weight = call->weight;
    fetch_t fetch = spread(end < call->num_outputs ? weight + end * row_bytes(call) : NULL, lines_of(call), num_tiles);
    for (int64_t column = 0; column < num_inputs; column += call->chunk) {
        const int64_t left = num_inputs - column, chunk = left < call->chunk ? left : call->chunk;
        strip_t strip = {.num_weight_rows = end - output, .is_first = !column};
        strip.width = (chunk + STEP_I - 1) / STEP_I * STEP_I;
        place_weights(call, output, end, column, chunk, &strip, work.decoded);
        for (int t = 0; t < num_tiles; t++) {
            const int64_t rows = last - first - t * most < most ? last - first - t * most : most;
            strip.x = packed + t * most * width + column * most;
            strip.sums = work.sums[t];
            (most == THIN_R ? thin_strips : wide_strips)[rows - 1][lines_index(&fetch, t)](&strip, &fetch);
        }
    }
    finish(call, first, last, output, end, &work);
}

/* Returns the rows of a weight block: whole tiles, and enough blocks for every thread. With one tile of activations a
   block is one tile as well, so that what is read and what is fetched follow one another in memory. */
static int64_t block_rows(const te_bf16_linear *call) {
    if (call->num_rows <= THIN_R) return THIN_O;
    int64_t rows = BLOCK_BYTES / row_bytes(call);
    const int64_t fair = call->num_outputs / (8 * call->num_threads);
    if (rows > fair) rows = fair;
    const int64_t most = is_direct(call) ? MAX_BLOCK_O : MAX_DECODED_O;
    if (rows > most) rows = most;
    return rows < WIDE_O ? WIDE_O : rows / WIDE_O * WIDE_O;
}

int te_has_bf16_linear(void) { return 1; }

/* Bytes of scratch for this many rows. */
int64_t te_bf16_scratch(int64_t num_rows, int64_t num_inputs) {
    const int64_t rows = (num_rows + WIDE_R - 1) / WIDE_R * WIDE_R;
    return rows * ((num_inputs + STEP_I - 1) / STEP_I * STEP_I) * 2;
}

void te_bf16_linear_run(const te_bf16_linear *call) {
    const int64_t width = (call->num_inputs + STEP_I - 1) / STEP_I * STEP_I, rows = block_rows(call);
    const int64_t num_blocks = (call->num_outputs + rows - 1) / rows, num_rows = call->num_rows;
    const int64_t tile = tile_rows(call);
#pragma omp parallel num_threads((int)call->num_threads)
    {
#pragma omp for schedule(static)
        for (int64_t r = 0; r < num_rows; r += tile)
            pack_tile(call, r, r + tile < num_rows ? r + tile : num_rows, width, call->packed + r * width);
        for (int64_t first = 0; first < num_rows; first += PASS_R) {
            const int64_t last = first + PASS_R < num_rows ? first + PASS_R : num_rows;
#pragma omp for schedule(static) nowait
            for (int64_t block = 0; block < num_blocks; block++) {
                const int64_t end = (block + 1) * rows < call->num_outputs ? (block + 1) * rows : call->num_outputs;
                block_of(call, call->packed + first * width, width, first, last, block * rows, end);
            }
        }
    }
}

#else

int te_has_bf16_linear(void) { return 0; }
int64_t te_bf16_scratch(int64_t num_rows, int64_t num_inputs) { return num_rows * num_inputs; }
void te_bf16_linear_run(const te_bf16_linear *call) { (void)call; }

#endif
