/* Products of bf16 activations with a weight of bf16, or of int8 or four-bit codes with a scale for each output.

   The weight stays as it is stored, (O, I) row after row. Two things make the speed:
   - A thread reads its part of the weight from front to back: while a block of rows is multiplied, the next one is
     fetched, line after line as it lies in memory, into the second-level cache. Memory gives twice as much to one
     such walk as to several at once.
   - Activations are laid out anew, four rows beside each other, and a chunk of columns of all of them stays in the
     first-level cache while a block of weight rows passes. What is fetched and what misses the cache share the same
     few slots, so a miss here would hold up the fetching.
   An int8 weight becomes bf16, which holds every such number exactly, four rows and a chunk of columns at a time; so
   do codes, whose books hold such numbers plus 128.

   Sixteen partial sums of pairs of neighbours run along a chunk and are added up at its end, and so are the chunks, in
   fp32: always in the same order for the same chunk, whatever other rows there are.

   Legend: M rows of activations, I inputs, O outputs. */

#include "kernels.h"

#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512F__)
#include "lanes.h"

/* Weight rows and activation rows of one register tile; columns of one step along it; rows for which a weight is read
   once; the longest chunk and the largest block of weight rows. */
enum { TILE_O = 4, TILE_R = 4, STEP_I = 32, PASS_R = 64, MAX_CHUNK_I = 2048, MAX_BLOCK_O = 64 };
/* Bytes of a block of weight rows, so that this one and the next fit the second-level cache. */
enum { BLOCK_BYTES = 1 << 18 };
/* Inputs of one book. */
enum { GROUP_I = 16 };

typedef struct {
    const char *next; /* the next line to fetch */
    int lines;        /* to fetch in each step of a tile */
    int num_tiles;    /* that fetch, of those over the same weight rows */
} fetch_t;

static inline __m512bh pairs(const uint16_t *x) { return (__m512bh)_mm512_loadu_si512(x); }

/* Returns the products of `num_rows` rows of a packed tile with TILE_O weight rows over `width` columns: element
   TILE_R * output + row. */
static inline __attribute__((always_inline)) __m512 tile_of(const int num_rows, const int lines, const uint16_t *x,
                                                            const uint16_t *const *w, int64_t width, fetch_t *fetch) {
    __m512 sums[TILE_R * TILE_O];
    for (int j = 0; j < TILE_R * TILE_O; j++) sums[j] = _mm512_setzero_ps();
    const char *next = fetch->next;
    for (int64_t i = 0; i < width; i += STEP_I) {
        __m512bh weights[TILE_O];
        for (int o = 0; o < TILE_O; o++) weights[o] = pairs(w[o] + i);
        for (int r = 0; r < num_rows; r++) {
            const __m512bh row = pairs(x + i * TILE_R + r * STEP_I);
            for (int o = 0; o < TILE_O; o++)
                sums[r * TILE_O + o] = _mm512_dpbf16_ps(sums[r * TILE_O + o], row, weights[o]);
        }
        for (int line = 0; line < lines; line++) _mm_prefetch(next + 64 * line, _MM_HINT_T1);
        next += 64 * lines;
    }
    fetch->next = next;
    return sums16(sums);
}

static inline __m512 tile(int num_rows, int lines, const uint16_t *x, const uint16_t *const *w, int64_t width,
                          fetch_t *fetch) {
#define LINES(n, k) \
    case k: return tile_of(n, k, x, w, width, fetch);
#define ROWS(n) \
    case n:     \
        switch (lines) { LINES(n, 0) LINES(n, 1) LINES(n, 2) default: return tile_of(n, 4, x, w, width, fetch); }
    switch (num_rows) { ROWS(1) ROWS(2) ROWS(3) }
    switch (lines) { LINES(4, 0) LINES(4, 1) LINES(4, 2) }
    return tile_of(4, 4, x, w, width, fetch);
#undef ROWS
#undef LINES
}

