"""Every error that teengine raises on purpose, and the wire code each one travels under.

    TeengineError                      code                  exit  who acts
    ├── ConfigError                    config_invalid          78  operator
    ├── AlreadyRunning                 already_running         75  operator
    ├── RequestError                   invalid_request          2  client
    │   ├── UnknownModel               unknown_model            4  client
    │   ├── UnknownRequest             unknown_request          4  client
    │   ├── ContextTooLong             context_too_long         2  client
    │   ├── Conflict                   conflict                 9  client
    │   └── NotAllowed                 not_allowed              5  operator
    ├── CapacityError                  capacity                 7  retry, or plan again
    │   ├── DoesNotFit                 does_not_fit             7  operator
    │   ├── QueueFull                  queue_full               8  client retries
    │   ├── QuotaExceeded              quota_exceeded           8  client retries
    │   ├── Draining                   draining                 8  client retries elsewhere
    │   └── DiskFull                   disk_full                7  operator
    ├── SourceError                    source_invalid           1  user
    │   ├── UnsupportedArchitecture    unsupported_model        1  user
    │   └── HubUnreachable             hub_unreachable          1  user
    ├── PackageError                   package_invalid          1  operator converts again
    │   ├── PackageCorrupt             package_corrupt          1  operator converts again
    │   └── DiskFailed                 disk_failed              1  operator looks at the disk
    ├── DriverError                    driver_failed            1  operator
    │   ├── DeviceUnavailable          device_unavailable       7  operator
    │   └── OutOfDeviceMemory          out_of_device_memory     7  plan again
    ├── WorkerLost                     worker_lost              1  client retries; supervisor restarts
    ├── TransportError                 transport_failed         1  client retries
    │   ├── PeerLost                   peer_lost                1  client retries
    │   └── TransportTimeout           transport_timeout        6  client retries
    ├── ProtocolError                  malformed                1  client author
    │   ├── UnknownVersion             unknown_version          1  client author
    │   └── MessageTooLarge            message_too_large        1  client author
    ├── DaemonUnreachable              daemon_unreachable       3  user
    ├── DeadlineExceeded               deadline_exceeded        6  client
    ├── SlowReader                     slow_reader              1  client reads faster
    ├── Cancelled                      cancelled              130  nobody
    ├── PluginError                    plugin_invalid          78  plugin author
    ├── NumericalFault                 numerical_fault          1  operator: model or precision
    └── InternalError                  internal                 1  us

A foreign exception is mapped to one of these once, at the edge that met it, with ``from`` kept. ``assert`` is for our
own mistakes only. ``tests/unit/core/test_errors.py`` holds this picture to the classes below.
"""

from typing import ClassVar

__all__ = [
    "AlreadyRunning",
    "Cancelled",
    "CapacityError",
    "ConfigError",
    "Conflict",
    "ContextTooLong",
    "DaemonUnreachable",
    "DeadlineExceeded",
    "DeviceUnavailable",
    "DiskFailed",
    "DiskFull",
    "DoesNotFit",
    "Draining",
    "DriverError",
    "HubUnreachable",
    "InternalError",
    "MessageTooLarge",
    "NotAllowed",
    "NumericalFault",
    "OutOfDeviceMemory",
    "PackageCorrupt",
    "PackageError",
    "PeerLost",
    "PluginError",
    "ProtocolError",
    "QueueFull",
    "QuotaExceeded",
    "RequestError",
    "SlowReader",
    "SourceError",
    "TeengineError",
    "TransportError",
    "TransportTimeout",
    "UnknownModel",
    "UnknownRequest",
    "UnknownVersion",
    "UnsupportedArchitecture",
    "WorkerLost",
    "error_class",
]


class TeengineError(Exception):
    """Base of all. ``message`` says what is wrong and where, ``hint`` the command or value that mends it.

    Class attributes: ``code`` is stable on the wire and in logs, ``exit_code`` is what the command line returns,
    ``retryable`` tells a client whether the same request may succeed later.
    """

    code: ClassVar[str] = "internal"
    exit_code: ClassVar[int] = 1
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str = "", retry_after_seconds: float | None = None) -> None:
        """Keep the two sentences apart, so that each front end can lay them out."""
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.retry_after_seconds = retry_after_seconds


class ConfigError(TeengineError):
    """A configuration file, variable or flag is wrong. systemd does not restart on exit 78."""

    code = "config_invalid"
    exit_code = 78


class AlreadyRunning(TeengineError):
    """Another daemon owns this runtime directory."""

    code = "already_running"
    exit_code = 75


class RequestError(TeengineError):
    """The request as it was sent can never succeed."""

    code = "invalid_request"
    exit_code = 2


