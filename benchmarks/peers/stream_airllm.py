"""airllm on the CPU: every layer is read for every token, and nothing is kept. In bf16, or with its own compression."""

import torch
from airllm import AutoModel
from stream_transformers import Stepper
from streamed import answer, asked, decode

__all__ = ["main"]


def main():
    """Run the case."""
    order = asked()
    torch.set_num_threads(order["num_threads"])
    model = AutoModel.from_pretrained(
        order["model_dir"],
        device="cpu",
        dtype=torch.bfloat16,
        compression=order["compression"] or None,
        layer_shards_saving_path=order["scratch_dir"],
    )
    answer(decode(order, Stepper(model, model.config).step))


if __name__ == "__main__":
    main()
