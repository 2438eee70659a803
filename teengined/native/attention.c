/* Attention of one token of each sequence over its paged context.

   A row's result depends on its own query and context alone: the context is taken in chunks that begin at multiples of
   CHUNK_T, with a running largest logit and sum ("online softmax", Milakov and Gimelshein, 2018), in fp32 and always in
   the same order. So the same token gives the same bits in a batch of any size, with any number of threads, and whether
   it is decoded or part of a prompt.

   Legend: H query heads, K key-value heads, heads of a group share one of them; T tokens, D width. */

#include "kernels.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#include "lanes.h"

enum { CHUNK_T = 16, MAX_WIDTH = 1024, HEADS = 4 };
/* Numbers that the heads of one task keep, at least those of HEADS of the greatest width: they stay near the core. */
enum { MAX_KEPT = 2 * HEADS * (MAX_WIDTH + 16), MAX_UNITS = 64 };

typedef struct {
    float largest, sum;
} softmax_t;

/* Up to HEADS query heads of a sequence that share a key-value head, and what is kept of them along its context: rows of
   queries and of sums, each of whole vectors. */
typedef struct {
    int64_t first_head, kv_head, num_heads;
    float *q, *out;
    softmax_t state[HEADS];
} unit_t;

static inline int64_t whole_vectors(int64_t width) { return (width + 15) / 16 * 16; }

/* For tokens [begin, end) of a sequence: which row each is among all rows of (block, kv head, token), for head 0. */
static inline void find_rows(const te_attention *call, int64_t sequence, int64_t begin, int64_t end, int64_t *rows) {
    const int32_t *table = call->tables + sequence * call->table_stride;
    int64_t index = begin / call->block_tokens, token = begin % call->block_tokens;
    for (int64_t position = begin; position < end; position++) {
        *rows++ = table[index] * call->num_kv_heads * call->block_tokens + token;
        if (++token == call->block_tokens) token = 0, index++;
    }
}

/* Asks for rows before they are needed: blocks lie anywhere, so that the processor does not guess the next one. */
static inline void fetch_rows(const void *states, const int64_t *rows, int num_rows, int64_t offset, int64_t row_bytes) {
    for (int t = 0; t < num_rows; t++)
        for (int64_t line = 0; line < row_bytes; line += 64)
            _mm_prefetch((const char *)states + (rows[t] + offset) * row_bytes + line, _MM_HINT_T1);
}

/* The logits of a chunk of tokens for each head. The sums of sixteen tokens are added up together. */
static inline __attribute__((always_inline)) void score(const te_attention *call, const int num_heads,
                                                        const int64_t kv_dtype, const int is_whole,
                                                        const float *q, const int64_t *rows, int num_tokens,
                                                        float (*logits)[CHUNK_T]) {
    __m512 sums[HEADS][CHUNK_T];
    const int64_t width = call->key_width, row_bytes = width * element_bytes(kv_dtype), stride = whole_vectors(width);
    UNROLLED for (int h = 0; h < num_heads; h++)
        for (int t = num_tokens; t < CHUNK_T; t++) sums[h][4 * (t % 4) + t / 4] = _mm512_setzero_ps();
    for (int t = 0; t < num_tokens; t++) {
        const char *key = (const char *)call->keys + rows[t] * row_bytes;
        __m512 sum[HEADS];
        UNROLLED for (int h = 0; h < num_heads; h++) sum[h] = _mm512_setzero_ps();
        for (int64_t d = 0; d < width; d += 16) {
            const __m512 k = load16(key, kv_dtype, d, is_whole ? 0xffff : mask16(width - d));
            UNROLLED for (int h = 0; h < num_heads; h++)
                sum[h] = _mm512_fmadd_ps(_mm512_loadu_ps(q + h * stride + d), k, sum[h]);
        }
        UNROLLED for (int h = 0; h < num_heads; h++) sums[h][4 * (t % 4) + t / 4] = sum[h];
    }
    __m512 scale = _mm512_set1_ps(call->scale);
    if (call->key_scales) {
        float scales[CHUNK_T] = {0.f};
        for (int t = 0; t < num_tokens; t++) scales[t] = call->scale * call->key_scales[rows[t]];
        scale = _mm512_loadu_ps(scales);
    }
    for (int h = 0; h < num_heads; h++) _mm512_storeu_ps(logits[h], _mm512_mul_ps(sums16(sums[h]), scale));
}

/* Adds the values of a chunk of tokens, by their weights. */
static inline __attribute__((always_inline)) void gather(const te_attention *call, const int num_heads,
                                                         const int64_t kv_dtype, const int is_whole,
                                                         const float (*weights)[CHUNK_T], const int64_t *rows,
                                                         int num_tokens, float *out) {
    const int64_t width = call->value_width, row_bytes = width * element_bytes(kv_dtype), stride = whole_vectors(width);
    for (int64_t d = 0; d < width; d += 16) {
        const __mmask16 mask = is_whole ? 0xffff : mask16(width - d);
        __m512 sums[HEADS];
        UNROLLED for (int h = 0; h < num_heads; h++) sums[h] = _mm512_loadu_ps(out + h * stride + d);
        for (int t = 0; t < num_tokens; t++) {
            const __m512 v = load16((const char *)call->values + rows[t] * row_bytes, kv_dtype, d, mask);
            UNROLLED for (int h = 0; h < num_heads; h++)
                sums[h] = _mm512_fmadd_ps(_mm512_set1_ps(weights[h][t]), v, sums[h]);
        }
        UNROLLED for (int h = 0; h < num_heads; h++) _mm512_storeu_ps(out + h * stride + d, sums[h]);
    }
}

