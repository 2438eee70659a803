/* Products of activations with a bf16 weight, in the order of sums that the row alone decides.

   The weight stays as it is stored, (O, I) row after row, and is read once for up to PASS_R rows. Sixteen partial sums
   of pairs of neighbours run along a row and are added up at its end, in fp32: always in the same order, whatever other
   rows there are.

   Legend: M rows of activations, I inputs, O outputs. */

#include "kernels.h"

#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512F__)
#include "lanes.h"

enum { TILE_O = 4, TILE_R = 4, CHUNK_I = 1024, PASS_R = 64, FETCH_TILES = 4 };

typedef struct {
    const uint16_t *next;
    int64_t stride, offset;
    int num_tiles;
} fetch_t;

static inline __m512bh pairs(const uint16_t *x, __mmask32 mask) {
    return (__m512bh)_mm512_maskz_loadu_epi16(mask, x);
}

/* Adds to sums[r][o] the products of `num_rows` rows with TILE_O weight rows over `width` columns. */
static inline __attribute__((always_inline)) void tile_of(const int num_rows, const uint16_t *x, int64_t x_stride,
                                                          const uint16_t *const *w, int64_t width,
                                                          float (*out)[TILE_O][16], fetch_t fetch) {
    __m512 sums[TILE_R][TILE_O];
    for (int r = 0; r < num_rows; r++)
        for (int o = 0; o < TILE_O; o++) sums[r][o] = _mm512_loadu_ps(out[r][o]);
    for (int64_t i = 0; i < width; i += 32) {
        const __mmask32 mask = width - i >= 32 ? ~0U : ~0U >> (32 - (width - i));
        __m512bh weights[TILE_O];
        for (int o = 0; o < TILE_O; o++) weights[o] = pairs(w[o] + i, mask);
        for (int r = 0; r < num_rows; r++) {
            const __m512bh row = pairs(x + r * x_stride + i, mask);
            for (int o = 0; o < TILE_O; o++) sums[r][o] = _mm512_dpbf16_ps(sums[r][o], row, weights[o]);
        }
        if (fetch.next)
            for (int o = (int)(i / 32) % fetch.num_tiles; o < TILE_O; o += fetch.num_tiles)
                _mm_prefetch((const char *)(fetch.next + o * fetch.stride + fetch.offset + i / 32 / fetch.num_tiles * 32),
                             _MM_HINT_T0);
    }
    for (int r = 0; r < num_rows; r++)
        for (int o = 0; o < TILE_O; o++) _mm512_storeu_ps(out[r][o], sums[r][o]);
}

static void tile(int num_rows, const uint16_t *x, int64_t x_stride, const uint16_t *const *w, int64_t width,
                 float (*out)[TILE_O][16], fetch_t fetch) {
    switch (num_rows) {
        case 1: tile_of(1, x, x_stride, w, width, out, fetch); break;
        case 2: tile_of(2, x, x_stride, w, width, out, fetch); break;
        case 3: tile_of(3, x, x_stride, w, width, out, fetch); break;
        default: tile_of(4, x, x_stride, w, width, out, fetch); break;
    }
}

static void outputs_of(const te_bf16_linear *call, int64_t output, int64_t first, int64_t last) {
    const int64_t num_inputs = call->num_inputs, left = call->num_outputs - output;
    const int num_outputs = left < TILE_O ? (int)left : TILE_O;
    const int64_t num_tiles = (last - first + TILE_R - 1) / TILE_R;
    float sums[PASS_R][TILE_O][16];
    memset(sums, 0, (size_t)(last - first) * sizeof *sums);
    for (int64_t column = 0; column < num_inputs; column += CHUNK_I) {
        const int64_t width = num_inputs - column < CHUNK_I ? num_inputs - column : CHUNK_I;
        const uint16_t *w[TILE_O];
        for (int o = 0; o < TILE_O; o++)
            w[o] = call->weight + (output + (o < num_outputs ? o : num_outputs - 1)) * num_inputs + column;
        fetch_t fetch = {NULL, num_inputs, 0, num_tiles >= FETCH_TILES ? FETCH_TILES : num_tiles >= 2 ? 2 : 1};
        if (column + width + CHUNK_I <= num_inputs) fetch.next = w[0] + width;
        else if (column + width == num_inputs && output + 2 * TILE_O <= call->num_outputs)
            fetch.next = call->weight + (output + TILE_O) * num_inputs;
        for (int64_t r = first, t = 0; r < last; r += TILE_R, t++) {
            const int num_rows = last - r < TILE_R ? (int)(last - r) : TILE_R;
            fetch.offset = t * (width / fetch.num_tiles / 32 * 32);
            if (t == fetch.num_tiles) fetch.next = NULL;
            tile(num_rows, call->x + r * call->x_stride + column, call->x_stride, w, width, sums + (r - first), fetch);
        }
    }
    for (int64_t r = first; r < last; r++)
        for (int o = 0; o < num_outputs; o++) {
            float value = _mm512_reduce_add_ps(_mm512_loadu_ps(sums[r - first][o]));
            if (call->bias) value += call->bias[output + o];
            store(call->y, TE_BF16, r * call->num_outputs + output + o, value);
        }
}

int te_has_bf16_linear(void) { return 1; }

void te_bf16_linear_run(const te_bf16_linear *call) {
#pragma omp parallel num_threads((int)call->num_threads)
    for (int64_t first = 0; first < call->num_rows; first += PASS_R) {
        const int64_t last = first + PASS_R < call->num_rows ? first + PASS_R : call->num_rows;
#pragma omp for schedule(static) nowait
        for (int64_t output = 0; output < call->num_outputs; output += TILE_O) outputs_of(call, output, first, last);
    }
}

#else

int te_has_bf16_linear(void) { return 0; }
void te_bf16_linear_run(const te_bf16_linear *call) { (void)call; }

#endif
