"""llama.cpp through its low-level interface: one sequence a stream, all of them decoded in one batch."""

import ctypes

import llama_cpp
import numpy as np
from spoken import Stopwatch, answer, asked

_BATCH_TOKENS = 512

__all__ = ["main"]


def main():
    """Run the cases."""
    order = asked()
    llama_cpp.llama_log_set(_silent, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(order["gguf_file"].encode(), llama_cpp.llama_model_default_params())
    cases = {}
    for num_streams in order["streams"]:
        cases[num_streams] = _case(model, order, num_streams)
    answer(cases)


@llama_cpp.llama_log_callback
def _silent(level, text, data):
    pass


def _case(model, order, num_streams):
    prompts = order["prompts"][:num_streams]
    longest = max(map(len, prompts)) + order["num_tokens"] + 1
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = 256 * -(-num_streams * longest // 256)
    params.n_batch = params.n_ubatch = _BATCH_TOKENS
    params.n_seq_max = num_streams
    params.n_threads = params.n_threads_batch = order["num_threads"]
    params.kv_unified = True
    context = llama_cpp.llama_init_from_model(model, params)
    vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    batch = llama_cpp.llama_batch_init(_BATCH_TOKENS, 0, num_streams)
    _run(context, batch, [(0, 0, prompts[0][0], True)])  # the first call sets up buffers
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
    watch = Stopwatch(num_streams)
    tokens = [0] * num_streams
    for stream, prompt in enumerate(prompts):
        rows = [(stream, place, token, place == len(prompt) - 1) for place, token in enumerate(prompt)]
        for first in range(0, len(rows), _BATCH_TOKENS):
            _run(context, batch, rows[first : first + _BATCH_TOKENS])
        tokens[stream] = _best(context, -1, vocabulary)
        watch.note(stream)
    for step in range(order["num_tokens"] - 1):
        rows = [(stream, len(prompts[stream]) + step, tokens[stream], True) for stream in range(num_streams)]
        _run(context, batch, rows)
        for stream in range(num_streams):
            tokens[stream] = _best(context, stream, vocabulary)
            watch.note(stream)
    llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(context)
    return watch.stamps


def _run(context, batch, rows):
    batch.n_tokens = len(rows)
    for row, (stream, position, token, wanted) in enumerate(rows):
        batch.token[row] = token
        batch.pos[row] = position
        batch.n_seq_id[row] = 1
        batch.seq_id[row][0] = stream
        batch.logits[row] = wanted
    status = llama_cpp.llama_decode(context, batch)
    if status != 0:
        raise RuntimeError(f"llama_decode returned {status}")


def _best(context, row, vocabulary):
    logits = llama_cpp.llama_get_logits_ith(context, row)
    return int(np.ctypeslib.as_array(logits, shape=(vocabulary,)).argmax())


if __name__ == "__main__":
    main()
