/* What a decoder layer of the usual form computes around its attention, for all rows of a step in two calls.

   Before: norm, projections to queries, keys and values, a norm of each head where there is one, rotary embedding.
   After: projection of the attention's answer, residual, norm, gated feed-forward layer, residual.

   Every result is rounded to bf16 where a model that runs operation by operation rounds it.

   Legend: T rows, D model width, H query heads, K key-value heads, E width of a head, F width inside the feed-forward
   layer. */

#include "kernels.h"

#if defined(__AVX512BF16__) && defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512F__)
#include "lanes.h"

/* Rows up to which products of bytes are ahead of those in bf16 where the weight is int8 or codes, and has to be made
   bf16 first. */
enum { FEW_ROWS = 64 };
/* How long a chunk of columns is by the number of rows: see bf16_linear.py. */
enum { ONE_TILE = 4, ONE_TILE_CHUNK = 2048, FEW_ROWS_CHUNK = 1024 };
/* Rows of less work than this are not worth waking threads for. */
enum { WORTH_THREADS = 1 << 14 };

typedef struct {
    char *scratch; /* for the kernels of products */
    int64_t num_rows, num_threads;
} work_t;

static int64_t whole_lines(int64_t num_bytes) { return (num_bytes + 63) / 64 * 64; }

static int64_t product_scratch(int64_t num_rows, int64_t num_inputs) {
    const int64_t stride = te_int4_stride(num_inputs) > te_int8_stride(num_inputs) ? te_int4_stride(num_inputs)
                                                                                   : te_int8_stride(num_inputs);
    const int64_t digits = whole_lines(num_rows * 2 * stride) + whole_lines(4 * num_rows);
    const int64_t packed = whole_lines(te_bf16_scratch(num_rows, num_inputs));
    return digits > packed ? digits : packed;
}

static inline __m512 at(const uint16_t *x, int64_t i) { return load16(x, TE_BF16, i, 0xffff); }

static void add_bias(const te_matrix *matrix, const work_t *work, uint16_t *y) {
    const int64_t width = matrix->num_outputs;
    for (int64_t row = 0; row < work->num_rows; row++)
        for (int64_t i = 0; i < width; i += 16) {
            const __mmask16 mask = mask16(width - i);
            const __m512 sum = _mm512_add_ps(load16(y + row * width, TE_BF16, i, mask), load16(matrix->bias, TE_BF16, i, mask));
            store16(y, TE_BF16, row * width + i, sum, mask);
        }
}

static int64_t chunk_of(int64_t num_rows) { return num_rows <= ONE_TILE ? ONE_TILE_CHUNK : FEW_ROWS_CHUNK; }

/* y (T, outputs) = x (T, inputs) times the matrix, plus its bias. */
static void multiply(const te_matrix *matrix, const work_t *work, const uint16_t *x, uint16_t *y) {
    const int64_t num_rows = work->num_rows, num_inputs = matrix->num_inputs;
    if (matrix->dtype == TE_I8 && num_rows <= FEW_ROWS) {
        const int64_t digits = whole_lines(num_rows * 2 * te_int8_stride(num_inputs));
        const te_int8_linear call = {x, matrix->data, matrix->scale, y, (uint8_t *)work->scratch,
                                     (float *)(work->scratch + digits), num_rows, num_inputs, matrix->num_outputs,
                                     num_inputs, 2, TE_BF16, work->num_threads};
        te_int8_linear_run(&call);
    } else if (matrix->dtype == TE_I4 && num_rows <= FEW_ROWS) {
        const int64_t digits = whole_lines(num_rows * 2 * te_int4_stride(num_inputs));
        const te_int4_linear call = {x, matrix->data, matrix->books, matrix->tables, matrix->scale, y,
                                     (uint8_t *)work->scratch, (float *)(work->scratch + digits), num_rows, num_inputs,
                                     matrix->num_outputs, num_inputs, 2, TE_BF16, work->num_threads};
        te_int4_linear_run(&call);
    } else {
        const te_bf16_linear call = {x, matrix->data, matrix->scale, matrix->books, matrix->tables, y, (uint16_t *)work->scratch, num_rows, num_inputs,
                                     matrix->num_outputs, num_inputs, matrix->dtype, work->num_threads,
                                     chunk_of(num_rows)};
        te_bf16_linear_run(&call);
    }
    if (matrix->bias) add_bias(matrix, work, y);
}

