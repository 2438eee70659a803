# The two calls of msgpack that protocol/codec.py makes, and what its tests use; the library ships no types.
from collections.abc import Callable
from typing import Any

from msgpack import exceptions as exceptions

def packb(o: object, *, use_bin_type: bool = ...) -> bytes: ...
def unpackb(
    packed: bytes,
    *,
    strict_map_key: bool = ...,
    max_array_len: int = ...,
    max_map_len: int = ...,
    max_ext_len: int = ...,
    list_hook: Callable[[Any], Any] | None = ...,
    object_hook: Callable[[Any], Any] | None = ...,
) -> Any: ...

class Timestamp:
    def __init__(self, seconds: int, nanoseconds: int = ...) -> None: ...
