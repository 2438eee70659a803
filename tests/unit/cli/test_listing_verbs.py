import json
from dataclasses import replace

import pytest

from teengined.cli.main import main
from teengined.core.device import DeviceSpec
from teengined.core.plan import ExpertCache, Objective, Plan, Stage, StageCost, StageExperts, Tier, UnitPlacement
from teengined.protocol import messages as wire
from teengined.protocol.loading_messages import KvTiers

STAGE = Stage(
    index=0,
    device_id="cpu:0",
    layer_start=0,
    layer_end=2,
    has_embedding=True,
    has_head=True,
    compute_dtype="fp32",
    units=(
        UnitPlacement(unit_id="embedding", tier=Tier.DEVICE),
        UnitPlacement(unit_id="layer.0", tier=Tier.DEVICE),
        UnitPlacement(unit_id="layer.1", tier=Tier.DISK),
        UnitPlacement(unit_id="head", tier=Tier.DEVICE),
    ),
    resident_bytes=600,
    ring_bytes=100,
    kv_bytes=50,
    workspace_bytes=10,
    transport="",
    cost=StageCost(
        compute_seconds=0.01, host_seconds=0.0, disk_seconds=0.02, hop_seconds=0.0, seconds=0.02, binding="disk"
    ),
)
PLAN = Plan(
    model="tiny",
    policy="optimal",
    objective=Objective.LATENCY,
    context_tokens=2048,
    num_slots=1,
    stages=(STAGE,),
    seconds_per_token=0.02,
    period_seconds=0.02,
    prefill_seconds=0.5,
    streamed_bytes_per_token=400,
    lower_bound_seconds=0.02,
    gap=0.0,
)
DEPLOYMENT = wire.Deployment(
    id="d1",
    model="tiny",
    state="ready",
    plan=PLAN,
    size_bytes=1000,
    precision="fp32",
    num_running=1,
    num_queued=2,
    num_completed=3,
    tokens_per_second=40.0,
    bound_tokens_per_second=50.0,
    num_blocks=8,
    num_used_blocks=2,
    num_cached_blocks=4,
    num_queued_tokens=77,
    total_tokens_per_second=120.0,
    stage_bubbles=(0.05, 0.31),
    num_disk_units=1,
    drafted=(
        wire.DraftedTokens(request_class="grammar", source="lookup", is_on=False, num_drafted=8, num_accepted=0),
        wire.DraftedTokens(request_class="greedy", source="lookup", is_on=True, num_drafted=16, num_accepted=12),
        wire.DraftedTokens(request_class="sampled", source="lookup", is_on=False, num_drafted=0, num_accepted=0),
    ),
    kv_tiers=KvTiers(num_host_slots=50, num_host_blocks=20, num_disk_slots=100, num_disk_blocks=3),
    host_pool_bytes=1_500_000,
)
SUMMARY = wire.ModelSummary(
    name="tiny",
    digest="blake2b:0123456789abcdef",
    size_bytes=1000,
    architecture="llama",
    precision="fp32",
    num_parameters=135_000_000,
    modified_unix_seconds=0.0,
)
DETAIL = wire.ModelDetail(
    summary=SUMMARY,
    source="hf:somebody/tiny",
    num_layers=2,
    hidden_size=64,
    vocab_size=100,
    max_context_tokens=2048,
    num_experts=0,
    num_units=4,
    compute_dtype="fp32",
    kv_bytes_per_token=512,
    numeric_notes=("fp16 weights widened",),
)
STATUS = wire.Status(
    version="1.2.3",
    pid=42,
    uptime_seconds=3700.0,
    state="ready",
    host="here",
    runtime_dir="/run/teengined",
    devices=(
        wire.DeviceStatus(
            spec=DeviceSpec(id="cpu:0", driver="cpu", memory_bytes=2000),
            description=None,
            worker_pid=None,
            state="backoff",
            planned_bytes=760,
            problem="worker died twice",
        ),
    ),
    deployments=(DEPLOYMENT,),
    num_running=1,
    num_queued=2,
    num_models=1,
    rss_bytes=50_000_000,
)


def run(daemon, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["--endpoint", daemon.endpoint, *words])
    captured = capsys.readouterr()
    return int(str(ended.value.code)), captured.out, captured.err


