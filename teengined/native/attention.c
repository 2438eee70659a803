/* Attention of one token of each sequence over its paged context.

   A row's result depends on its own query and context alone: the context is taken in chunks that begin at multiples of
   CHUNK_T, with a running largest logit and sum ("online softmax", Milakov and Gimelshein, 2018), in fp32 and always in
   the same order. So the same token gives the same bits in a batch of any size, with any number of threads, and whether
   it is decoded or part of a prompt.

   Legend: H query heads, K key-value heads, heads of a group share one of them; T tokens, D width. */

#include "kernels.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#include "lanes.h"

enum { CHUNK_T = 16, MAX_WIDTH = 1024, STRIDE = MAX_WIDTH + 16, HEADS = 4 };

typedef struct {
    float largest, sum;
} softmax_t;

/* For tokens [begin, end) of a sequence: which row each is among all rows of (block, kv head, token). */
static inline void find_rows(const te_attention *call, int64_t sequence, int64_t kv_head, int64_t begin, int64_t end,
                             int64_t *rows) {
    const int32_t *table = call->tables + sequence * call->table_stride;
    int64_t index = begin / call->block_tokens, token = begin % call->block_tokens;
    for (int64_t position = begin; position < end; position++) {
        *rows++ = (table[index] * call->num_kv_heads + kv_head) * call->block_tokens + token;
        if (++token == call->block_tokens) token = 0, index++;
    }
}

/* Asks for rows before they are needed: blocks lie anywhere, so that the processor does not guess the next one. */
static inline void fetch_rows(const void *states, const int64_t *rows, int num_rows, int64_t row_bytes) {
    for (int t = 0; t < num_rows; t++)
        for (int64_t line = 0; line < row_bytes; line += 64)
            _mm_prefetch((const char *)states + rows[t] * row_bytes + line, _MM_HINT_T0);
}

