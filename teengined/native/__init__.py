"""Kernels in C for CPUs, compiled where they run by the system's compiler, and optional everywhere."""