/* Root mean square norm of one row: the quotient is rounded, then its product with the weight. */
static void norm_row(const uint16_t *x, const uint16_t *weight, float epsilon, int64_t width, uint16_t *y) {
    __m512 sums = _mm512_setzero_ps();
    for (int64_t i = 0; i < width; i += 16) {
        const __m512 values = load16(x, TE_BF16, i, mask16(width - i));
        sums = _mm512_fmadd_ps(values, values, sums);
    }
    const __m512 factor = _mm512_set1_ps(1.f / sqrtf(_mm512_reduce_add_ps(sums) / (float)width + epsilon));
    for (int64_t i = 0; i < width; i += 16) {
        const __mmask16 mask = mask16(width - i);
        const __m512 quotient = rounded16(_mm512_mul_ps(load16(x, TE_BF16, i, mask), factor));
        store16(y, TE_BF16, i, _mm512_mul_ps(quotient, load16(weight, TE_BF16, i, mask)), mask);
    }
}

static void norm(const uint16_t *x, const uint16_t *weight, float epsilon, int64_t width, const work_t *work, uint16_t *y) {
#pragma omp parallel for num_threads((int)work->num_threads) if (work->num_rows * width >= WORTH_THREADS)
    for (int64_t row = 0; row < work->num_rows; row++)
        norm_row(x + row * width, weight, epsilon, width, y + row * width);
}

/* Turns a head by its position, in place: the first half of its numbers with the second. */
static void rotate(uint16_t *x, const uint16_t *cosines, const uint16_t *sines, int64_t width) {
    const int64_t half = width / 2;
    for (int64_t i = 0; i < half; i += 16) {
        const __m512 low = at(x, i), high = at(x, i + half);
        const __m512 new_low = _mm512_sub_ps(rounded16(_mm512_mul_ps(low, at(cosines, i))),
                                             rounded16(_mm512_mul_ps(high, at(sines, i))));
        const __m512 new_high = _mm512_add_ps(rounded16(_mm512_mul_ps(high, at(cosines, i + half))),
                                              rounded16(_mm512_mul_ps(low, at(sines, i + half))));
        store16(x, TE_BF16, i, new_low, 0xffff);
        store16(x, TE_BF16, i + half, new_high, 0xffff);
    }
}

static void turn_heads(const te_layer_inputs *call, uint16_t *states, int64_t num_heads, const uint16_t *weight) {
    const int64_t width = call->head_width;
#pragma omp parallel for num_threads((int)call->num_threads) if (call->num_rows * num_heads * width >= WORTH_THREADS)
    for (int64_t row = 0; row < call->num_rows; row++)
        for (int64_t head = 0; head < num_heads; head++) {
            uint16_t *x = states + (row * num_heads + head) * width;
            if (weight) norm_row(x, weight, call->epsilon, width, x);
            rotate(x, call->cosines + row * width, call->sines + row * width, width);
        }
}

/* Puts each head's numbers where `places` (T, K) says, counted in heads. */
static void keep(const te_layer_inputs *call, const uint16_t *states, uint16_t *kept) {
    const int64_t count = call->num_rows * call->key.num_outputs / call->head_width;
    for (int64_t i = 0; i < count; i++)
        memcpy(kept + call->places[i] * call->head_width, states + i * call->head_width, (size_t)call->head_width * 2);
}

/* Returns the place-by-place sum of x and y, in x. */
static void add(uint16_t *x, const uint16_t *y, int64_t count, int64_t num_threads) {
#pragma omp parallel for num_threads((int)num_threads) if (count >= WORTH_THREADS)
    for (int64_t i = 0; i < count; i += 16) {
        const __mmask16 mask = mask16(count - i);
        store16(x, TE_BF16, i, _mm512_add_ps(load16(x, TE_BF16, i, mask), load16(y, TE_BF16, i, mask)), mask);
    }
}