/* Makes logits into weights against the running largest, scales what was summed so far, and adds to the sum. */
static inline void weigh(const te_attention *call, float *logits, int num_tokens, softmax_t *state, float *out) {
    const __mmask16 mask = mask16(num_tokens);
    __m512 x = _mm512_maskz_loadu_ps(mask, logits);
    if (call->softcap > 0.f)
        x = _mm512_mul_ps(tanh16(_mm512_div_ps(x, _mm512_set1_ps(call->softcap))), _mm512_set1_ps(call->softcap));
    const float chunk = _mm512_mask_reduce_max_ps(mask, x);
    const float largest = chunk > state->largest ? chunk : state->largest;
    const __m512 weights = _mm512_maskz_mov_ps(mask, exp16(_mm512_sub_ps(x, _mm512_set1_ps(largest))));
    const float kept = exp1(state->largest - largest);
    state->sum = state->sum * kept + _mm512_reduce_add_ps(weights);
    state->largest = largest;
    _mm512_storeu_ps(logits, weights);
    if (kept != 1.f)
        for (int64_t d = 0; d < call->value_width; d += 16)
            _mm512_storeu_ps(out + d, _mm512_mul_ps(_mm512_loadu_ps(out + d), _mm512_set1_ps(kept)));
}

/* Takes a chunk of tokens in: its rows are those of the unit's key-value head. `is_whole`: widths are whole vectors. */
static inline __attribute__((always_inline)) void take_in(const te_attention *call, const int num_heads,
                                                          const int64_t kv_dtype, const int is_whole, unit_t *unit,
                                                          const int64_t *rows, int num_tokens) {
    const int64_t stride = whole_vectors(call->value_width);
    float logits[HEADS][CHUNK_T];
    score(call, num_heads, kv_dtype, is_whole, unit->q, rows, num_tokens, logits);
    for (int h = 0; h < num_heads; h++) weigh(call, logits[h], num_tokens, &unit->state[h], unit->out + h * stride);
    if (call->value_scales)
        for (int h = 0; h < num_heads; h++)
            for (int t = 0; t < num_tokens; t++) logits[h][t] *= call->value_scales[rows[t]];
    gather(call, num_heads, kv_dtype, is_whole, logits, rows, num_tokens, unit->out);
}

/* As `take_in`, with the number of heads and the dtype known to the compiler where that is common. */
typedef void (*take_in_t)(const te_attention *, unit_t *, const int64_t *, int);
#define TAKE_IN(n, dtype)                                                                                             \
    static __attribute__((noinline)) void take_in_##n##_##dtype(const te_attention *call, unit_t *unit,               \
                                                                const int64_t *rows, int num_tokens) {                \
        take_in(call, n, dtype, 1, unit, rows, num_tokens);                                                           \
    }
#define ALL_HEADS(dtype) TAKE_IN(1, dtype) TAKE_IN(2, dtype) TAKE_IN(3, dtype) TAKE_IN(4, dtype)
ALL_HEADS(TE_F32) ALL_HEADS(TE_BF16) ALL_HEADS(TE_I8)
#define NAMED(dtype) {take_in_1_##dtype, take_in_2_##dtype, take_in_3_##dtype, take_in_4_##dtype}
static const take_in_t whole_widths[3][HEADS] = {NAMED(TE_F32), NAMED(TE_BF16), NAMED(TE_I8)};

#define TAKE_IN_RAGGED(n)                                                                                        \
    static __attribute__((noinline)) void take_in_ragged_##n(const te_attention *call, unit_t *unit,             \
                                                             const int64_t *rows, int num_tokens) {              \
        take_in(call, n, call->kv_dtype, 0, unit, rows, num_tokens);                                             \
    }
TAKE_IN_RAGGED(1) TAKE_IN_RAGGED(2) TAKE_IN_RAGGED(3) TAKE_IN_RAGGED(4)
static const take_in_t ragged_widths[HEADS] = {take_in_ragged_1, take_in_ragged_2, take_in_ragged_3, take_in_ragged_4};

/* How the heads of a sequence are divided: into units, and units into tasks. */
typedef struct {
    int64_t units_per_group, units_per_task, num_tasks;
} division_t;

