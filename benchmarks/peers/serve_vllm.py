"""vLLM in bf16, its engine stepped in this process, so that each token is noted when it is there."""

import os

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

from spoken import Stopwatch, answer, asked
from vllm import EngineArgs, LLMEngine, SamplingParams

__all__ = ["main"]


def main():
    """Run the cases."""
    order = asked()
    longest = max(map(len, order["prompts"])) + order["num_tokens"] + 1
    engine = LLMEngine.from_engine_args(
        EngineArgs(
            model=order["model_dir"],
            dtype="bfloat16",
            max_model_len=max(1024, longest),
            max_num_seqs=max(order["streams"]),
            enable_prefix_caching=False,
            skip_tokenizer_init=True,
            disable_log_stats=True,
        )
    )
    _case(engine, order, 1)  # compiles
    answer({num_streams: _case(engine, order, num_streams) for num_streams in order["streams"]})


def _case(engine, order, num_streams):
    params = SamplingParams(max_tokens=order["num_tokens"], temperature=0.0, ignore_eos=True, detokenize=False)
    watch = Stopwatch(num_streams)
    for stream, prompt in enumerate(order["prompts"][:num_streams]):
        engine.add_request(str(stream), {"prompt_token_ids": prompt}, params)
    seen = [0] * num_streams
    while engine.has_unfinished_requests():
        for output in engine.step():
            stream, num_tokens = int(output.request_id.split("-")[0]), len(output.outputs[0].token_ids)
            watch.note(stream, num_tokens - seen[stream])
            seen[stream] = num_tokens
    return watch.stamps


if __name__ == "__main__":
    main()
