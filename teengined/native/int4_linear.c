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
/* Outputs handled together, and columns of them that stay in the first-level cache once they are looked up. */
enum { TILE_O = 8, CHUNK_I = 2048 };
/* Digit rows for which a weight row is read once: at most so many, and so many bytes of them, since they stay in the
   second-level cache. */
enum { PASS_R = 192, PASS_BYTES = 3 << 18 };
/* A digit row ends with its sum. */
enum { SUM_BYTES = 64 };

/* Outputs [start, start + TILE_O) and columns [column, column + width); outputs beyond the last repeat it. */
typedef struct {
    const uint8_t *codes[TILE_O], *books[TILE_O];
    int64_t column, width;
    int64_t ahead; /* from these codes to those that are needed next, in bytes */
    const uint8_t *next; /* as many codes of the outputs behind these, in the order in which they lie in memory */
} piece_t;

typedef struct {
    int32_t sums[PASS_R * TILE_O];
    uint8_t weights[TILE_O * CHUNK_I] __attribute__((aligned(64)));
} work_t;

int te_has_int4_linear(void) { return 1; }

static inline int64_t padded(int64_t num_inputs) { return (num_inputs + BLOCK_I - 1) / BLOCK_I * BLOCK_I; }

/* Bytes of one digit row. Not a multiple of a large power of two, which would let all rows fall on the same few lines
   of a cache. */
int64_t te_int4_stride(int64_t num_inputs) { return padded(num_inputs) + SUM_BYTES; }

/* Where the group of inputs that starts at `i` lies in a digit row: low halves of a block before high ones. */
static inline int64_t place_of(int64_t i) {
    const int64_t within = i % BLOCK_I;
    return i - within + within / LANE_I * GROUP_I + (within % LANE_I ? BLOCK_I / 2 : 0);
}

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512F__)
#include "lanes.h"

/* Loops over sums that are kept in registers. */
#define UNROLLED _Pragma("GCC unroll 8")

/* Digit rows of one register tile: 16 sums, which hide the latency of the instruction and leave registers to spare. */
enum { TILE_R = 2, MOST_DIGITS = 3 };

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
    const __m512i packed = _mm512_maskz_loadu_epi8(mask, codes), half = _mm512_set1_epi8(15);
    *low = _mm512_shuffle_epi8(tables_of(tables, books, num_lanes), _mm512_and_si512(packed, half));
    *high = _mm512_shuffle_epi8(tables_of(tables, books + 1, num_lanes),
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
    for (int o = 0; o < TILE_O; o += 4) {
        __m128i *place = (__m128i *)(target + o);
        const __m128i found = sums_of(sums[o], sums[o + 1], sums[o + 2], sums[o + 3]);
        _mm_storeu_si128(place, _mm_add_epi32(_mm_loadu_si128(place), found));
    }
}

/* Looks the codes of a piece up. With no digit rows it keeps the weights, else it adds their products with the rows at
   once, and fetches the codes that are needed next. */
static inline __attribute__((always_inline)) void look_up_piece(const int num_rows, const uint8_t *tables,
                                                                const piece_t *piece, const uint8_t *x,
                                                                int64_t x_stride, work_t *work) {
    __m512i sums[MOST_DIGITS][TILE_O];
    UNROLLED for (int r = 0; r < num_rows; r++)
        UNROLLED for (int o = 0; o < TILE_O; o++) sums[r][o] = _mm512_setzero_si512();
    for (int64_t i = 0; i < piece->width; i += BLOCK_I) {
        const int64_t num_lanes = piece->width - i >= BLOCK_I ? 4 : (piece->width - i) / LANE_I;
        UNROLLED for (int o = 0; o < TILE_O; o++) {
            const uint8_t *codes = piece->codes[o] + i / 2, *books = piece->books[o] + i / GROUP_I;
            __m512i low, high;
            if (num_lanes == 4) look_up(tables, codes, books, 4, &low, &high);
            else look_up(tables, codes, books, num_lanes, &low, &high);
            if (num_rows) _mm_prefetch((const char *)piece->next + (i / BLOCK_I * TILE_O + o) * 64, _MM_HINT_T0);
            UNROLLED for (int r = 0; r < num_rows; r++) {
                const int8_t *digits = (const int8_t *)x + r * x_stride + i;
                sums[r][o] = _mm512_dpbusd_epi32(sums[r][o], low, _mm512_loadu_si512(digits));
                sums[r][o] = _mm512_dpbusd_epi32(sums[r][o], high, _mm512_loadu_si512(digits + BLOCK_I / 2));
            }
            if (!num_rows) {
                _mm512_store_si512(work->weights + i * TILE_O + o * 64, low);
                _mm512_store_si512(work->weights + (i + 64) * TILE_O + o * 64, high);
            }
        }
    }
    UNROLLED for (int r = 0; r < num_rows; r++) add_sums(work->sums + r * TILE_O, sums[r]);
}

