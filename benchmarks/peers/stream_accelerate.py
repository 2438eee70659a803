"""transformers with accelerate's offloading to disk, in bf16: layers that do not fit are read from the checkpoint.

`device_map="auto"` fills the memory that it is given; what is left for it is the limit less what the process holds
before, and less twice the largest module, which is what one offloaded module needs while it runs.
"""

import json
from pathlib import Path

import psutil
import torch
from stream_transformers import Stepper
from streamed import answer, asked, decode
from transformers import AutoModelForCausalLM
from transformers.models.auto import modeling_auto

_NUM_MODULES_IN_FLIGHT = 2
_ACTIVATIONS_BYTES = 64 << 20

__all__ = ["main"]


def main():
    """Run the case."""
    order = asked()
    assert modeling_auto, "imported, so that the process is as large as it gets without a model"
    torch.set_num_threads(order["num_threads"])
    held_bytes = psutil.Process().memory_info().rss
    in_flight_bytes = _NUM_MODULES_IN_FLIGHT * _largest_module_bytes(Path(order["model_dir"]))
    memory_bytes = max(0, order["limit_bytes"] - held_bytes - in_flight_bytes - _ACTIVATIONS_BYTES)
    Path(order["scratch_dir"]).mkdir(parents=True, exist_ok=True)
    model = AutoModelForCausalLM.from_pretrained(
        order["model_dir"],
        dtype=torch.bfloat16,
        attn_implementation="sdpa",
        device_map="auto",
        max_memory={"cpu": memory_bytes},
        offload_folder=order["scratch_dir"],
    ).eval()
    stamps = decode(order, Stepper(model, model.config).step)
    num_offloaded = sum(place == "disk" for place in model.hf_device_map.values())
    answer(stamps, note=f"{num_offloaded} of {len(model.hf_device_map)} modules on disk", memory_bytes=memory_bytes)


def _largest_module_bytes(model_dir):
    """Return the largest shard: the checkpoints of these benchmarks have one for each module."""
    index = json.loads((model_dir / "model.safetensors.index.json").read_text("utf-8"))
    return max((model_dir / file).stat().st_size for file in set(index["weight_map"].values()))


if __name__ == "__main__":
    main()
