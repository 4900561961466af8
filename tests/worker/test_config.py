"""What the options mean, which wins, and how an impossible one is refused."""

import dataclasses
from pathlib import Path

import pytest

from worker.__main__ import main
from worker.config import Address, Config, ToneOptions
from worker.given import ConfigError


def read(*arguments: str, **environment: str) -> Config:
    return Config.from_environment(arguments, environment)


def test_the_defaults_are_those_of_the_first_worker_on_a_host() -> None:
    assert read() == Config(id="worker-0", gateways=(Address("127.0.0.1", 8081),))


def test_the_index_names_the_worker_and_its_port() -> None:
    config = read("--index", "3")
    assert (config.id, config.port) == ("worker-3", 8103)


def test_a_flag_wins_over_the_environment() -> None:
    assert read("--slots", "5", TTS_WORKER_SLOTS="7").slots == 5
    assert read(TTS_WORKER_SLOTS="7").slots == 7


def test_an_empty_variable_counts_as_absent() -> None:
    assert read(TTS_WORKER_PORT="", TTS_GATEWAYS="") == read()


@pytest.mark.parametrize(("model", "slots"), [("embedded", 2), ("tone", 4)])
def test_slots_and_batch_follow_the_model(model: str, slots: int) -> None:
    config = read("--model", model)
    assert (config.slots, config.batch) == (slots, slots)


def test_a_line_of_waiting_inside_the_worker_can_be_asked_for() -> None:
    config = read("--model", "tone", "--slots", "1000", "--batch", "1")
    assert (config.slots, config.batch) == (1000, 1)


def test_slots_may_be_what_there_is_memory_for() -> None:
    config = read("--model", "chatterbox", "--device", "cuda:0", "--slots", "auto")
    assert (config.slots, config.batch) == (None, None)


def test_several_gateways_are_separated_by_commas() -> None:
    gateways = read("--gateways", "10.0.0.1:8081, gw-2.example:9000,[::1]:8081").gateways
    assert [str(gateway) for gateway in gateways] == ["10.0.0.1:8081", "gw-2.example:9000", "[::1]:8081"]
    assert read("--gateways", "none").gateways == ()


def test_every_option_of_the_tone_model_has_its_flag() -> None:
    flags = {
        "--tone-realtime-factor": "0.5",
        "--tone-overhead-seconds": "0.1",
        "--tone-load-seconds": "2",
        "--tone-prepare-seconds": "3",
        "--tone-fail-after-chunks": "1",
        "--tone-exit-after-chunks": "2",
        "--tone-lose-device-after-chunks": "5",
        "--tone-stall-after-chunks": "3",
        "--tone-hang-after-chunks": "4",
        "--tone-fail-first-segments": "5",
    }
    arguments = [word for pair in flags.items() for word in pair]
    tone = read("--model", "tone", "--tone-reject", *arguments).tone
    assert tone == ToneOptions(0.5, 0.1, 2, 3, 1, 2, 5, 3, 4, 5, True)


def test_the_token_comes_from_the_environment_or_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("from-file\n")
    assert read(TTS_WORKER_TOKEN="from-environment").token == "from-environment"
    assert read(TTS_WORKER_TOKEN_FILE=str(file)).token == "from-file"
    assert read("--token-file", str(file), "--host", "0.0.0.0").host == "0.0.0.0"
    # As on the gateway: whoever names a file means it.
    assert read(TTS_WORKER_TOKEN_FILE=str(file), TTS_WORKER_TOKEN="from-environment").token == "from-file"


def test_the_token_is_not_in_the_representation() -> None:
    assert "hunter2" not in repr(read(TTS_WORKER_TOKEN="hunter2"))


def test_the_configuration_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        read().slots = 3  # type: ignore[misc]


def test_a_worker_on_two_devices_has_both_in_its_name() -> None:
    one = read("--model", "chatterbox", "--device", "cuda:1")
    assert (one.device, one.split, one.devices) == ("cuda:1", (), ("cuda:1",))
    # The unit sets a device; the operator's choice of two goes before it.
    two = read("--model", "chatterbox", "--split", "cuda:0, cuda:1", TTS_WORKER_DEVICE="cuda:0")
    assert (two.device, two.split, two.devices) == ("cuda:0,cuda:1", ("cuda:0", "cuda:1"), ("cuda:0", "cuda:1"))


