"""Model packages: their format on disk, their store, and the converter that makes them.

`manifest`, `store`, `verify`, `layout`, `aliases` and `naming` import without torch, so that the daemon and the command
line can use them; everything that touches tensors runs in a process of its own (`python -m teengined.modelpack`).
"""
