/* What the kernels take. One struct for each call, the same on both sides: see library.py. */

#ifndef TEENGINE_KERNELS_H
#define TEENGINE_KERNELS_H

#include <stdint.h>

enum { TE_F32 = 0, TE_BF16 = 1, TE_I8 = 2, TE_I4 = 3 };

typedef struct {
    const void *x;        /* (num_rows, num_inputs) of dtype, rows x_stride elements apart */
    const int8_t *weight; /* (num_outputs, num_inputs) */
    const float *scale;   /* (num_outputs) */
    void *y;              /* (num_rows, num_outputs) of dtype */
    uint8_t *digits;      /* scratch: num_rows * num_digits * te_int8_stride(num_inputs) bytes */
    float *units;         /* scratch: num_rows */
    int64_t num_rows, num_inputs, num_outputs, x_stride, num_digits, dtype, num_threads;
} te_int8_linear;

typedef struct {
    const void *x;         /* (num_rows, num_inputs) of dtype, rows x_stride elements apart */
    const uint8_t *codes;  /* (num_outputs, num_inputs / 2) */
    const uint8_t *books;  /* (num_outputs, num_inputs / 16) */
    const uint8_t *tables; /* (256, 16), 128 above the weights, on a boundary of 16 bytes */
    const float *scale;    /* (num_outputs) */
    void *y;               /* (num_rows, num_outputs) of dtype */
    uint8_t *digits;       /* scratch: num_rows * num_digits * te_int4_stride(num_inputs) bytes */
    float *units;          /* scratch: num_rows */
    int64_t num_rows, num_inputs, num_outputs, x_stride, num_digits, dtype, num_threads;
} te_int4_linear;

typedef struct {
    const uint16_t *x;  /* (num_rows, num_inputs) bf16, rows x_stride elements apart */
    const void *weight; /* (num_outputs, num_inputs) of weight_dtype: bf16, int8, or codes as te_int4_linear has them */
    const float *scale; /* (num_outputs), or NULL */
    const uint8_t *books, *tables; /* as te_int4_linear has them, or NULL */
    uint16_t *y;        /* (num_rows, num_outputs) bf16 */
    uint16_t *packed;   /* scratch: te_bf16_scratch(num_rows, num_inputs) bytes */
    int64_t num_rows, num_inputs, num_outputs, x_stride, weight_dtype, num_threads;
    int64_t chunk;      /* columns that are summed before they are added to the rest: a multiple of 32 up to 1024, or of
                           up to four rows 4096 */
} te_bf16_linear;

typedef struct {
    const void *q;         /* (num_sequences, num_heads, key_width) of dtype */
    const void *keys;      /* (num_blocks, num_kv_heads, block_tokens, key_width) of kv_dtype */
    const void *values;    /* the same with value_width */
    const float *key_scales, *value_scales; /* (num_blocks, num_kv_heads, block_tokens) where kv_dtype is int8 */
    const int32_t *tables; /* (num_sequences, table_stride) block ids */
    const int32_t *lengths;/* (num_sequences) tokens of context, the new one included */
    const float *sinks;    /* (num_heads), or NULL */
    void *out;             /* (num_sequences, num_heads, value_width) of dtype */
    int64_t num_sequences, num_heads, num_kv_heads, key_width, value_width, block_tokens, table_stride;
    int64_t window;        /* tokens, or 0 */
    int64_t dtype, kv_dtype, num_threads;
    float scale, softcap;  /* softcap 0: none */
} te_attention;

typedef struct {
    const void *data;     /* (num_outputs, num_inputs) of dtype: bf16, int8, or codes as te_int4_linear has them */
    const float *scale;   /* (num_outputs), or NULL */
    const uint8_t *books, *tables; /* as te_int4_linear has them, or NULL */
    const uint16_t *bias; /* (num_outputs) bf16, or NULL */
    int64_t num_outputs, num_inputs, dtype;
} te_matrix;

typedef struct {
    te_matrix weight; /* int8 or codes */
    void *y;          /* (num_outputs, num_inputs) of dtype: bf16 or fp32 */
    int64_t dtype, num_threads;
} te_dequantise;

typedef struct {
    const uint16_t *hidden;               /* (num_rows, width) bf16, as everything where nothing else is said */
    const uint16_t *norm_weight;          /* (width) */
    te_matrix query, key, value;
    const uint16_t *query_norm, *key_norm;/* (head_width), or NULL */
    const uint16_t *cosines, *sines;      /* (num_rows, head_width) */
    uint16_t *queries, *keys, *values;    /* (num_rows, heads, head_width), written */
    uint16_t *kept_keys, *kept_values;    /* heads one after another, or NULL */
    const int64_t *places;                /* (num_rows, key-value heads): where each is kept */
    char *scratch;                        /* te_layer_inputs_scratch(num_rows, width) bytes */
    int64_t num_rows, head_width, num_threads;
    float epsilon;
} te_layer_inputs;

typedef struct {
    const uint16_t *attended;    /* (num_rows, output's inputs) */
    const uint16_t *hidden;      /* (num_rows, width): what came into the layer */
    const uint16_t *norm_weight; /* (width) */
    te_matrix output, gate, up, down;
    uint16_t *result; /* (num_rows, width) */
    char *scratch;    /* te_layer_outputs_scratch(...) bytes */
    int64_t num_rows, num_threads;
    float epsilon;
} te_layer_outputs;

int te_has_int8_linear(void);
int64_t te_int8_stride(int64_t num_inputs);
void te_int8_linear_run(const te_int8_linear *call);
int te_has_int4_linear(void);
int64_t te_int4_stride(int64_t num_inputs);
void te_int4_linear_run(const te_int4_linear *call);
int te_has_bf16_linear(void);
int64_t te_bf16_scratch(int64_t num_rows, int64_t num_inputs);
void te_bf16_linear_run(const te_bf16_linear *call);
int te_has_decoder_layer(void);
int64_t te_layer_inputs_scratch(int64_t num_rows, int64_t width);
void te_layer_inputs_run(const te_layer_inputs *call);
int64_t te_layer_outputs_scratch(int64_t num_rows, int64_t width, int64_t attended, int64_t inner);
void te_layer_outputs_run(const te_layer_outputs *call);
void te_dequantise_run(const te_dequantise *call);
int te_has_attention(void);
void te_attention_run(const te_attention *call);

#endif
