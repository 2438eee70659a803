from pathlib import Path

import pytest

from teengined.core.errors import ConfigError
from teengined.service.config import ConfigSources, load_config, validate_file


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_later_sources_beat_earlier_ones_and_each_value_knows_its_own(tmp_path: Path):
    file = write(tmp_path / "main.toml", '[daemon]\ndrain_timeout = "1s"\nlog_level = "debug"\nstate_dir = "/a"\n')
    (tmp_path / "conf.d").mkdir()
    write(tmp_path / "conf.d" / "10-a.toml", '[daemon]\ndrain_timeout = "2s"\n[limits]\nmax_waiting = 1\n')
    write(tmp_path / "conf.d" / "20-b.toml", '[daemon]\ndrain_timeout = "3s"\n')
    sources = ConfigSources(file=file, conf_dir=tmp_path / "conf.d", flags={"daemon.state_dir": "/c"})

    loaded = load_config(sources, {"TEENGINED_LIMITS__MAX_WAITING": "7", "TEENGINED_DAEMON__STATE_DIR": "/b"})

    found = {item.key: (item.value, item.origin) for item in loaded.items}
    assert found["daemon.drain_timeout"] == ("3s", f"file {tmp_path}/conf.d/20-b.toml")
    assert found["daemon.log_level"] == ("debug", f"file {file}")
    assert found["limits.max_waiting"] == ("7", "env TEENGINED_LIMITS__MAX_WAITING")
    assert found["daemon.state_dir"] == ("/c", "flag")
    assert found["limits.step_timeout"] == ("600s", "default")
    assert loaded.config.daemon.drain_timeout == 3.0


def test_every_value_is_written_so_that_it_reads_back_the_same(tmp_path: Path):
    loaded = load_config(ConfigSources(file=write(tmp_path / "a.toml", "")), {})
    texts = {
        item.key: item.value for item in loaded.items if item.value.endswith(("s", "B")) and item.value[0].isdigit()
    }

    again = load_config(ConfigSources(file=tmp_path / "a.toml", flags=texts), {})

    assert texts
    assert again.config == loaded.config


def test_every_field_has_a_unit_and_a_reason(tmp_path: Path):
    items = load_config(ConfigSources(file=write(tmp_path / "a.toml", "")), {}).items

    assert all(len(item.doc) > 10 and item.doc.endswith(")") for item in items)


def test_sizes_and_durations_may_be_text_or_numbers(tmp_path: Path):
    text = """
        protocol = {max_message = 8192}
        batching = {max_stream_buffer = "4KiB"}
        devices = [{id = "cpu:0", memory = "1.5GiB"}]
    """
    file = write(tmp_path / "a.toml", text)

    config = validate_file(file)

    assert (config.protocol.max_message, config.devices[0].memory) == (8192, 3 << 29)


def test_devices_can_come_from_the_environment(tmp_path: Path):
    environment = {"TEENGINED_DEVICES": '[{id = "cpu:0", memory = "1GiB", cores = [0, 1]}]'}

    config = load_config(ConfigSources(file=write(tmp_path / "a.toml", "")), environment).config

    assert config.devices[0].cores == (0, 1)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[daemon]\ndrain_timout = 1", "daemon: unknown key 'drain_timout'; did you mean 'drain_timeout'?"),
        ('metrics = {listen = "0.0.0.0:9464"}', "metrics.listen: 0.0.0.0 can be reached from other hosts"),
        ("[demon]\nx = 1", "unknown section 'demon'; did you mean 'daemon'?"),
        ("[limits]\nmax_waiting = 'many'", "limits.max_waiting: expected int, got str"),
        ("[limits]\nmax_waiting = -1", "limits.max_waiting must be at least 0 sequences, got -1"),
        ("[limits]\nstep_timeout = '5 parsecs'", "step_timeout: '5 parsecs' is not a duration"),
        ("[limits]\nstep_timeout = nan", "limits.step_timeout must be at least"),
        ("[streaming]\ndirect_io = 'maybe'", "expected one of 'auto', 'always', 'never'"),
        ("limits = 5", "limits: expected a table"),
        ("devices = 5", "devices: expected a list"),
        ("devices = [5]", "devices[0]: expected a table"),
        ("[[devices]]\nid = 'cpu'\nmemory = 1", "'cpu' is not `<driver>:<index>`"),
        ("[[devices]]\nid = 'cpu:0'", "devices[0].memory must be at least 1 bytes"),
        ("[[devices]]\nid = 'a:0'\nmemory = 1\n[[devices]]\nid = 'a:0'\nmemory = 1", "'a:0' is configured twice"),
        ("[daemon", "is no TOML"),
    ],
)
def test_error_names_the_file_and_what_is_wrong(tmp_path: Path, text: str, told: str):
    file = write(tmp_path / "wrong.toml", text)

    with pytest.raises(ConfigError) as caught:
        load_config(ConfigSources(file=file), {})

    assert told in caught.value.message
    assert str(file) in caught.value.message


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("TEENGINED_LIMITS__MAX_WAITNG", "1", "did you mean 'max_waiting'?"),
        ("TEENGINED_LIMIT__MAX_WAITING", "1", "did you mean 'limits'?"),
        ("TEENGINED_LIMITS__MAX_WAITING", "many", "is not written as in TOML"),
        ("TEENGINED_DAEMON__LOG_LEVEL", "loud", "expected one of"),
    ],
)
def test_wrong_variable_is_named(tmp_path: Path, name: str, value: str, told: str):
    with pytest.raises(ConfigError, match=name) as caught:
        load_config(ConfigSources(file=write(tmp_path / "a.toml", "")), {name: value})

    assert told in caught.value.message


def test_named_file_that_is_missing_is_an_error(tmp_path: Path):
    with pytest.raises(ConfigError, match="No such file"):
        load_config(ConfigSources(file=tmp_path / "none.toml"), {})


def test_what_waits_for_a_reader_must_fit_into_a_message(tmp_path: Path):
    file = write(tmp_path / "a.toml", '[protocol]\nmax_message = "512KiB"\n')
    told = "batching.max_stream_buffer is 1MiB, more than protocol.max_message, 512KiB"

    with pytest.raises(ConfigError, match=told):
        load_config(ConfigSources(file=file), {})
    with pytest.raises(ConfigError, match=told):
        validate_file(file)


def test_values_that_go_together_may_come_from_different_sources(tmp_path: Path):
    file = write(tmp_path / "a.toml", '[protocol]\nmax_message = "512KiB"\n')

    loaded = load_config(ConfigSources(file=file), {"TEENGINED_BATCHING__MAX_STREAM_BUFFER": "512KiB"})

    assert loaded.config.batching.max_stream_buffer == loaded.config.protocol.max_message
