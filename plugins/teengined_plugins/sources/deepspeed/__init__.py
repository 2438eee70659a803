"""Checkpoints as DeepSpeed writes them: ZeRO's partitions of every stage, and universal checkpoints."""