class UnknownModel(RequestError):
    """No package of that name in the store, or it is not loaded."""

    code = "unknown_model"
    exit_code = 4


class UnknownRequest(RequestError):
    """No live request has that id."""

    code = "unknown_request"
    exit_code = 4


class ContextTooLong(RequestError):
    """Prompt and answer together exceed the model's or the deployment's context."""

    code = "context_too_long"


class Conflict(RequestError):
    """The thing exists already, or is in use."""

    code = "conflict"
    exit_code = 9


class NotAllowed(RequestError):
    """The caller lacks the right."""

    code = "not_allowed"
    exit_code = 5


class CapacityError(TeengineError):
    """There is not enough of something now."""

    code = "capacity"
    exit_code = 7


class DoesNotFit(CapacityError):
    """No plan exists within the budgets. The message names the smallest budget that works."""

    code = "does_not_fit"


class QueueFull(CapacityError):
    """Admission refused before any work was done."""

    code = "queue_full"
    exit_code = 8
    retryable = True


class QuotaExceeded(CapacityError):
    """The caller alone has as much waiting as one caller may; others are still served."""

    code = "quota_exceeded"
    exit_code = 8
    retryable = True


class Draining(CapacityError):
    """The daemon finishes what it has and takes nothing new."""

    code = "draining"
    exit_code = 8
    retryable = True


class DiskFull(CapacityError):
    """A write would not fit, or did not."""

    code = "disk_full"


class SourceError(TeengineError):
    """A checkpoint to convert is missing, malformed or unsafe."""

    code = "source_invalid"


class UnsupportedArchitecture(SourceError):
    """The model family cannot be run correctly, so it is refused by name."""

    code = "unsupported_model"


class HubUnreachable(SourceError):
    """The Hugging Face hub does not answer from here."""

    code = "hub_unreachable"


class PackageError(TeengineError):
    """A model package is incomplete, of another schema version, or inconsistent."""

    code = "package_invalid"


class PackageCorrupt(PackageError):
    """Bytes of a package differ from their digest. The message names the unit."""

    code = "package_corrupt"


class DiskFailed(PackageError):
    """A disk did not give what it holds, also when asked again. The package may be whole."""

    code = "disk_failed"


class DriverError(TeengineError):
    """A device driver failed."""

    code = "driver_failed"


class DeviceUnavailable(DriverError):
    """The configured device is not there."""

    code = "device_unavailable"
    exit_code = 7


class OutOfDeviceMemory(DriverError):
    """An allocation exceeded the device's budget."""

    code = "out_of_device_memory"
    exit_code = 7


class WorkerLost(TeengineError):
    """A worker process died while it held part of this work."""

    code = "worker_lost"
    retryable = True


class TransportError(TeengineError):
    """Moving a tensor between stages failed."""

    code = "transport_failed"
    retryable = True


class PeerLost(TransportError):
    """The other end is gone."""

    code = "peer_lost"


class TransportTimeout(TransportError):
    """The other end did not answer within the deadline."""

    code = "transport_timeout"
    exit_code = 6


class ProtocolError(TeengineError):
    """Bytes on a socket that are not a valid message."""

    code = "malformed"


class UnknownVersion(ProtocolError):
    """The sender speaks another protocol version."""

    code = "unknown_version"


class MessageTooLarge(ProtocolError):
    """The message exceeds the configured limit."""

    code = "message_too_large"


class DaemonUnreachable(TeengineError):
    """No daemon answers on the socket."""

    code = "daemon_unreachable"
    exit_code = 3


class DeadlineExceeded(TeengineError):
    """The work did not finish in the time it was given."""

    code = "deadline_exceeded"
    exit_code = 6
    retryable = True


class SlowReader(TeengineError):
    """The caller takes its answer more slowly than the daemon is willing to keep it."""

    code = "slow_reader"


class Cancelled(TeengineError):
    """Stopped at the caller's wish."""

    code = "cancelled"
    exit_code = 130


class PluginError(TeengineError):
    """A plugin is a duplicate, breaks its contract, or raised. The message names it."""

    code = "plugin_invalid"
    exit_code = 78


class NumericalFault(TeengineError):
    """The model's logits for this request are not numbers. Others in the same step are not touched."""

    code = "numerical_fault"


class InternalError(TeengineError):
    """A mistake of ours, reported instead of a traceback."""

    code = "internal"


def _descendants(root: type[TeengineError]) -> list[type[TeengineError]]:
    return [root, *(leaf for child in root.__subclasses__() for leaf in _descendants(child))]


def error_class(code: str) -> type[TeengineError]:
    """Return the class for a wire code; `InternalError` for one that this version does not know."""
    known = {cls.code: cls for cls in _descendants(TeengineError) if cls is not TeengineError}
    return known.get(code, InternalError)
