/* What the kernels take. One struct for each call, the same on both sides: see int8_linear.py and attention.py. */

#ifndef TEENGINE_KERNELS_H
#define TEENGINE_KERNELS_H

#include <stdint.h>

enum { TE_F32 = 0, TE_BF16 = 1, TE_I8 = 2 };

typedef struct {
    const void *x;        /* (num_rows, num_inputs) of dtype, rows x_stride elements apart */
    const int8_t *weight; /* (num_outputs, num_inputs) */
    const float *scale;   /* (num_outputs) */
    const float *bias;    /* (num_outputs), or NULL */
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
    const float *bias;     /* (num_outputs), or NULL */
    void *y;               /* (num_rows, num_outputs) of dtype */
    uint8_t *digits;       /* scratch: num_rows * num_digits * te_int4_stride(num_inputs) bytes */
    float *units;          /* scratch: num_rows */
    int64_t num_rows, num_inputs, num_outputs, x_stride, num_digits, dtype, num_threads;
} te_int4_linear;

typedef struct {
    const uint16_t *x;      /* (num_rows, num_inputs) bf16, rows x_stride elements apart */
    const uint16_t *weight; /* (num_outputs, num_inputs) bf16 */
    const float *bias;      /* (num_outputs), or NULL */
    uint16_t *y;            /* (num_rows, num_outputs) bf16 */
    int64_t num_rows, num_inputs, num_outputs, x_stride, num_threads;
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

int te_has_int8_linear(void);
int64_t te_int8_stride(int64_t num_inputs);
void te_int8_linear_run(const te_int8_linear *call);
int te_has_int4_linear(void);
int64_t te_int4_stride(int64_t num_inputs);
void te_int4_linear_run(const te_int4_linear *call);
int te_has_bf16_linear(void);
void te_bf16_linear_run(const te_bf16_linear *call);
int te_has_attention(void);
void te_attention_run(const te_attention *call);

#endif