/* Adds the products of the kept weights with `num_rows` digit rows. Meanwhile the codes of outputs [fetched,
   fetched + num_fetched) that are needed next are fetched, of two at a time one after the other. */
static inline __attribute__((always_inline)) void multiply_kept(const int num_rows, const uint8_t *x, int64_t x_stride,
                                                                const piece_t *piece, int fetched, int num_fetched,
                                                                const uint8_t *weights, int32_t *out) {
    const int64_t width = padded(piece->width);
    __m512i sums[TILE_R][TILE_O];
    UNROLLED for (int r = 0; r < num_rows; r++)
        UNROLLED for (int o = 0; o < TILE_O; o++) sums[r][o] = _mm512_setzero_si512();
    for (int64_t i = 0; i < width; i += 64) {
        const int64_t place = 2 * i < width ? i : i - width / 2;
        for (int o = fetched + (2 * i >= width); o < fetched + num_fetched; o += 2)
            _mm_prefetch((const char *)piece->codes[o] + place + piece->ahead, _MM_HINT_T0);
        __m512i digits[TILE_R];
        UNROLLED for (int r = 0; r < num_rows; r++) digits[r] = _mm512_loadu_si512(x + r * x_stride + i);
        UNROLLED for (int o = 0; o < TILE_O; o++) {
            const __m512i held = _mm512_load_si512(weights + i * TILE_O + o * 64);
            UNROLLED for (int r = 0; r < num_rows; r++) sums[r][o] = _mm512_dpbusd_epi32(sums[r][o], held, digits[r]);
        }
    }
    UNROLLED for (int r = 0; r < num_rows; r++) add_sums(out + r * TILE_O, sums[r]);
}

/* Each number of rows as a function of its own: a compiler that sees them in one runs out of registers. */
#define PIECE(n)                                                                                                      \
    static __attribute__((noinline)) void look_up_##n(const uint8_t *tables, const piece_t *piece, const uint8_t *x, \
                                                      int64_t x_stride, work_t *work) {                              \
        look_up_piece(n, tables, piece, x, x_stride, work);                                                          \
    }
#define KEPT(n)                                                                                                       \
    static __attribute__((noinline)) void multiply_##n(const uint8_t *x, int64_t x_stride, const piece_t *piece,     \
                                                       int fetched, int num_fetched, const uint8_t *weights,         \
                                                       int32_t *out) {                                               \
        multiply_kept(n, x, x_stride, piece, fetched, num_fetched, weights, out);                                    \
    }
PIECE(0) PIECE(1) PIECE(2) PIECE(3)
KEPT(1) KEPT(2)

/* Adds the products of a piece with `num_rows` digit rows at `x`. */
static void add_products(const uint8_t *tables, const piece_t *piece, const uint8_t *x, int64_t x_stride,
                         int64_t num_rows, work_t *work) {
    for (int o = 0; o < TILE_O; o++) /* the next books; a group has a byte of them and eight of codes */
        for (int64_t i = 0; i < piece->width / GROUP_I; i += 64)
            _mm_prefetch((const char *)piece->books[o] + i + piece->ahead / 8, _MM_HINT_T0);
    if (num_rows <= MOST_DIGITS) {
        (num_rows == 1 ? look_up_1 : num_rows == 2 ? look_up_2 : look_up_3)(tables, piece, x, x_stride, work);
        return;
    }
    look_up_0(tables, piece, x, x_stride, work);
    const int num_fetched = num_rows > 3 * TILE_R ? 2 : 4;
    for (int64_t r = 0, fetched = 0; r < num_rows; r += TILE_R, fetched += num_fetched) {
        (num_rows - r == 1 ? multiply_1 : multiply_2)(
            x + r * x_stride, x_stride, piece, (int)fetched, fetched < TILE_O ? num_fetched : 0, work->weights,
            work->sums + r * TILE_O);
    }
}

