"""Every setting of the daemon: its unit, default, and the reason for that default. Values only; `config` reads them."""

from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = [
    "BatchingSettings",
    "CheckSettings",
    "Config",
    "DaemonSettings",
    "DeviceSettings",
    "HostSettings",
    "KvSettings",
    "LimitSettings",
    "MetricsSettings",
    "PlanningSettings",
    "PluginSettings",
    "ProtocolSettings",
    "SpeculationSettings",
    "StoreSettings",
    "StreamingSettings",
    "WorkerSettings",
]

GIB = 1 << 30
MIB = 1 << 20
KIB = 1 << 10
# How much larger a reply may be than any request is allowed to be.
_REPLY_FACTOR = 4


def setting(default: Any, unit: str, reason: str, *, minimum: float | None = None) -> Any:
    """Return a dataclass field. Where `unit` is `bytes` or `seconds`, text such as "5s" is taken too."""
    return field(default=default, metadata={"unit": unit, "reason": reason, "minimum": minimum})


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonSettings:
    """The process itself."""

    runtime_dir: str = setting("", "path", "Sockets and lock; empty: /run/teengined, or the user's runtime directory.")
    state_dir: str = setting("", "path", "What survives a restart; empty: /var/lib/teengined, or ~/.local/state.")
    socket_mode: int = setting(0o660, "mode", "Members of the socket's group may talk to the daemon; nobody else.")
    drain_timeout: float = setting(
        30.0, "seconds", "Answers under way may finish; below systemd's TimeoutStopSec of 90 s.", minimum=0
    )
    log_format: Literal["text", "json"] = setting("text", "word", "journald adds the time; json for log collectors.")
    log_level: Literal["debug", "info", "warning", "error"] = setting("info", "word", "A few lines for each load.")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """Worker processes and their supervision."""

    command: tuple[str, ...] = setting((), "words", "Program of a worker; empty: this Python with the engine's worker.")
    start_timeout: float = setting(
        120.0, "seconds", "Importing torch from a cold disk and opening a GPU take tens of seconds.", minimum=0.1
    )
    stop_timeout: float = setting(
        5.0, "seconds", "For each of: asked to end, SIGTERM, SIGKILL. Nothing is lost by killing a worker.", minimum=0.1
    )
    ping_interval: float = setting(
        1.0, "seconds", "How soon a hung worker is noticed; costs one message.", minimum=0.05
    )
    ping_timeout: float = setting(
        30.0,
        "seconds",
        "Without an answer the worker counts as hung and is killed; above any page-in storm.",
        minimum=0.1,
    )
    restart_delay: float = setting(0.5, "seconds", "First wait before a restart; doubles each time.", minimum=0.01)
    restart_delay_max: float = setting(30.0, "seconds", "Longest wait: a person watching sees it try.", minimum=0.01)
    max_failures: int = setting(
        5,
        "failures",
        "In a row, without a step in between; then the deployment is failed, not tried for ever.",
        minimum=1,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtocolSettings:
    """The client socket."""

    max_message: int = setting(4 * MIB, "bytes", "A prompt of a million tokens as text is about 4 MB.", minimum=4096)
    max_items: int = setting(1 << 20, "items", "Of one list in a message: a million token ids.", minimum=1024)
    max_structures: int = setting(
        1 << 14,
        "lists and tables",
        "Of one message: thousands of turns, or of inputs; more keep others waiting while they are checked.",
        minimum=1024,
    )
    send_queue: int = setting(
        256,
        "messages",
        "Kept by ZeroMQ for each client: one with many answers gets a chunk of each at once.",
        minimum=1,
    )
    receive_queue: int = setting(
        64,
        "messages",
        "Read ahead by ZeroMQ for each client while the daemon is busy; each may be four times max_message.",
        minimum=1,
    )
    max_pending: int = setting(
        1024, "messages", "Kept beyond that for each client; then its requests are cancelled.", minimum=1
    )
    max_pending_bytes: int = setting(
        64 * MIB,
        "bytes",
        "As max_pending: some of the largest replies. What ends a call is kept beyond it, or nobody would learn of it.",
        minimum=MIB,
    )
    max_clients: int = setting(1024, "clients", "With a reply waiting or a call under way, at once.", minimum=1)
    max_calls: int = setting(256, "calls", "Under way at once for one client.", minimum=1)
    probe_interval: float = setting(
        0.25, "seconds", "How soon a client that left while its call waits is noticed; costs one message.", minimum=0.02
    )

    @property
    def max_reply_bytes(self) -> int:
        """Largest message that is sent: the plan of a model with many experts names each unit."""
        return _REPLY_FACTOR * self.max_message


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitSettings:
    """Admission."""

    max_waiting: int = setting(
        256, "sequences", "Waiting in one deployment, each choice of a request; beyond, better told at once.", minimum=0
    )
    max_waiting_tokens: int = setting(
        1 << 20, "tokens", "Of prompts waiting in one deployment: minutes of prefill for a large model.", minimum=1
    )
    max_owner_waiting: int = setting(
        128, "sequences", "As max_waiting, for one user: half of all, so that others find room.", minimum=0
    )
    max_owner_waiting_tokens: int = setting(1 << 19, "tokens", "As max_waiting_tokens, for one user.", minimum=1)
    max_promised_kv: float = setting(
        64.0,
        "times",
        "Of a deployment's KV, that all its requests together may come to need; 0: any. max_waiting whole contexts.",
        minimum=0,
    )
    max_request_time: float = setting(
        3600.0, "seconds", "Longest answer; a model streamed from disk may take minutes for a few tokens.", minimum=0.1
    )
    step_timeout: float = setting(
        600.0, "seconds", "Longest step: 100 GB streamed at 0.2 GB/s. Then the worker counts as hung.", minimum=0.1
    )
    load_timeout: float = setting(3600.0, "seconds", "Reading 100 GB of resident weights at 30 MB/s.", minimum=0.1)
    max_deployments: int = setting(16, "deployments", "Loaded at once; each holds stages on its workers.", minimum=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchingSettings:
    """What runs together in a deployment, what may wait for it, and what may wait for its readers."""

    scheduling_policy: str = setting(
        "fair", "plugin", "Nobody's flood or priority delays another's; every user weighs the same."
    )
    max_running: int = setting(
        256, "sequences", "At once in a deployment, as far as its KV holds them; more gains little.", minimum=1
    )
    max_logit_rows: int = setting(
        128, "rows", "Of one step: tokens drawn and told of. Each takes two fp32 rows of the vocabulary.", minimum=1
    )
    max_choices: int = setting(16, "choices", "Of one request; each takes a place among the running.", minimum=1)
    max_inputs: int = setting(
        2048, "inputs", "Of one request for embeddings: what evaluation and indexing send at once.", minimum=1
    )
    max_stream_buffer: int = setting(
        MIB,
        "bytes",
        "Of one answer whose reader is slow: about 100,000 tokens of text, or 300 with 20 alternatives each.",
        minimum=KIB,
    )
    prompt_stretch: float = setting(
        2.5,
        "times",
        "Longest step beside a long prompt, against one that only decodes: who reads should hardly notice. 0: fill it.",
        minimum=0,
    )
    prefix_cache: bool = setting(
        True, "flag", "Prompts of one user that begin alike are computed once; costs only KV that is free."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckSettings:
    """What a client's grammars and a model's chat template may cost, each in a bounded process of its own."""

    grammar_seconds: float = setting(
        0.5,
        "seconds",
        "Of processor time for one grammar, rounded up by less than 1 s; large real ones take 0.2 s.",
        minimum=0.01,
    )
    grammar_wall: float = setting(5.0, "seconds", "The same by the clock, where processors are busy.", minimum=0.1)
    grammar_memory: int = setting(
        2 * GIB, "bytes", "Address space of one process: the largest tokenizers take a quarter.", minimum=64 * MIB
    )
    grammar_load: float = setting(
        60.0, "seconds", "Reading a package's tokenizer takes some seconds, more on an overloaded host.", minimum=0.1
    )
    grammar_processes: int = setting(
        2, "processes", "Grammars tried at once: one that takes its whole time leaves the way free.", minimum=1
    )
    grammar_waiting: int = setting(
        64, "grammars", "Waiting for a process; at some milliseconds each that is less than a second.", minimum=0
    )
    grammar_owner_waiting: int = setting(
        32, "grammars", "Of one user, behind the one that is tried: a hostile user waits for itself.", minimum=0
    )
    template_seconds: float = setting(
        1.0, "seconds", "Of processor time for one conversation; published templates take milliseconds.", minimum=0.01
    )
    template_wall: float = setting(5.0, "seconds", "The same by the clock, where processors are busy.", minimum=0.1)
    template_memory: int = setting(
        256 * MIB, "bytes", "Of one conversation; one of a million tokens takes some 30 MB.", minimum=16 * MIB
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class KvSettings:
    """How keys and values of running sequences are kept."""

    block_tokens: int = setting(
        16, "tokens", "Of one block: half of it is lost for each sequence; smaller ones make longer tables.", minimum=1
    )
    dtype: Literal["auto", "int8"] = setting(
        "auto", "word", "The compute dtype; int8 halves KV or better, and changes the numbers a little."
    )
    host_spool: int = setting(
        256 * MIB,
        "bytes",
        "Of host memory, for each deployment, taken as it is used: KV that gave way comes back by copying. At most an "
        "eighth of what is free; 0: it is computed again.",
        minimum=0,
    )
    disk_spool: int = setting(
        0,
        "bytes",
        "Of files, for each deployment, by way of host_spool. Writing wears a disk: who wants it asks for it.",
        minimum=0,
    )
    spool_dir: str = setting("", "path", "A fast local disk; empty: `spool` in the state directory.")
    kept_spool: int = setting(
        0,
        "bytes",
        "Of spool files that outlive their deployment, of all packages that are not loaded: prompts begin with them "
        "after the next load. What users wrote lies on disk then: who wants it asks for it. 0: they are removed.",
        minimum=0,
    )
    kept_age: float = setting(
        7 * 24 * 3600.0, "seconds", "KV written longer ago is not kept: a week of work with one document.", minimum=1
    )
    kept_interval: float = setting(
        30.0, "seconds", "How often what is kept is written down: a crash loses what came after.", minimum=0.05
    )
    checkpoint_tokens: int = setting(
        0,
        "tokens",
        "Every so many, a running answer's KV is copied to the spool, and outlives its worker on disk. 0: never.",
        minimum=0,
    )
    checkpoint_seconds: float = setting(
        0.0,
        "seconds",
        "As checkpoint_tokens, by time: what a lost worker costs is so much computing at most. 0: by tokens only.",
        minimum=0,
    )
    max_restore: int = setting(
        64 * MIB, "bytes", "Copied back in one step: some 20 ms in which others wait for their tokens.", minimum=1
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeculationSettings:
    """Tokens that are guessed ahead and verified in one step. Answers are the same with and without."""

    mode: Literal["off", "lookup", "draft", "auto"] = setting(
        "auto", "word", "All there is to guess with, only while it measures faster; `draft` needs a draft model."
    )
    max_tokens: int = setting(
        16,
        "tokens",
        "Of one sequence in one step: a row of streamed weights costs little, a wrong guess a row.",
        minimum=1,
    )
    draft_wait: float = setting(
        5.0, "seconds", "Longest that a step waits for a draft model; then it goes without.", minimum=0.01
    )
    lookup_window: int = setting(
        16384, "tokens", "How far back what is repeated is found; its index takes 64 bytes a token at most.", minimum=16
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamingSettings:
    """Steps and the reading of weights."""

    max_step_tokens: int = setting(
        512, "tokens", "Of one step, all sequences together: a streamed layer is read once for each chunk.", minimum=1
    )
    read_threads: int = setting(4, "threads", "Parallel reads that fill an NVMe disk's queue.", minimum=1)
    read_chunk: int = setting(
        4 * MIB, "bytes", "One read: large enough for full speed, small enough to share.", minimum=4096
    )
    ring_slots: int = setting(3, "slots", "One unit computes, one arrives, one is asked for.", minimum=2)
    expert_policy: Literal["auto", "lru", "lfu", "pinned", "sticky"] = setting(
        "auto", "word", "Who gives way in a cache of experts: auto follows what would have read least of late."
    )
    expert_guesses: int = setting(
        4,
        "reads",
        "Most experts of a layer read on its router's guess, where that measures faster. 4: what a fast disk delivers "
        "while a layer's attention computes. 0: never.",
        minimum=0,
    )
    expert_step_tokens: int = setting(
        2048, "tokens", "As max_step_tokens where experts are streamed: a chunk reads nearly all of them.", minimum=1
    )
    direct_io: Literal["auto", "always", "never"] = setting(
        "auto", "word", "Past the page cache where the streamed bytes would not fit in host memory."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSettings:
    """Host memory in which weights wait for devices with memory of their own, shared by all workers."""

    memory: int = setting(
        0,
        "bytes",
        "Of all deployments together, what they share counted once; 0: what was free when the host was measured. "
        "Lowered to what control groups allow.",
        minimum=0,
    )
    lock: bool = setting(
        False,
        "flag",
        "Keep it from being swapped out; each worker needs a limit on locked memory that is as large. What cannot be "
        "locked is warned of and used.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanningSettings:
    """Defaults of plans, and the measurements they rest on."""

    policy: str = setting("optimal", "plugin", "Exact, with a proven bound.")
    objective: Literal["latency", "throughput"] = setting("latency", "word", "One person waiting for one answer.")
    context: int = setting(4096, "tokens", "Per sequence; the model's maximum if that is smaller.", minimum=1)
    num_slots: int = setting(
        4, "sequences", "At the full context: so much KV is reserved, and many more short ones share it.", minimum=1
    )
    numerics: Literal["default", "strict"] = setting(
        "default", "word", "strict: no logit depends on what else runs beside it, at some cost in speed."
    )
    plan_timeout: float = setting(
        30.0, "seconds", "The planner answers in under 2 s; a policy plugin may not.", minimum=0.1
    )
    measure_command: tuple[str, ...] = setting(
        (), "words", "Program that measures devices; empty: this Python with the engine's measurements."
    )
    measure_timeout: float = setting(300.0, "seconds", "Measuring all devices once; the result is kept.", minimum=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSettings:
    """Model packages on disk."""

    dir: str = setting("", "path", "Empty: `models` in the state directory.")
    paths: tuple[str, ...] = setting(
        (), "paths", "Directories on more disks: new packages are spread over all, to be read from all at once."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsSettings:
    """Metrics over HTTP, for Prometheus and its like. `teengine metrics` shows them without."""

    listen: str = setting(
        "",
        "address",
        "Such as 127.0.0.1:9464; empty: nothing listens. Loopback only: there is no key, and any local user may read.",
    )
    max_connections: int = setting(8, "connections", "At once; a few scrapers of one request each.", minimum=1)
    max_request: int = setting(8 * KIB, "bytes", "Of a request's line and headers, as servers take them.", minimum=256)
    timeout: float = setting(5.0, "seconds", "For one connection, from its start to its end.", minimum=0.1)


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginSettings:
    """Which plugins take part."""

    blocked: tuple[str, ...] = setting((), "names", "Entry points or distributions that are not loaded.")
    discover: tuple[str, ...] = setting(
        ("cpu", "cuda"), "drivers", "Asked for devices where none is configured; the null driver is for tests."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSettings:
    """One device, a `[[devices]]` table. None configured: what the drivers discover."""

    id: str = setting("", "device", "`<driver>:<index>`, such as cpu:0 or cuda:1.")
    memory: int = setting(0, "bytes", "Budget for weights, KV, workspace and ring together.", minimum=1)
    threads: int = setting(0, "threads", "For arithmetic; 0: one for each core of `cores`, or of the host.", minimum=0)
    cores: tuple[int, ...] = setting((), "cores", "The worker runs on these only; empty: any.")
    lock: bool = setting(
        False, "flag", "Keep weights from being swapped out; needs a limit on locked memory that is as large."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All sections."""

    daemon: DaemonSettings = field(default_factory=DaemonSettings)
    worker: WorkerSettings = field(default_factory=WorkerSettings)
    protocol: ProtocolSettings = field(default_factory=ProtocolSettings)
    limits: LimitSettings = field(default_factory=LimitSettings)
    batching: BatchingSettings = field(default_factory=BatchingSettings)
    checks: CheckSettings = field(default_factory=CheckSettings)
    kv: KvSettings = field(default_factory=KvSettings)
    speculation: SpeculationSettings = field(default_factory=SpeculationSettings)
    streaming: StreamingSettings = field(default_factory=StreamingSettings)
    host: HostSettings = field(default_factory=HostSettings)
    planning: PlanningSettings = field(default_factory=PlanningSettings)
    store: StoreSettings = field(default_factory=StoreSettings)
    metrics: MetricsSettings = field(default_factory=MetricsSettings)
    plugins: PluginSettings = field(default_factory=PluginSettings)
    devices: tuple[DeviceSettings, ...] = ()