IMPOSSIBLE = [
    (["--model", "parrot"], "--model is 'parrot'; it must be one of embedded, chatterbox"),
    (["--slots", "0"], "--slots is '0'; it must be a whole number from 1 to 4096"),
    (
        ["--checkpoint", "/srv/weights"],
        "--cfm-steps and --reference-seconds are for the Chatterbox models, but --model",
    ),
    (["--split", "cuda:0,cuda:1"], "--split is for the Chatterbox models, which have two stages, but --model"),
    (["--model", "chatterbox", "--split", "cuda:0"], "--split is 'cuda:0'; it must be two devices, like cuda:0,cuda:1"),
    (["--model", "chatterbox", "--cfm-steps", "0"], "--cfm-steps is '0'; it must be a whole number from 1 to 100"),
    (["--model", "chatterbox", "--reference-seconds", "11"], "--reference-seconds is '11'"),
    (["--model", "chatterbox", "--sound-batch", "0"], "--sound-batch is '0'"),
    (
        ["--model", "chatterbox", "--precision", "int4"],
        "--precision is 'int4'; it must be one of auto, fp32, tf32, bf16",
    ),
    (["--model", "chatterbox", "--stream", "all"], "--stream is 'all'; it must be one of segments, chunk"),
    (["--slots", "two"], "--slots is 'two'"),
    (["--slots", "2", "--batch", "3"], "--batch 3 exceeds --slots 2"),
    (["--slots", "auto"], "--slots auto counts the free memory of a GPU"),
    (["--model", "chatterbox", "--slots", "auto"], "--device is cpu: give a number"),
    (
        ["--model", "chatterbox", "--device", "cuda:0", "--slots", "auto", "--batch", "2"],
        "--batch cannot be given with --slots auto",
    ),
    (["--port", "65536"], "--port is '65536'"),
    (["--port", "-1"], "--port is '-1'"),
    (["--index", "1.5"], "--index is '1.5'"),
    (["--id", "Worker 1"], "--id 'Worker 1' must be"),
    (["--id", ""], "--id is empty"),
    (["--host", "0.0.0.0"], "--host 0.0.0.0 is reachable from other hosts, so the fleet needs a token"),
    (["--host", "gpu-box.example"], "needs a token"),
    (["--gateways", "http://gw:8081"], "--gateways has 'http://gw:8081'; each entry must be host:port"),
    (["--gateways", "gw"], "--gateways has 'gw'"),
    (["--gateways", "gw:0"], "a port lies between 1 and 65535"),
    (["--gateways", "gw:8081,"], "--gateways has ''"),
    (["--drain-timeout", "-1"], "--drain-timeout is '-1'"),
    (["--drain-timeout", "nan"], "--drain-timeout is 'nan'"),
    (["--drain-timeout", "soon"], "--drain-timeout is 'soon'"),
    (["--log-level", "chatty"], "--log-level is 'chatty'"),
    (["--log-format", "xml"], "--log-format is 'xml'"),
    (["--token-file", "/does/not/exist"], "--token-file /does/not/exist cannot be read"),
    (["--tone-reject"], "--model is embedded"),
]


@pytest.mark.parametrize(("arguments", "sentence"), IMPOSSIBLE)
def test_an_impossible_value_is_refused_with_a_sentence_that_names_the_option(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        read(*arguments)
    assert sentence in str(caught.value)


def test_an_empty_token_file_and_a_token_that_no_header_can_hold_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("\n")
    with pytest.raises(ConfigError, match="holds no token"):
        read("--token-file", str(file))
    for token in ("two words", "schlüssel", "line\nbreak"):
        with pytest.raises(ConfigError, match="printable ASCII"):
            read(TTS_WORKER_TOKEN=token)


def test_the_command_says_the_sentence_and_returns_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--slots", "0"]) == 2
    assert capsys.readouterr().err.startswith("tts-worker: --slots is '0'")


def test_an_abbreviated_option_is_not_guessed() -> None:
    with pytest.raises(SystemExit):
        read("--mod", "tone")