def test_ls_shows_packages(daemon, capsys):
    daemon.answer(wire.ListModels, wire.ModelList(models=(SUMMARY,)))

    _, out, _ = run(daemon, capsys, "ls", "ti")

    assert out.splitlines()[0].split() == ["NAME", "ID", "SIZE", "PARAMS", "ARCHITECTURE", "PRECISION", "MODIFIED"]
    assert out.splitlines()[1].startswith("tiny  0123456789ab  1.0 kB    135M  llama")
    assert daemon.asked[-1] == wire.ListModels(prefix="ti")


def test_ps_shows_where_the_bytes_are_and_the_share_of_the_bound(daemon, capsys):
    daemon.answer(wire.ListDeployments, wire.DeploymentList(deployments=(DEPLOYMENT,)))

    _, out, _ = run(daemon, capsys, "ps")

    assert "cpu 60% disk 40%" in out
    header, row = out.splitlines()
    assert header.endswith(
        "CONTEXT  RUN  WAIT       KV  SPOOL               HOST  ALL TOK/S  TOK/S  BOUND  SHARE  EXPERTS  BUBBLES  "
        "DRAFTS                     STATE"
    )
    assert row.endswith(
        "2048    1     2  25%+50%  host 40% disk 3%  1.5 MB      120.0   40.0   50.0    80%  -        5% 31%   "
        "grammar 0% off greedy 75%  ready"
    )


@pytest.mark.parametrize(("verb", "kind"), [("ps", wire.ListDeployments), ("status", wire.GetStatus)])
def test_placements_are_asked_for_only_where_they_are_shown(daemon, capsys, verb: str, kind: type):
    daemon.answer(wire.ListDeployments, wire.DeploymentList(deployments=(DEPLOYMENT,)))
    daemon.answer(wire.GetStatus, STATUS)

    for words in ((verb,), (verb, "--json")):
        run(daemon, capsys, *words)

    assert [message.placements for message in daemon.asked if isinstance(message, kind)] == [False, True]


def test_ps_shows_how_often_an_expert_was_cached_and_counts_the_cache_to_the_device(daemon, capsys):
    cache = StageExperts(
        caches=(ExpertCache(slot_bytes=50, num_slots=4, num_experts=8),),
        num_bytes=400,
        bytes_per_token=100,
        hit_rate=0.5,
    )
    stages = (replace(DEPLOYMENT.plan.stages[0], experts=cache), *DEPLOYMENT.plan.stages[1:])
    figures = wire.ExpertFigures(
        num_experts=8,
        num_slots=4,
        expected_hit_rate=0.5,
        policies=("lfu",),
        hit_rate=0.61,
        best_hit_rate=0.7,
        guessed_rate=0.4,
        guess_right_rate=0.8,
        guessing_stages=(False,),
    )
    routed = replace(DEPLOYMENT, plan=replace(DEPLOYMENT.plan, stages=stages), experts=figures)
    daemon.answer(wire.ListDeployments, wire.DeploymentList(deployments=(routed,)))

    _, out, _ = run(daemon, capsys, "ps")

    assert "61% of 70% lfu" in out
    assert "ahead" not in out
    assert "cpu 80% disk 20%" in out


def test_ps_tells_how_guesses_of_experts_do_where_they_are_made(daemon, capsys):
    figures = wire.ExpertFigures(
        num_experts=8,
        num_slots=4,
        expected_hit_rate=0.5,
        policies=("lfu", "lfu"),
        hit_rate=0.61,
        best_hit_rate=0.7,
        guessed_rate=0.4,
        guess_right_rate=0.8,
        guessing_stages=(False, True),
    )
    daemon.answer(wire.ListDeployments, wire.DeploymentList(deployments=(replace(DEPLOYMENT, experts=figures),)))

    _, out, _ = run(daemon, capsys, "ps")

    assert "61% of 70% lfu, 40% ahead, 80% right" in out