/* Writes a row's digits, lowest first, each `stride` bytes long; returns what one unit stands for: NaN where the row
   holds a number that is not finite, so that its results say so. */
static float split_row(const te_int4_linear *call, const void *x, uint8_t *digits, int64_t stride) {
    const int64_t num_digits = call->num_digits;
    const uint32_t largest = largest_of(x, call->dtype, call->num_inputs);
    const __m512 factor = _mm512_set1_ps(digit_factor(largest, num_digits));
    __m512i sums[3];
    const __m512i bias = _mm512_set1_epi32(bias_of(num_digits));
    for (int g = 0; g < num_digits; g++) sums[g] = _mm512_setzero_si512();
    for (int64_t i = 0; i < call->num_inputs; i += GROUP_I) {
        __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(load16(x, call->dtype, i, 0xffff), factor));
        whole = _mm512_xor_si512(_mm512_add_epi32(whole, bias), bias);
        for (int g = 0; g < num_digits; g++) {
            const __m128i digit = _mm512_cvtepi32_epi8(whole);
            _mm_storeu_si128((__m128i *)(digits + g * stride + place_of(i)), digit);
            sums[g] = _mm512_add_epi32(sums[g], _mm512_cvtepi8_epi32(digit));
            whole = _mm512_srli_epi32(whole, 8);
        }
    }
    for (int g = 0; g < num_digits; g++) {
        const int32_t sum = _mm512_reduce_add_epi32(sums[g]);
        memcpy(digits + (g + 1) * stride - SUM_BYTES, &sum, 4);
    }
    return digit_unit(largest, num_digits);
}

#else

