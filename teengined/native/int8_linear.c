/* Products of activations with an int8 weight, exact in integers.

   A row of activations becomes fixed-point numbers of G signed base-256 digits against its largest element. Each digit
   is a row of int8, so that x @ W.T is G integer products, which VNNI sums exactly (digits.h). A row's result depends
   on nothing but the row and the weight: neither on its neighbours nor on the number of threads. The weight stays as
   it is stored, (O, I) row after row.

   Legend: M rows of activations, G digits, I inputs, O outputs. */

#include "kernels.h"

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512F__)
#include "digits.h"

static int64_t padded(int64_t num_inputs) { return (num_inputs + STEP_I - 1) / STEP_I * STEP_I; }

static int64_t in_order(int64_t i) { return i; }

int te_has_int8_linear(void) { return 1; }

/* Bytes of one digit row, and of its sum. */
int64_t te_int8_stride(int64_t num_inputs) { return padded(num_inputs) + STEP_I; }

void te_int8_linear_run(const te_int8_linear *call) {
    const products_t all = {
        .x = {.x = call->x, .digits = call->digits, .units = call->units, .place_of = in_order, .num_rows = call->num_rows,
              .num_inputs = call->num_inputs, .x_stride = call->x_stride, .num_digits = call->num_digits,
              .dtype = call->dtype, .width = padded(call->num_inputs)},
        .weight = call->weight, .scale = call->scale, .y = call->y, .row_bytes = call->num_inputs,
        .num_outputs = call->num_outputs, .num_threads = call->num_threads};
#pragma omp parallel num_threads((int)call->num_threads)
    {
#pragma omp for schedule(static)
        for (int64_t row = 0; row < call->num_rows; row++) split_row(&all.x, row);
        multiply_digits(&all);
    }
}

#else

int te_has_int8_linear(void) { return 0; }
int64_t te_int8_stride(int64_t num_inputs) { return num_inputs; }
void te_int8_linear_run(const te_int8_linear *call) { (void)call; }

#endif