static division_t division_of(const te_attention *call) {
    const int64_t group = call->num_heads / call->num_kv_heads, per_group = (group + HEADS - 1) / HEADS;
    const int64_t num_units = per_group * call->num_kv_heads;
    const int64_t kept = HEADS * (whole_vectors(call->key_width) + whole_vectors(call->value_width));
    int64_t units = num_units * call->num_sequences / (2 * call->num_threads); /* so that every thread has some */
    if (units > MAX_KEPT / kept) units = MAX_KEPT / kept;
    if (units > MAX_UNITS) units = MAX_UNITS;
    if (units > num_units) units = num_units;
    if (units < 1) units = 1;
    return (division_t){per_group, units, (num_units + units - 1) / units};
}

static void begin_unit(const te_attention *call, int64_t sequence, int64_t index, int64_t per_group, unit_t *unit, float *kept) {
    const int64_t group = call->num_heads / call->num_kv_heads, within = index % per_group * HEADS;
    const int64_t dk = call->key_width, key_stride = whole_vectors(dk), value_stride = whole_vectors(call->value_width);
    unit->kv_head = index / per_group;
    unit->first_head = unit->kv_head * group + within;
    unit->num_heads = group - within < HEADS ? group - within : HEADS;
    unit->q = kept;
    unit->out = kept + HEADS * key_stride;
    for (int64_t h = 0; h < unit->num_heads; h++) {
        const int64_t head = unit->first_head + h;
        const char *source = (const char *)call->q + (sequence * call->num_heads + head) * dk * element_bytes(call->dtype);
        for (int64_t d = 0; d < dk; d += 16)
            _mm512_storeu_ps(unit->q + h * key_stride + d, load16(source, call->dtype, d, mask16(dk - d)));
        for (int64_t d = 0; d < value_stride; d += 16) _mm512_storeu_ps(unit->out + h * value_stride + d, _mm512_setzero_ps());
        unit->state[h].largest = call->sinks ? call->sinks[head] : -INFINITY;
        unit->state[h].sum = call->sinks ? 1.f : 0.f;
    }
}

static void end_unit(const te_attention *call, int64_t sequence, const unit_t *unit) {
    const int64_t dv = call->value_width, stride = whole_vectors(dv);
    for (int64_t h = 0; h < unit->num_heads; h++) {
        const int64_t place = (sequence * call->num_heads + unit->first_head + h) * dv;
        for (int64_t d = 0; d < dv; d += 16) {
            const __m512 sum = _mm512_set1_ps(unit->state[h].sum);
            store16(call->out, call->dtype, place + d, _mm512_div_ps(_mm512_loadu_ps(unit->out + h * stride + d), sum),
                    mask16(dv - d));
        }
    }
}

/* Takes the units [first, last) of a sequence through its context. */
static void attend(const te_attention *call, const division_t *division, int64_t sequence, int64_t first, int64_t last) {
    const int is_whole = call->key_width % 16 == 0 && call->value_width % 16 == 0;
    const int64_t length = call->lengths[sequence], element = element_bytes(call->kv_dtype);
    const int64_t start = call->window > 0 && length > call->window ? length - call->window : 0;
    const int64_t kept_each = HEADS * (whole_vectors(call->key_width) + whole_vectors(call->value_width));
    float kept[MAX_KEPT];
    unit_t units[MAX_UNITS];
    for (int64_t u = first; u < last; u++)
        begin_unit(call, sequence, u, division->units_per_group, &units[u - first], kept + (u - first) * kept_each);
    int64_t found[2][CHUNK_T], begin = start, end = (start / CHUNK_T + 1) * CHUNK_T;
    int turn = 0;
    if (end > length) end = length;
    find_rows(call, sequence, begin, end, found[turn]);
    while (begin < length) {
        const int64_t *now = found[turn], next = end + CHUNK_T < length ? end + CHUNK_T : length;
        turn = !turn;
        find_rows(call, sequence, end, next, found[turn]);
        for (unit_t *unit = units; unit < units + (last - first); unit++) {
            const int64_t offset = unit->kv_head * call->block_tokens;
            int64_t rows[CHUNK_T];
            for (int64_t t = 0; t < end - begin; t++) rows[t] = now[t] + offset;
            fetch_rows(call->keys, found[turn], (int)(next - end), offset, call->key_width * element);
            fetch_rows(call->values, found[turn], (int)(next - end), offset, call->value_width * element);
            (is_whole ? whole_widths[call->kv_dtype] : ragged_widths)[unit->num_heads - 1](call, unit, rows, (int)(end - begin));
        }
        begin = end;
        end = next;
    }
    for (unit_t *unit = units; unit < units + (last - first); unit++) end_unit(call, sequence, unit);
}

int te_has_attention(void) { return 1; }

void te_attention_run(const te_attention *call) {
    const division_t division = division_of(call);
    const int64_t num_units = division.units_per_group * call->num_kv_heads;
#pragma omp parallel for num_threads((int)call->num_threads) schedule(dynamic, 1)
    for (int64_t task = 0; task < call->num_sequences * division.num_tasks; task++) {
        const int64_t first = task % division.num_tasks * division.units_per_task, last = first + division.units_per_task;
        attend(call, &division, task / division.num_tasks, first, last < num_units ? last : num_units);
    }
}

#else

int te_has_attention(void) { return 0; }
void te_attention_run(const te_attention *call) { (void)call; }

#endif