/* The logits of a chunk of tokens for each head. The sums of sixteen tokens are added up together. */
static inline __attribute__((always_inline)) void score(const te_attention *call, const int num_heads,
                                                        const int64_t kv_dtype, const int is_whole,
                                                        const float (*q)[STRIDE], const int64_t *rows, int num_tokens,
                                                        float (*logits)[CHUNK_T]) {
    __m512 sums[HEADS][CHUNK_T];
    const int64_t width = call->key_width, row_bytes = width * element_bytes(kv_dtype);
    for (int h = 0; h < num_heads; h++)
        for (int t = num_tokens; t < CHUNK_T; t++) sums[h][4 * (t % 4) + t / 4] = _mm512_setzero_ps();
    for (int t = 0; t < num_tokens; t++) {
        const char *key = (const char *)call->keys + rows[t] * row_bytes;
        __m512 sum[HEADS];
        for (int h = 0; h < num_heads; h++) sum[h] = _mm512_setzero_ps();
        for (int64_t d = 0; d < width; d += 16) {
            const __m512 k = load16(key, kv_dtype, d, is_whole ? 0xffff : mask16(width - d));
            for (int h = 0; h < num_heads; h++) sum[h] = _mm512_fmadd_ps(_mm512_loadu_ps(q[h] + d), k, sum[h]);
        }
        for (int h = 0; h < num_heads; h++) sums[h][4 * (t % 4) + t / 4] = sum[h];
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
                                                         int num_tokens, float (*out)[STRIDE]) {
    const int64_t width = call->value_width, row_bytes = width * element_bytes(kv_dtype);
    for (int64_t d = 0; d < width; d += 16) {
        const __mmask16 mask = is_whole ? 0xffff : mask16(width - d);
        __m512 sums[HEADS];
        for (int h = 0; h < num_heads; h++) sums[h] = _mm512_loadu_ps(out[h] + d);
        for (int t = 0; t < num_tokens; t++) {
            const __m512 v = load16((const char *)call->values + rows[t] * row_bytes, kv_dtype, d, mask);
            for (int h = 0; h < num_heads; h++) sums[h] = _mm512_fmadd_ps(_mm512_set1_ps(weights[h][t]), v, sums[h]);
        }
        for (int h = 0; h < num_heads; h++) _mm512_storeu_ps(out[h] + d, sums[h]);
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

/* `num_heads` query heads from `first_head` on, which share `kv_head`. `is_whole`: widths are made of whole vectors. */
static inline __attribute__((always_inline)) void attend(const te_attention *call, const int num_heads,
                                                         const int64_t kv_dtype, const int is_whole, int64_t sequence,
                                                         int64_t kv_head, int64_t first_head) {
    const int64_t dk = call->key_width, dv = call->value_width, length = call->lengths[sequence];
    const int64_t start = call->window > 0 && length > call->window ? length - call->window : 0;
    const int64_t element = element_bytes(kv_dtype), q_element = element_bytes(call->dtype);
    float q[HEADS][STRIDE], out[HEADS][STRIDE], logits[HEADS][CHUNK_T];
    softmax_t state[HEADS];
    for (int h = 0; h < num_heads; h++) {
        const int64_t head = sequence * call->num_heads + first_head + h;
        const char *source = (const char *)call->q + head * dk * q_element;
        for (int64_t d = 0; d < dk; d += 16) _mm512_storeu_ps(q[h] + d, load16(source, call->dtype, d, mask16(dk - d)));
        for (int64_t d = 0; d < dv; d += 16) _mm512_storeu_ps(out[h] + d, _mm512_setzero_ps());
        state[h].largest = call->sinks ? call->sinks[first_head + h] : -INFINITY;
        state[h].sum = call->sinks ? 1.f : 0.f;
    }
    int64_t found[2][CHUNK_T];
    int turn = 0;
    int64_t begin = start, end = (start / CHUNK_T + 1) * CHUNK_T < length ? (start / CHUNK_T + 1) * CHUNK_T : length;
    find_rows(call, sequence, kv_head, begin, end, found[turn]);
    while (begin < length) {
        const int num_tokens = (int)(end - begin);
        const int64_t *rows = found[turn], next = end + CHUNK_T < length ? end + CHUNK_T : length;
        turn = !turn;
        find_rows(call, sequence, kv_head, end, next, found[turn]);
        fetch_rows(call->keys, found[turn], (int)(next - end), dk * element);
        fetch_rows(call->values, found[turn], (int)(next - end), dv * element);
        score(call, num_heads, kv_dtype, is_whole, q, rows, num_tokens, logits);
        for (int h = 0; h < num_heads; h++) weigh(call, logits[h], num_tokens, &state[h], out[h]);
        if (call->value_scales)
            for (int h = 0; h < num_heads; h++)
                for (int t = 0; t < num_tokens; t++) logits[h][t] *= call->value_scales[rows[t]];
        gather(call, num_heads, kv_dtype, is_whole, logits, rows, num_tokens, out);
        begin = end;
        end = next;
    }
    for (int h = 0; h < num_heads; h++) {
        const int64_t place = (sequence * call->num_heads + first_head + h) * dv;
        for (int64_t d = 0; d < dv; d += 16) {
            const __m512 result = _mm512_div_ps(_mm512_loadu_ps(out[h] + d), _mm512_set1_ps(state[h].sum));
            store16(call->out, call->dtype, place + d, result, mask16(dv - d));
        }
    }
}

/* As `attend`, with the number of heads and the dtype known to the compiler where that is common. */
static void attend_heads(const te_attention *call, int num_heads, int64_t sequence, int64_t kv_head, int64_t first) {
    const int is_whole = call->key_width % 16 == 0 && call->value_width % 16 == 0;
#define HEADS_OF(n, dtype) \
    case n: attend(call, n, dtype, 1, sequence, kv_head, first); return;
#define DTYPE(dtype) \
    case dtype:      \
        switch (num_heads) { HEADS_OF(1, dtype) HEADS_OF(2, dtype) HEADS_OF(3, dtype) HEADS_OF(4, dtype) } break;
    if (is_whole)
        switch (call->kv_dtype) { DTYPE(TE_F32) DTYPE(TE_BF16) DTYPE(TE_I8) }
#undef DTYPE
#undef HEADS_OF
    for (int h = 0; h < num_heads; h++) attend(call, 1, call->kv_dtype, 0, sequence, kv_head, first + h);
}

int te_has_attention(void) { return 1; }

void te_attention_run(const te_attention *call) {
    const int64_t group = call->num_heads / call->num_kv_heads, num_tasks = call->num_sequences * call->num_kv_heads;
#pragma omp parallel for num_threads((int)call->num_threads) schedule(dynamic, 1)
    for (int64_t task = 0; task < num_tasks; task++) {
        const int64_t sequence = task / call->num_kv_heads, kv_head = task % call->num_kv_heads;
        for (int64_t h = 0; h < group; h += HEADS)
            attend_heads(call, (int)(group - h < HEADS ? group - h : HEADS), sequence, kv_head, kv_head * group + h);
    }
}

#else

int te_has_attention(void) { return 0; }
void te_attention_run(const te_attention *call) { (void)call; }

#endif