def test_ps_leaves_out_what_was_not_measured(daemon, capsys):
    quiet = replace(DEPLOYMENT, num_blocks=0, tokens_per_second=0.0, total_tokens_per_second=0.0)
    quiet = replace(quiet, stage_bubbles=(), drafted=(), kv_tiers=KvTiers(), host_pool_bytes=0)
    daemon.answer(wire.ListDeployments, wire.DeploymentList(deployments=(quiet,)))

    _, out, _ = run(daemon, capsys, "ps")

    assert out.splitlines()[1].split()[-13:] == ["1", "2", "-", "-", "-", "-", "-", "50.0", "-", "-", "-", "-", "ready"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("ps", "big"), "no loaded model begins with 'big'; there are: tiny\n"),
        (("ls",), "there is no package; `teengine pull smollm2` gets one, `teengine convert` makes one\n"),
        (("ls", "x"), "there is no package whose name begins with 'x'; `teengine pull smollm2` gets one"),
        (("requests",), "no request is under way\n"),
        (("config", "show", "limit.max"), "no setting begins with 'limit.max'; did you mean limits.max_waiting?\n"),
    ],
)
def test_a_list_without_rows_says_so_instead_of_its_header(daemon, capsys, words: tuple[str, ...], told: str):
    item = wire.ConfigItem(key="limits.max_waiting", value="1", origin="default", doc="why")
    daemon.answer(wire.ListDeployments, wire.DeploymentList(deployments=(DEPLOYMENT,)))
    daemon.answer(wire.ListModels, wire.ModelList(models=()))
    daemon.answer(wire.ListRequests, wire.RequestList(requests=()))
    daemon.answer(wire.ShowConfig, wire.ConfigReply(items=(item,)))

    code, out, err = run(daemon, capsys, *words)

    assert (code, out) == (0, "")
    assert told in err


def test_ps_as_json_is_the_record(daemon, capsys):
    daemon.answer(wire.ListDeployments, wire.DeploymentList(deployments=(DEPLOYMENT,)))

    _, out, _ = run(daemon, capsys, "ps", "--json")

    written = json.loads(out)
    assert written["schema"] == "teengine.ps/v1"
    assert written["items"][0]["plan"]["stages"][0]["resident_bytes"] == 600


def test_show_leaves_out_what_the_model_lacks(daemon, capsys):
    daemon.answer(wire.ShowModel, DETAIL)

    _, out, _ = run(daemon, capsys, "show", "tiny")

    assert "context       2048 tokens, 512 B of KV each" in out
    assert "note          fp16 weights widened" in out
    assert "experts" not in out


def test_status_is_one_screen(daemon, capsys):
    daemon.answer(wire.GetStatus, STATUS)

    _, out, _ = run(daemon, capsys, "status")

    assert out.startswith("teengined 1.2.3 on here: ready, up 1h01m, pid 42, 50.0 MB resident\n")
    assert "backoff: worker died twice" in out
    assert "\x1b" not in out


def test_status_tells_of_the_pool_of_host_memory_where_it_is_used(daemon, capsys):
    daemon.answer(wire.GetStatus, STATUS)
    assert "host memory" not in run(daemon, capsys, "status")[1]

    pool = wire.HostPoolStatus(budget_bytes=8_000_000, planned_bytes=3_000_000, unshared_bytes=5_000_000)
    daemon.answer(wire.GetStatus, replace(STATUS, host_pool=pool))
    assert "\nhost memory: 3.0 MB of 8.0 MB taken, 2.0 MB saved by sharing\n" in run(daemon, capsys, "status")[1]


def test_status_is_coloured_when_asked(daemon, capsys):
    daemon.answer(wire.GetStatus, STATUS)

    assert "\x1b[32mready\x1b[0m" in run(daemon, capsys, "--color", "always", "status")[1]


def test_status_without_models_says_so(daemon, capsys):
    daemon.answer(wire.GetStatus, replace(STATUS, deployments=()))

    assert "no model is loaded" in run(daemon, capsys, "status")[1]


def test_plugins_alone_lists_them(daemon, capsys):
    item = wire.PluginItem(
        kind="driver", name="cuda", entry_point="driver.cuda", distribution="teengine", available=False, reason="no GPU"
    )
    daemon.answer(wire.ListPlugins, wire.PluginList(plugins=(item,)))

    assert "no: no GPU" in run(daemon, capsys, "plugins")[1]
    assert run(daemon, capsys, "plugins", "-q")[1] == "driver/cuda\n"
    assert run(daemon, capsys, "plugins", "ls", "--json")[1].startswith('{\n  "schema": "teengine.plugins/v1"')