/* Lays the rows of one tile out step by step: STEP_I columns of each of its rows, zeros where there are no more. */
static void pack_tile(const te_bf16_linear *call, int64_t first, int64_t last, int64_t width, uint16_t *packed) {
    for (int64_t i = 0; i < width; i += STEP_I) {
        const int64_t left = call->num_inputs - i;
        const __mmask32 mask = left >= STEP_I ? ~0U : ~0U >> (STEP_I - left);
        for (int64_t r = first; r < last; r++)
            _mm512_storeu_si512(packed + i * TILE_R + (r - first) * STEP_I,
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

/* Writes one tile's results: `sums` as `tile_of` returns them. */
static void finish(const te_bf16_linear *call, int64_t row, int num_rows, int64_t output, int num_outputs, __m512 sums) {
    float values[TILE_R * TILE_O];
    _mm512_storeu_ps(values, sums);
    for (int r = 0; r < num_rows; r++)
        for (int o = 0; o < num_outputs; o++) {
            const float value = values[o * TILE_R + r];
            store(call->y, TE_BF16, (row + r) * call->num_outputs + output + o,
                  call->scale ? value * call->scale[output + o] : value);
        }
}

/* How the lines of one weight block are spread over the tiles that multiply the block before it. */
static fetch_t fetching(const te_bf16_linear *call, const char *next, int num_tiles) {
    const int all = call->weight_dtype == TE_BF16 ? 4 : call->weight_dtype == TE_I8 ? 2 : 1; /* each step, TILE_O rows */
    const int share = num_tiles >= all ? all : num_tiles >= 2 ? 2 : 1; /* of the tiles fetch */
    return (fetch_t){next, next ? all / share : 0, share};
}

/* Multiplies the block of weight rows [output, end) with the packed rows [first, last). */
static void block_of(const te_bf16_linear *call, const uint16_t *packed, int64_t width, int64_t first, int64_t last,
                     int64_t output, int64_t end) {
    __m512 sums[PASS_R / TILE_R][MAX_BLOCK_O / TILE_O];
    uint16_t decoded[TILE_O][MAX_CHUNK_I];
    const int num_tiles = (int)((last - first + TILE_R - 1) / TILE_R);
    const int64_t num_inputs = call->num_inputs;
    const char *weight = call->weight;
    fetch_t fetch = fetching(call, end < call->num_outputs ? weight + end * row_bytes(call) : NULL, num_tiles);
    const int lines = fetch.lines;
    for (int64_t column = 0; column < num_inputs; column += call->chunk) {
        const int64_t left = num_inputs - column, chunk = left < call->chunk ? left : call->chunk;
        const int64_t steps = (chunk + STEP_I - 1) / STEP_I * STEP_I;
        const int is_direct = call->weight_dtype == TE_BF16 && chunk % STEP_I == 0;
        for (int64_t o = output; o < end; o += TILE_O) {
            const uint16_t *w[TILE_O];
            for (int j = 0; j < TILE_O; j++) {
                const int64_t row = o + j < end ? o + j : end - 1;
                w[j] = is_direct ? (const uint16_t *)call->weight + row * num_inputs + column : decoded[j];
                if (!is_direct) decode(call, row, column, chunk, decoded[j]);
            }
            for (int t = 0; t < num_tiles; t++) {
                const int64_t rows = last - first - t * TILE_R;
                const __m512 part = tile(rows < TILE_R ? (int)rows : TILE_R, t < fetch.num_tiles ? lines : 0,
                                         packed + t * TILE_R * width + column * TILE_R, w, steps, &fetch);
                __m512 *sum = &sums[t][(o - output) / TILE_O];
                *sum = column ? _mm512_add_ps(*sum, part) : part;
            }
        }
    }
    for (int t = 0; t < num_tiles; t++)
        for (int64_t o = output; o < end; o += TILE_O) {
            const int64_t rows = last - first - t * TILE_R, outputs = end - o;
            finish(call, first + t * TILE_R, rows < TILE_R ? (int)rows : TILE_R, o,
                   outputs < TILE_O ? (int)outputs : TILE_O, sums[t][(o - output) / TILE_O]);
        }
}

/* Returns the rows of a weight block: whole tiles, and enough blocks for every thread. With one tile of activations a
   block is one tile as well, so that what is read and what is fetched follow one another in memory. */
static int64_t block_rows(const te_bf16_linear *call) {
    if (call->num_rows <= TILE_R) return TILE_O;
    int64_t rows = BLOCK_BYTES / row_bytes(call);
    const int64_t fair = call->num_outputs / (8 * call->num_threads);
    if (rows > fair) rows = fair;
    if (rows > MAX_BLOCK_O) rows = MAX_BLOCK_O;
    return rows < TILE_O ? TILE_O : rows / TILE_O * TILE_O;
}

int te_has_bf16_linear(void) { return 1; }

/* Bytes of scratch for this many rows. */
int64_t te_bf16_scratch(int64_t num_rows, int64_t num_inputs) {
    const int64_t rows = (num_rows + TILE_R - 1) / TILE_R * TILE_R;
    return rows * ((num_inputs + STEP_I - 1) / STEP_I * STEP_I) * 2;
}

void te_bf16_linear_run(const te_bf16_linear *call) {
    const int64_t width = (call->num_inputs + STEP_I - 1) / STEP_I * STEP_I, rows = block_rows(call);
    const int64_t num_blocks = (call->num_outputs + rows - 1) / rows, num_rows = call->num_rows;
#pragma omp parallel num_threads((int)call->num_threads)
    {
#pragma omp for schedule(static)
        for (int64_t r = 0; r < num_rows; r += TILE_R)
            pack_tile(call, r, r + TILE_R < num_rows ? r + TILE_R : num_rows, width, call->packed + r * width);
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