/* gate becomes silu(gate) * up. */
static void open_gate(uint16_t *gate, const uint16_t *up, int64_t count, int64_t num_threads) {
    const __m512 one = _mm512_set1_ps(1.f);
#pragma omp parallel for num_threads((int)num_threads) if (count >= WORTH_THREADS)
    for (int64_t i = 0; i < count; i += 16) {
        const __mmask16 mask = mask16(count - i);
        const __m512 x = load16(gate, TE_BF16, i, mask);
        const __m512 opened = _mm512_div_ps(x, _mm512_add_ps(one, exp16(_mm512_sub_ps(_mm512_setzero_ps(), x))));
        store16(gate, TE_BF16, i, _mm512_mul_ps(rounded16(opened), load16(up, TE_BF16, i, mask)), mask);
    }
}

int te_has_decoder_layer(void) { return 1; }

int64_t te_layer_inputs_scratch(int64_t num_rows, int64_t width) {
    return whole_lines(num_rows * width * 2) + product_scratch(num_rows, width);
}

void te_layer_inputs_run(const te_layer_inputs *call) {
    const int64_t width = call->query.num_inputs;
    uint16_t *normed = (uint16_t *)call->scratch;
    const work_t work = {call->scratch + whole_lines(call->num_rows * width * 2), call->num_rows, call->num_threads};
    norm(call->hidden, call->norm_weight, call->epsilon, width, &work, normed);
    multiply(&call->query, &work, normed, call->queries);
    multiply(&call->key, &work, normed, call->keys);
    multiply(&call->value, &work, normed, call->values);
    turn_heads(call, call->queries, call->query.num_outputs / call->head_width, call->query_norm);
    turn_heads(call, call->keys, call->key.num_outputs / call->head_width, call->key_norm);
    if (!call->kept_keys) return;
    keep(call, call->keys, call->kept_keys);
    keep(call, call->values, call->kept_values);
}

int64_t te_layer_outputs_scratch(int64_t num_rows, int64_t width, int64_t attended, int64_t inner) {
    int64_t widest = width > attended ? width : attended;
    if (inner > widest) widest = inner;
    return whole_lines(num_rows * width * 2) + 2 * whole_lines(num_rows * inner * 2) + product_scratch(num_rows, widest);
}

void te_layer_outputs_run(const te_layer_outputs *call) {
    const int64_t num_rows = call->num_rows, width = call->output.num_outputs, inner = call->gate.num_outputs;
    char *place = call->scratch;
    uint16_t *normed = (uint16_t *)place, *gate = (uint16_t *)(place += whole_lines(num_rows * width * 2));
    uint16_t *up = (uint16_t *)(place += whole_lines(num_rows * inner * 2));
    const work_t work = {place + whole_lines(num_rows * inner * 2), num_rows, call->num_threads};
    multiply(&call->output, &work, call->attended, call->result);
    add(call->result, call->hidden, num_rows * width, call->num_threads);
    norm(call->result, call->norm_weight, call->epsilon, width, &work, normed);
    multiply(&call->gate, &work, normed, gate);
    multiply(&call->up, &work, normed, up);
    open_gate(gate, up, num_rows * inner, call->num_threads);
    multiply(&call->down, &work, gate, normed);
    add(call->result, normed, num_rows * width, call->num_threads);
}

#else

int te_has_decoder_layer(void) { return 0; }
int64_t te_layer_inputs_scratch(int64_t num_rows, int64_t width) { return num_rows * width; }
void te_layer_inputs_run(const te_layer_inputs *call) { (void)call; }
int64_t te_layer_outputs_scratch(int64_t num_rows, int64_t width, int64_t attended, int64_t inner) {
    return num_rows * (width + attended + inner);
}
void te_layer_outputs_run(const te_layer_outputs *call) { (void)call; }

#endif
