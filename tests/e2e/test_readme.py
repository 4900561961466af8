"""README.md says what is true: its commands run as printed, and every option, route and file it names is there."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from deploy.up import read_options
from gateway import keys_command
from gateway.config import Config as GatewayConfig
from gateway.config import ConfigError, add_options, read_config
from gateway.encoder import AudioFormat
from gateway.queue import Priority
from tests.clips import in_format, tone
from tests.e2e.cluster import BIN, Cluster
from tests.e2e.ears import record
from worker.config import Config as WorkerConfig

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PUBLIC, INTERNAL = "127.0.0.1:8080", "127.0.0.1:8081"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """What `make up` starts, on other ports."""
    folder = tmp_path_factory.mktemp("readme")
    async with Cluster(folder) as made:
        await made.start_gateway("--data-directory", str(folder / "data"))
        await made.start_workers(2, model="embedded")
        yield made


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def section(heading: str) -> str:
    return README.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]


def table_rows(text: str) -> list[list[str]]:
    """Return the cells of a section's tables, without their heads."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    rules = [number for number, row in enumerate(rows) if set("".join(row)) <= set("- ")]
    return [row for number, row in enumerate(rows) if number not in rules and number + 1 not in rules]


def run(command: str | list[str], directory: Path) -> str:
    """Run a command of the README in an empty directory; the environment's proxies are not for loopback."""
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    ran = subprocess.run(
        command, shell=isinstance(command, str), cwd=directory, env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr


async def help_of(command: str, directory: Path) -> str:
    return await asyncio.to_thread(run, [str(BIN / command), "--help"], directory)


def curls(to: str) -> list[str]:
    """Return the commands that call the gateway at this path."""
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("curl")]
    assert all(PUBLIC in line for line in lines)
    return [line for line in lines if f"http://{PUBLIC}{to} " in line]


async def test_the_curl_as_printed_makes_the_file_it_names(fleet: Cluster, tmp_path: Path):
    commands = curls("/v1/tts")
    assert commands
    for command in commands:
        await asyncio.to_thread(run, command.replace(f"http://{PUBLIC}", fleet.url), tmp_path)
        made = tmp_path / re.search(r"-o (\S+)", command)[1]
        recording = record(made.read_bytes())
        assert recording.codec == "pcm_s16le"
        assert recording.seconds > 1
        assert recording.loudness_dbfs > -35


async def test_the_curl_as_printed_uploads_a_voice_of_the_id_it_says(fleet: Cluster, tmp_path: Path):
    [command] = curls("/v1/voices")
    (tmp_path / "anna.mp3").write_bytes(in_format(tone(10.0), AudioFormat.MP3))
    answer = json.loads(await asyncio.to_thread(run, command.replace(f"http://{PUBLIC}", fleet.url), tmp_path))
    assert f"becomes the voice `{answer['id']}`" in README
    assert answer["seconds"] == pytest.approx(10, abs=0.1)
    for method, path in (("GET", "/v1/voices/anna"), ("GET", "/v1/voices/anna/audio"), ("DELETE", "/v1/voices/anna")):
        assert path in README
        async with fleet.session.request(method, fleet.url + path) as response:
            assert response.status == 200, path


async def test_the_python_as_printed_makes_the_file_it_names(fleet: Cluster, tmp_path: Path):
    programs = blocks("python")
    assert programs
    for program in programs:
        assert PUBLIC in program
        (tmp_path / "program.py").write_text(program.replace(f"http://{PUBLIC}", fleet.url))
        await asyncio.to_thread(run, [sys.executable, "-W", "error", "program.py"], tmp_path)
        recording = record((tmp_path / re.search(r'stream_to_file\("(.+?)"\)', program)[1]).read_bytes())
        assert recording.codec.startswith("mp3")
        assert recording.seconds > 1


async def test_every_option_of_the_table_is_in_the_commands_help(tmp_path: Path):
    helps = {name: await help_of(name, tmp_path) for name in ("tts-gateway", "tts-worker")}
    command = ""
    seen = 0
    for first, flag, _, _ in table_rows(section("Options")):
        command = first.strip("`") or command
        if flag:
            assert re.search(rf"^\s*{flag.strip('`')}\b", helps[command], re.MULTILINE), flag
            seen += 1
    assert seen >= 8


# The same value, told by the table's flag, its variable, and not at all.
OTHER_VALUES = {
    "--listen": "127.0.0.1:9001",
    "--internal-listen": "127.0.0.1:9002",
    "--data-directory": "/srv/tts",
    "--keys-file": "/etc/keys.json",
    "--queue-order": "fcfs",
    "--gateways": "127.0.0.1:9003",
    "--index": "3",
    "--port": "9004",
    "--model": "tone",
    "--slots": "7",
}


def configured(command: str, flags: list[str], environment: dict[str, str]) -> GatewayConfig | WorkerConfig:
    if command == "tts-worker":
        return WorkerConfig.from_environment(flags, environment)
    parser = argparse.ArgumentParser()
    add_options(parser)
    return read_config(parser.parse_args(flags), environment)


async def test_every_variable_of_the_table_means_the_flag_beside_it():
    command = ""
    flags = set()
    for first, flag, variable, _ in table_rows(section("Options")):
        command = first.strip("`") or command
        if not flag:
            continue
        flag, variable = flag.strip("`"), variable.strip("`")
        flags.add(flag)
        value = OTHER_VALUES[flag]
        by_flag = configured(command, [flag, value], {})
        assert configured(command, [], {variable: value}) == by_flag, variable
        assert by_flag != configured(command, [], {}), flag
    assert flags == set(OTHER_VALUES)