static inline float load(const void *x, int64_t dtype, int64_t i) {
    if (dtype == TE_F32) return ((const float *)x)[i];
    const uint32_t bits = (uint32_t)((const uint16_t *)x)[i] << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* The same for processors without the instructions: one output and one digit row at a time. */
static void add_products(const uint8_t *tables, const piece_t *piece, const uint8_t *x, int64_t x_stride,
                         int64_t num_rows, work_t *work) {
    const int64_t width = padded(piece->width);
    for (int o = 0; o < TILE_O; o++) {
        uint8_t *weights = work->weights;
        memset(weights, 0, (size_t)width);
        for (int64_t i = 0; i < piece->width; i += GROUP_I) {
            const uint8_t *book = tables + 16 * (int64_t)piece->books[o][i / GROUP_I];
            const uint8_t *codes = piece->codes[o] + i / LANE_I * GROUP_I;
            const int shift = i % LANE_I ? 4 : 0;
            for (int b = 0; b < GROUP_I; b++) weights[place_of(i) + b] = book[codes[b] >> shift & 15];
        }
        for (int64_t r = 0; r < num_rows; r++) {
            const int8_t *digits = (const int8_t *)x + r * x_stride;
            int32_t sum = 0;
            for (int64_t i = 0; i < width; i++) sum += (int32_t)weights[i] * digits[i];
            work->sums[r * TILE_O + o] += sum;
        }
    }
}

static float split_row(const te_int4_linear *call, const void *x, uint8_t *digits, int64_t stride) {
    const int64_t num_digits = call->num_digits;
    int32_t sums[3] = {0, 0, 0};
    uint32_t largest = 0;
    for (int64_t i = 0; i < call->num_inputs; i++) {
        const float value = fabsf(load(x, call->dtype, i));
        uint32_t bits;
        memcpy(&bits, &value, 4);
        largest = bits > largest ? bits : largest;
    }
    const int is_finite = largest < 0x7f800000u;
    const float factor = digit_factor(largest, num_digits);
    for (int64_t i = 0; is_finite && i < call->num_inputs; i++) {
        int32_t whole = (int32_t)lrintf(load(x, call->dtype, i) * factor) + bias_of(num_digits);
        whole ^= bias_of(num_digits);
        for (int64_t g = 0; g < num_digits; g++, whole >>= 8) {
            digits[g * stride + place_of(i - i % GROUP_I) + i % GROUP_I] = (uint8_t)whole;
            sums[g] += (int8_t)whole;
        }
    }
    for (int64_t g = 0; g < num_digits; g++) memcpy(digits + (g + 1) * stride - SUM_BYTES, sums + g, 4);
    return digit_unit(largest, num_digits);
}

#endif

/* The sums of TILE_O outputs for the digit rows [first, last), written as rows of y. */
static void finish(const te_int4_linear *call, int64_t first, int64_t last, int64_t output, const int32_t *sums) {
    const int64_t num_digits = call->num_digits, stride = te_int4_stride(call->num_inputs);
    const int64_t num_outputs = call->num_outputs - output < TILE_O ? call->num_outputs - output : TILE_O;
    for (int64_t r = first; r < last; r += num_digits, sums += num_digits * TILE_O) {
        const int64_t row = r / num_digits;
        int32_t digit_sums[3];
        for (int64_t g = 0; g < num_digits; g++) memcpy(digit_sums + g, call->digits + (r + g + 1) * stride - SUM_BYTES, 4);
        for (int64_t o = 0; o < num_outputs; o++) {
            const float total = joined_digits(sums + o, TILE_O, digit_sums, 1, num_digits);
            const float value = total * call->units[row] * call->scale[output + o];
            store(call->y, call->dtype, row * call->num_outputs + output + o, value);
        }
    }
}

static void outputs_of(const te_int4_linear *call, int64_t output, int64_t first, int64_t last, int64_t stride) {
    const int64_t num_inputs = call->num_inputs;
    work_t work;
    memset(work.sums, 0, (size_t)(last - first) * TILE_O * sizeof *work.sums);
    for (int64_t column = 0; column < num_inputs; column += CHUNK_I) {
        piece_t piece = {.column = column, .width = num_inputs - column < CHUNK_I ? num_inputs - column : CHUNK_I};
        const int is_last = column + piece.width == num_inputs;
        piece.next = call->codes + ((output + TILE_O) * num_inputs + column * TILE_O) / 2;
        piece.ahead = is_last ? (TILE_O * num_inputs - column) / 2 : piece.width / 2;
        for (int o = 0; o < TILE_O; o++) {
            const int64_t row = output + o < call->num_outputs ? output + o : call->num_outputs - 1;
            piece.codes[o] = call->codes + (row * num_inputs + column) / 2;
            piece.books[o] = call->books + (row * num_inputs + column) / GROUP_I;
        }
        add_products(call->tables, &piece, call->digits + first * stride + column, stride, last - first, &work);
    }
    finish(call, first, last, output, work.sums);
}

void te_int4_linear_run(const te_int4_linear *call) {
    const int64_t stride = te_int4_stride(call->num_inputs), num_digits = call->num_digits;
    const int64_t num_digit_rows = num_digits * call->num_rows, element = element_bytes(call->dtype);
    const int64_t fitting = PASS_BYTES / stride < PASS_R ? PASS_BYTES / stride : PASS_R;
    const int64_t pass = fitting < num_digits ? num_digits : fitting / num_digits * num_digits;
    const int64_t rest = call->num_inputs % BLOCK_I;
#pragma omp parallel num_threads((int)call->num_threads)
    {
#pragma omp for schedule(static)
        for (int64_t row = 0; row < call->num_rows; row++) {
            uint8_t *digits = call->digits + row * num_digits * stride;
            for (int64_t g = 0; rest && g < num_digits; g++) /* zeros where the last block has no inputs */
                memset(digits + g * stride + call->num_inputs - rest, 0, BLOCK_I);
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