def test_errors_of_the_daemon_become_its_exit_codes(daemon, capsys):
    reply = wire.ErrorReply(code="unknown_model", message="no model named 'x'", hint="teengine ls", retryable=False)
    daemon.answer(wire.RemoveModel, reply)

    code, out, err = run(daemon, capsys, "rm", "x")

    assert (code, out) == (4, "")
    assert err == "error: no model named 'x'\nhint: teengine ls\n"


def test_unload_passes_on_how_much_of_a_hurry_there_is(daemon, capsys):
    daemon.answer(wire.UnloadModel, wire.Done())

    run(daemon, capsys, "stop", "a", "b", "--now")

    assert daemon.asked[-2:] == [wire.UnloadModel(model="a", now=True), wire.UnloadModel(model="b", now=True)]


def test_load_streams_progress_as_json_lines(daemon, capsys):
    told = wire.LoadProgress(phase="reading", done=1, total=2)
    daemon.answer(wire.LoadModel, told, wire.Loaded(deployment=DEPLOYMENT, seconds=1.5))

    code, out, _ = run(daemon, capsys, "load", "tiny", "--device", "cpu:0", "--context", "512", "-o", "jsonl")

    first, last = map(json.loads, out.splitlines())
    assert (code, first["label"], last["event"], last["seconds"]) == (0, "reading tiny", "done", 1.5)
    assert daemon.asked[-1].plan == wire.PlanModel(model="tiny", device_ids=("cpu:0",), context_tokens=512)


def test_plan_that_does_not_fit_is_exit_code_7(daemon, capsys):
    reply = wire.ErrorReply(code="does_not_fit", message="cpu:0 needs 2 GB", hint="raise it", retryable=False)
    daemon.answer(wire.PlanModel, reply)

    assert run(daemon, capsys, "plan", "tiny", "--objective", "throughput")[0] == 7
    assert daemon.asked[-1].objective is Objective.THROUGHPUT


@pytest.mark.parametrize("verb", ["plan", "load"])
def test_how_a_model_computes_can_be_asked_for(daemon, capsys, verb: str):
    reply = wire.ErrorReply(code="does_not_fit", message="cpu:0 needs 2 GB", hint="raise it", retryable=False)
    daemon.answer(wire.PlanModel, reply)
    daemon.answer(wire.LoadModel, reply)

    run(daemon, capsys, verb, "tiny", "--numerics", "strict", "--kv-dtype", "int8")

    asked = daemon.asked[-1]
    plan = asked if verb == "plan" else asked.plan
    assert (plan.numerics, plan.kv_dtype) == ("strict", "int8")


def test_config_show_filters_by_prefix(daemon, capsys):
    items = tuple(wire.ConfigItem(key=key, value="1", origin="default", doc="why") for key in ("a.x", "b.y"))
    daemon.answer(wire.ShowConfig, wire.ConfigReply(items=items))

    assert run(daemon, capsys, "config", "show", "b", "-q")[1] == "b.y\n"
    assert "why" in run(daemon, capsys, "config", "show", "--docs")[1]


def test_version_names_both_ends(daemon, capsys):
    daemon.answer(wire.Hello, wire.Welcome(version="1.2.3", host="here", pid=42))

    assert "teengined  1.2.3" in run(daemon, capsys, "version")[1]


METRICS = wire.Metrics(
    families=(
        wire.MetricFamily(
            name="tokens",
            kind="counter",
            help="Drawn.",
            series=(wire.MetricSeries(labels={"model": "tiny"}, value=7.0),),
        ),
    ),
    text='tokens_total{model="tiny"} 7\n# EOF\n',
)


def test_metrics_are_printed_as_they_would_be_served(daemon, capsys):
    daemon.answer(wire.GetMetrics, METRICS)

    assert run(daemon, capsys, "metrics") == (0, METRICS.text, "")


def test_metrics_as_json_are_values(daemon, capsys):
    daemon.answer(wire.GetMetrics, METRICS)

    _, out, _ = run(daemon, capsys, "metrics", "-o", "json")

    told = json.loads(out)
    assert told["schema"] == "teengine.metrics/v1"
    assert told["items"][0]["series"] == [{"labels": {"model": "tiny"}, "value": 7.0, "distribution": None}]
