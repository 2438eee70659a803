"""llama.cpp on a mapped file that is larger than its memory: the page cache is its cache.

Weights are not repacked at the start, which is what the program does by default: that makes a second copy of them in
memory that cannot be dropped.
"""

import ctypes

import llama_cpp
from streamed import answer, asked, decode

_BATCH_TOKENS = 64
_CONTEXT_TOKENS = 256

__all__ = ["main"]


def main():
    """Run the case."""
    order = asked()
    llama_cpp.llama_log_set(_silent, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_default_params()
    params.load_mode = llama_cpp.LLAMA_LOAD_MODE_MMAP
    params.use_extra_bufts = False
    model = llama_cpp.llama_model_load_from_file(order["gguf_file"].encode(), params)
    if not model:
        raise RuntimeError(f"llama.cpp does not load {order['gguf_file']}")
    answer(decode(order, Stepper(model, order["num_threads"]).step))


class Stepper:
    """One sequence."""

    def __init__(self, model, num_threads):
        """Open a context for it."""
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = _CONTEXT_TOKENS
        params.n_batch = params.n_ubatch = _BATCH_TOKENS
        params.n_threads = params.n_threads_batch = num_threads
        self._context = llama_cpp.llama_init_from_model(model, params)
        self._batch = llama_cpp.llama_batch_init(_BATCH_TOKENS, 0, 1)
        self._position = 0

    def step(self, token_ids):
        """Decode, wanting the logits of the last token."""
        self._batch.n_tokens = len(token_ids)
        for row, token in enumerate(token_ids):
            self._batch.token[row] = token
            self._batch.pos[row] = self._position + row
            self._batch.n_seq_id[row] = 1
            self._batch.seq_id[row][0] = 0
            self._batch.logits[row] = row == len(token_ids) - 1
        status = llama_cpp.llama_decode(self._context, self._batch)
        if status != 0:
            raise RuntimeError(f"llama_decode returned {status}")
        llama_cpp.llama_get_logits_ith(self._context, -1)
        self._position += len(token_ids)


@llama_cpp.llama_log_callback
def _silent(level, text, data):
    pass


if __name__ == "__main__":
    main()
