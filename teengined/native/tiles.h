/* Register tiles: sixteen sums of the products of some rows of activations with some rows of a weight, which hide the
   latency of the instruction. What the kernels of products share.

   Sum (row, output) of a tile is element outputs * row + output of its vector of sums. */

#ifndef TEENGINE_TILES_H
#define TEENGINE_TILES_H

#include "lanes.h"

/* Weight rows of a tile where there are few rows of activations, and otherwise; it has TILE_SUMS / outputs of these. */
enum { TILE_SUMS = 16, THIN_O = 4, WIDE_O = 2, THIN_R = TILE_SUMS / THIN_O, WIDE_R = TILE_SUMS / WIDE_O };

/* The vector whose lanes' sum becomes the element of (row, output): see LANE_SUMS. */
#define TILE_PLACE(outputs, row, output) \
    (((outputs) * (row) + (output)) % 4 * 4 + ((outputs) * (row) + (output)) / 4)

/* Weights to fetch while others are multiplied. */
typedef struct {
    const char *next; /* the next line */
    int lines;        /* in each step of a tile: 0, 1, 2 or 4 */
    int num_tiles;    /* that fetch, of those over the same weight rows */
} fetch_t;

/* Spreads so many lines, which are due for each step, over two tiles where there are as many. */
static inline fetch_t spread(const char *next, int lines, int num_tiles) {
    const int share = num_tiles >= 2 && lines >= 2 ? 2 : 1;
    return (fetch_t){next, next ? lines / share : 0, share};
}

/* Which of the functions for 0, 1, 2 and 4 lines the tile of this number takes. */
static inline int lines_index(const fetch_t *fetch, int tile) {
    return tile >= fetch->num_tiles ? 0 : fetch->lines == 4 ? 3 : fetch->lines;
}

/* Collects the sums of one row of a tile for sixteen outputs, of which each vector holds a few. */
static inline __m512i collected(const __m512i *sums, int64_t row, int outputs) {
    if (outputs == WIDE_O) {
        const long long *pair = (const long long *)sums + row;
        return _mm512_set_epi64(pair[56], pair[48], pair[40], pair[32], pair[24], pair[16], pair[8], pair[0]);
    }
    const __m128i *four = (const __m128i *)sums + row;
    const __m256i low = _mm256_set_m128i(four[4], four[0]), high = _mm256_set_m128i(four[12], four[8]);
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

#endif