async def test_every_default_of_the_table_is_the_default():
    gateway, worker = configured("tts-gateway", [], {}), configured("tts-worker", [], {})
    assert isinstance(gateway, GatewayConfig)
    assert isinstance(worker, WorkerConfig)
    real = {
        "--listen": str(gateway.listen),
        "--internal-listen": str(gateway.internal_listen),
        "--queue-order": str(gateway.queue_order),
        "--gateways": ",".join(map(str, worker.gateways)),
        "--index": str(worker.index),
        "--model": worker.model,
    }
    told = {flag.strip("`"): default.strip("`") for _, flag, _, default in table_rows(section("Options")) if flag}
    assert {flag: told[flag] for flag in real} == real
    assert told["--port"] == "8100 + index"
    assert [configured("tts-worker", ["--index", str(index)], {}).port for index in (0, 5)] == [8100, 8105]


async def test_a_token_is_needed_off_loopback_as_the_table_says(tmp_path: Path):
    assert "needed off loopback" in section("Options")
    for command in (["tts-gateway", "--internal-listen", "0.0.0.0:0"], ["tts-worker", "--host", "0.0.0.0"]):
        ran = await asyncio.create_subprocess_exec(
            str(BIN / command[0]),
            *command[1:],
            env={name: value for name, value in os.environ.items() if not name.startswith("TTS_")},
            stderr=asyncio.subprocess.PIPE,
        )
        _, complaint = await ran.communicate()
        assert ran.returncode == 2
        assert b"TTS_WORKER_TOKEN" in complaint


async def test_keys_are_needed_off_loopback_and_made_with_the_command_it_names(tmp_path: Path):
    assert "| `--keys-file` | `TTS_GATEWAY_KEYS_FILE` | none; needed off loopback |" in section("Options")
    with pytest.raises(ConfigError, match="there are no keys"):
        configured("tts-gateway", ["--listen", "0.0.0.0:0"], {})
    file = tmp_path / "keys.json"
    named = re.search(r"`tts-gateway (keys add [^`]+)`", section("Options"))[1]
    assert keys_command.run(named.replace("NAME", "ann").replace("FILE", str(file)).split()[1:]) == 0
    assert configured("tts-gateway", ["--listen", "0.0.0.0:0", "--keys-file", str(file)], {}).keys_file == file


async def test_the_options_of_make_up_are_options():
    arguments = re.findall(r'make up ARGS="([^"]+)"', README)
    assert arguments
    for line in arguments:
        read_options(line.split())


async def test_every_public_route_it_names_is_in_the_openapi_document_and_answers(fleet: Cluster):
    async with fleet.session.get(fleet.url + "/openapi.json") as response:
        paths = (await response.json())["paths"]
    routes = [cell for row in table_rows(section("How it works")) for cell in row[:1]]
    named = [(method, path) for cell in routes for method, path in each_route(cell)]
    assert len(named) >= 7
    for method, path in named:
        assert method.lower() in paths[path], path
        async with fleet.session.request(method, fleet.url + path) as response:
            assert response.status not in (404, 405), path


def each_route(cell: str) -> list[tuple[str, str]]:
    """Return method and path of each route in a cell such as `GET /a`, `/b`; one without a method has the last."""
    found, method = [], ""
    for words in re.findall(r"`([^`]+)`", cell):
        *before, path = words.split()
        method = before[0] if before else method
        found.append((method, path))
    return found


async def test_every_internal_route_it_names_is_on_the_internal_listener(fleet: Cluster):
    rows = table_rows(section("How it works"))
    named = [route for row in rows for route in each_route(row[2])]
    assert len(named) >= 4
    for command in ("drain", "undrain", "load", "unload"):
        assert f"`{command}`" in section("How it works") or f"/{command}`" in section("How it works")
    for method, path in named:
        path = path.replace("{id}", "w0").replace("drain", "undrain")  # the fleet is still needed
        async with fleet.session.request(method, fleet.internal_url + path) as response:
            assert response.status in (200, 202), path


async def test_every_field_and_format_of_a_request_is_one(fleet: Cluster):
    paragraph = next(text for text in README.split("\n\n") if text.startswith("`POST /v1/tts` takes"))
    names = set(re.findall(r"`([a-z_0-9]+)`", paragraph))
    formats = {str(form) for form in AudioFormat}
    priorities = {priority.name.lower() for priority in Priority}
    assert formats | priorities <= names
    async with fleet.session.get(fleet.url + "/openapi.json") as response:
        known = set((await response.json())["components"]["schemas"]["SpeechRequest"]["properties"])
    assert names - formats - priorities <= known
    answer = await fleet.speak("Hello.", seed=9)
    assert "X-TTS-Seed" in paragraph
    assert answer.headers["X-TTS-Seed"] == "9"


async def test_every_file_and_target_it_names_exists(tmp_path: Path):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert {"docs/wire.md", "CHANGELOG.md", "LICENSE"} <= set(links)
    for link in links:
        assert (ROOT / link).is_file(), link
    for directory in re.findall(r"(?<![\w./])([a-z]\w*)/ ", section("Work on it")):
        assert (ROOT / directory).is_dir() or (ROOT / "tests" / directory).is_dir(), directory
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"`make (\w+)", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


async def test_the_models_it_lists_are_those_of_a_worker(fleet: Cluster, tmp_path: Path):
    text = await help_of("tts-worker", tmp_path)
    for model in ("embedded", "tone"):
        assert f"`{model}`" in section("Status")
        assert model in text
    async with fleet.session.get(fleet.url + "/v1/models") as response:
        assert [model["id"] for model in json.loads(await response.read())["data"]] == ["embedded"]


async def test_it_is_short():
    assert len(README.splitlines()) <= 150
