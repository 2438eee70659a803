"""transformers' own continuous batching (`generate_batch`'s manager) in bf16."""

import torch
from spoken import Stopwatch, answer, asked
from transformers import AutoModelForCausalLM, GenerationConfig

__all__ = ["main"]


def main():
    """Run the cases."""
    order = asked()
    torch.set_num_threads(order["num_threads"])
    model = AutoModelForCausalLM.from_pretrained(
        order["model_dir"], dtype=torch.bfloat16, attn_implementation="sdpa"
    ).eval()
    config = GenerationConfig(max_new_tokens=order["num_tokens"], do_sample=False, eos_token_id=-1, pad_token_id=0)
    answer({num_streams: _case(model, config, order, num_streams) for num_streams in order["streams"]})


def _case(model, config, order, num_streams):
    manager = model.init_continuous_batching(generation_config=config)
    manager.start()
    try:
        _answer_all(manager, order["prompts"][:1], 2)  # sets up buffers
        return _answer_all(manager, order["prompts"][:num_streams], order["num_tokens"])
    finally:
        manager.stop(block=True)


def _answer_all(manager, prompts, num_tokens):
    watch = Stopwatch(len(prompts))
    streams, seen = {}, [0] * len(prompts)
    for stream, prompt in enumerate(prompts):
        name = manager.add_request(prompt, max_new_tokens=num_tokens, streaming=True)
        streams[name] = stream
    num_finished = 0
    while num_finished < len(prompts):
        result = manager.get_result(timeout=60)
        if result is None:
            raise RuntimeError("transformers gave no token within a minute")
        stream = streams[result.request_id]
        watch.note(stream, len(result.generated_tokens) - seen[stream])
        seen[stream] = len(result.generated_tokens)
        num_finished += result.is_finished()
    return watch.stamps


if __name__ == "__main__":
    main()
