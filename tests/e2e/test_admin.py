"""What an operator sees and does: workers, metrics, drains, wrong tokens, restarts, and orderly ends."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_metrics

from gateway.balancer import Policy
from gateway.queue import QueueOrder
from tests.e2e.cluster import Answer, Cluster, Running, until
from worker.models.tone import decode

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

# One segment of 100 characters: at a tenth of real time it is spoken for two thirds of a second.
SENTENCE = "It is one sentence and one segment, long enough for somebody to pull the plug while it is spoken."
PACED = ("--tone-realtime-factor", "0.1")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """Two workers that every test leaves as it found them."""
    async with Cluster(tmp_path_factory.mktemp("admin")) as made:
        await made.start_gateway()
        await made.start_workers(2)
        yield made


async def get(cluster: Cluster, url: str, **headers: str) -> Answer:
    async with cluster.session.get(url, headers=headers) as response:
        return Answer(response.status, response.headers, await response.read())


async def said(running: Running, pattern: str) -> str:
    """Wait until a line of the log matches; return it."""

    async def found() -> str | None:
        return next((line for line in running.log_text().splitlines() if re.search(pattern, line)), None)

    line: str = await until(found, f"{running.name} to say {pattern!r}")
    return line


def bare(text: str) -> str:
    return "".join(text.split())


async def state_of(cluster: Cluster, worker: str) -> str | None:
    return next((one["state"] for one in await cluster.listed() if one["id"] == worker), None)


# ── Looking ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_every_worker_is_listed_with_all_that_is_known_of_it(fleet: Cluster):
    assert (await fleet.speak(SENTENCE)).status == 200
    await fleet.wait_idle()
    listed = await fleet.listed()
    assert [worker["id"] for worker in listed] == ["w0", "w1"]
    for worker in listed:
        assert worker["state"] == worker["reported_state"] == "ready"
        assert (worker["in_flight"], worker["slots"], worker["model"], worker["device"]) == (0, 4, "tone", "cpu")
        assert (worker["models"], worker["health"], worker["split"]) == (["tone"], "sound", [])
        assert re.fullmatch(r"127\.0\.0\.1:\d+", worker["address"])
        assert worker["warm_voices"] == ["alto", "bass", "tenor"]
        assert 0 <= worker["status_age_seconds"] < 3
        assert worker["seconds_per_character"] > 0
        assert worker["versions"]["chatterbox-gateway"]
        assert worker["consecutive_failures"] == 0
    assert len({worker["epoch"] for worker in listed}) == 2
    assert sum(worker["segments_spoken"] for worker in listed) >= 1

    async def reported() -> bool:  # once a second
        return sum(worker["steps"] for worker in await fleet.listed()) > 0

    await until(reported, "a worker to tell how many steps it made")


@pytest.mark.parametrize("path", ["/metrics", "/admin/workers", "/internal/workers"])
async def test_what_is_internal_is_not_on_the_public_listener(fleet: Cluster, path: str):
    answer = await get(fleet, fleet.url + path)
    assert (answer.status, answer.error["code"]) == (404, "not_found")
    answer = await fleet.post("/admin/workers/w0/drain", {})
    assert (answer.status, answer.error["code"]) == (404, "not_found")
    assert [worker["state"] for worker in await fleet.listed()] == ["ready", "ready"]


@pytest.mark.parametrize("path", ["/v1/tts", "/v1/audio/speech"])
async def test_speech_is_not_on_the_internal_listener(fleet: Cluster, path: str):
    async with fleet.session.post(fleet.internal_url + path, json={"text": "Hello.", "input": "Hello."}) as response:
        assert response.status == 404


# Names that dashboards and alerts rely on.
GATEWAY_METRICS = {
    "tts_requests": "counter",
    "tts_request_duration_seconds": "histogram",
    "tts_time_to_first_audio_seconds": "histogram",
    "tts_queue_wait_seconds": "histogram",
    "tts_queue_depth": "gauge",
    "tts_backlog_seconds": "gauge",
    "tts_audio_seconds": "counter",
    "tts_characters": "counter",
    "tts_real_time_factor": "histogram",
    "tts_segment_duration_seconds": "histogram",
    "tts_segment_duration_predicted_seconds": "summary",
    "tts_segment_prediction_ratio": "histogram",
    "tts_retries": "counter",
    "tts_failovers": "counter",
    "tts_ejections": "counter",
    "tts_cancelled": "counter",
    "tts_rejected": "counter",
    "tts_requests_in_progress": "gauge",
    "tts_worker_up": "gauge",
    "tts_worker_state": "gauge",
    "tts_worker_slots": "gauge",
    "tts_worker_in_flight": "gauge",
    "tts_worker_status_age_seconds": "gauge",
    "tts_event_loop_lag_seconds": "histogram",
}
WORKER_METRICS = {
    "tts_worker_decode_step_seconds": "histogram",
    "tts_worker_batch_size": "histogram",
    "tts_worker_tokens": "counter",
    "tts_worker_stage_seconds": "counter",
    "tts_worker_conditionals_cache_hits": "counter",
    "tts_worker_conditionals_cache_misses": "counter",
    "tts_worker_event_loop_lag_seconds": "histogram",
    "tts_worker_model_loaded": "gauge",
}


def read_metrics(answer: Answer) -> dict[str, Any]:
    families = {family.name: family for family in parse_metrics(answer.body.decode())}
    assert all(family.documentation for family in families.values())
    return families


async def test_the_gateways_metrics_have_the_names_that_dashboards_rely_on(fleet: Cluster):
    assert (await fleet.speak(SENTENCE)).status == 200
    assert (await fleet.speak("")).status == 422
    await fleet.wait_idle()
    answer = await get(fleet, fleet.internal_url + "/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    families = read_metrics(answer)
    assert {name: families[name].type for name in GATEWAY_METRICS if name in families} == GATEWAY_METRICS
    text = answer.body.decode()
    for name in families:
        assert re.search(rf"^# HELP {name}(_total)? \S", text, re.MULTILINE), name
        assert re.search(rf"^# TYPE {name}(_total)? \w", text, re.MULTILINE), name
    states = {
        sample.labels["worker"]: sample.labels["state"]
        for sample in families["tts_worker_state"].samples
        if sample.value == 1
    }
    assert states == {"w0": "ready", "w1": "ready"}
    assert {sample.labels["worker"]: sample.value for sample in families["tts_worker_up"].samples} == {"w0": 1, "w1": 1}
    for name in ("tts_request_duration_seconds", "tts_segment_duration_seconds"):
        bounds = {float(sample.labels["le"]) for sample in families[name].samples if "le" in sample.labels}
        assert 600.0 in bounds
    assert await fleet.metric("tts_rejected_total", reason="empty_text") >= 1
    assert await fleet.metric("tts_requests_total", endpoint="/v1/tts", outcome="ok") >= 1


async def test_a_scraper_that_takes_only_openmetrics_gets_it(fleet: Cluster):
    answer = await get(fleet, fleet.internal_url + "/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
    assert GATEWAY_METRICS.keys() <= {family.name for family in parse_openmetrics(answer.body.decode())}


async def test_a_workers_metrics_have_the_names_that_dashboards_rely_on(fleet: Cluster):
    assert (await fleet.speak(SENTENCE)).status == 200
    for worker in await fleet.listed():
        families = read_metrics(await get(fleet, f"http://{worker['address']}/metrics"))
        assert {name: families[name].type for name in WORKER_METRICS if name in families} == WORKER_METRICS


async def test_health_is_the_same_on_both_listeners(fleet: Cluster):
    seen = []
    for url in (fleet.url, fleet.internal_url):
        assert (await get(fleet, url + "/livez")).status == 200
        assert (await get(fleet, url + "/readyz")).json() == {"status": "ok", "workers_ready": 2}
        health = (await get(fleet, url + "/health")).json()
        assert health["queue"] == {"segments": 0, "characters": 0, "seconds": 0.0}
        assert health.pop("uptime_seconds") > 0
        assert health["version"]
        seen.append(health)
    assert seen[0] == seen[1]
    assert [worker["state"] for worker in seen[0]["workers"]] == ["ready", "ready"]


async def test_readyz_is_503_until_the_first_worker_is_ready_and_when_the_last_one_is_gone(tmp_path: Path):
    async with Cluster(tmp_path) as cluster:
        await cluster.start_gateway()

        async def statuses() -> tuple[int, ...]:
            urls = [url + path for url in (cluster.url, cluster.internal_url) for path in ("/livez", "/readyz")]
            return tuple([(await get(cluster, url)).status for url in urls])

        assert await statuses() == (200, 503, 200, 503)
        assert (await cluster.health())["status"] == "no worker is ready"
        assert (await cluster.health())["queue"]["seconds"] is None
        [worker] = await cluster.start_workers(1)
        assert await statuses() == (200, 200, 200, 200)
        await worker.kill()
        await cluster.wait_ready(0)
        assert await statuses() == (200, 503, 200, 503)


# ── Commands ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def command(cluster: Cluster, *words: str) -> tuple[int, str]:
    """Run `tts-gateway …` against the cluster; return its exit code and what it printed."""
    name, *rest = words
    ran = await cluster.start(f"cli-{name}", "tts-gateway", name, "--internal", cluster.internal_url[7:], *rest)
    async with asyncio.timeout(60):
        return await ran.process.wait(), ran.log_text()


async def test_workers_are_listed_on_the_command_line(fleet: Cluster):
    code, text = await command(fleet, "workers")
    assert code == 0
    for worker in await fleet.listed():
        [line] = [line for line in text.splitlines() if re.match(rf"\s*{worker['id']}\b", line)]
        assert {"ready", "tone", "cpu", worker["address"]} <= set(line.split())
    code, text = await command(fleet, "workers", "--json")
    assert code == 0
    assert [worker["id"] for worker in json.loads(text)] == ["w0", "w1"]


async def test_a_drained_worker_gets_nothing_until_it_is_undrained(fleet: Cluster):
    async def spoken() -> dict[str, int]:
        return {worker["id"]: worker["segments_spoken"] for worker in await fleet.listed()}

    async def speak_some() -> None:
        answers = await asyncio.gather(*(fleet.speak(f"Number {n}.", format="pcm") for n in range(20)))
        assert [decode(answer.body) for answer in answers] == [f"Number {n}." for n in range(20)]

    code, text = await command(fleet, "drain", "w0")
    assert (code, text.strip()) == (0, "w0: drained; nothing runs on it")
    assert await state_of(fleet, "w0") == "draining"
    before = await spoken()
    await speak_some()
    after = await spoken()
    assert after["w0"] == before["w0"]
    assert after["w1"] >= before["w1"] + 20
    code, text = await command(fleet, "undrain", "w0")
    assert (code, text.strip()) == (0, "w0: told to undrain")
    await fleet.wait_ready(2)
    await speak_some()
    assert (await spoken())["w0"] > before["w0"]


async def test_drain_waits_for_what_runs(tmp_path: Path):
    async with Cluster(tmp_path) as cluster:
        await cluster.start_gateway()
        await cluster.start_workers(1, "--tone-realtime-factor", "0.2")
        async with cluster.streaming(SENTENCE, format="pcm") as response:
            heard = bytearray(await response.content.readexactly(3200))
            draining = asyncio.create_task(command(cluster, "drain", "w0"))

            async def told() -> bool:
                return await state_of(cluster, "w0") == "draining"

            await until(told, "the worker to drain")
            heard += await response.content.read()
        assert decode(bytes(heard)) == SENTENCE
        assert await draining == (0, "w0: drained; nothing runs on it\n")
        assert await cluster.metric("tts_retries_total") == 0


async def test_a_model_is_unloaded_and_loaded_on_the_command_line(fleet: Cluster):
    assert (await command(fleet, "unload", "w1"))[0] == 0

    async def unloaded() -> bool:
        return await state_of(fleet, "w1") == "unloaded"

    await until(unloaded, "the model to be unloaded")
    assert (await fleet.speak("Hello.")).status == 200
    assert (await command(fleet, "load", "w1"))[0] == 0

    async def loaded() -> bool:
        # On a busy machine it may have been put aside before, as slow; then a segment is what brings it back.
        assert (await fleet.speak("Hello.")).status == 200
        return await state_of(fleet, "w1") == "ready"

    await until(loaded, "the worker to be ready again")


@pytest.mark.parametrize("name", ["drain", "undrain", "load", "unload"])
async def test_an_unknown_worker_is_told_with_those_there_are(fleet: Cluster, name: str):
    code, text = await command(fleet, name, "w7")
    assert code == 1
    assert " ".join(text.split()) == "No worker 'w7' is linked. Linked now: w0, w1."


async def test_an_order_that_does_not_exist_is_told_with_those_that_do(fleet: Cluster):
    async with fleet.session.post(fleet.internal_url + "/admin/workers/w0/explode") as response:
        assert response.status == 404
        message = (await response.json())["error"]["message"]
    assert "drain, undrain, load, unload" in message


async def test_a_gateway_that_is_away_is_a_sentence_and_not_a_traceback(tmp_path: Path):
    async with Cluster(tmp_path) as cluster:
        gateway = await cluster.start_gateway()
        await gateway.kill()
        code, text = await command(cluster, "workers")
    assert code == 1
    assert text.startswith("No gateway answers on 127.0.0.1:")
    assert "Traceback" not in text


@pytest.mark.parametrize(("policy", "order"), [*zip(Policy, [*QueueOrder, QueueOrder.FCFS], strict=True)])
async def test_every_policy_and_order_serves_everybody(tmp_path: Path, policy: Policy, order: QueueOrder):
    async with Cluster(tmp_path) as cluster:
        await cluster.start_gateway("--policy", policy, "--queue-order", order)
        await cluster.start_workers(2, "--slots", "1", "--tone-realtime-factor", "0.001")
        texts = [f"Number {n}. " * (1 + n % 20) for n in range(40)]
        answers = await asyncio.gather(*(cluster.speak(text, format="pcm") for text in texts))
        assert [bare(decode(answer.body)) for answer in answers] == [bare(text) for text in texts]
        assert min(worker["segments_spoken"] for worker in await cluster.listed()) > 0


# ── Links ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_worker_with_another_token_is_refused_with_a_reason_on_both_sides(tmp_path: Path):
    async with Cluster(tmp_path) as cluster:
        gateway = await cluster.start_gateway()
        right, cluster.token = cluster.token, "another"
        stranger = await cluster.start_worker(name="stranger")
        assert "127.0.0.1" in await said(gateway, r"refused.*token")
        assert "token" in await said(stranger, r"link=down")
        assert await cluster.listed() == []
        cluster.token = right
        await cluster.start_worker(name="friend")
        await cluster.wait_ready(1)
        assert [worker["id"] for worker in await cluster.listed()] == ["friend"]
        assert right not in gateway.log_text() + stranger.log_text()
        assert stranger.is_running


async def test_a_second_worker_of_the_same_name_is_refused_with_a_reason_on_both_sides(tmp_path: Path):
    async with Cluster(tmp_path) as cluster:
        gateway = await cluster.start_gateway()
        [first] = await cluster.start_workers(1)
        second = await cluster.start_worker("--id", "w0", name="twin")
        for running in (gateway, second):
            line = await said(running, "is linked already")
            assert "w0" in line
            assert "--id" in line
        [listed] = await cluster.listed()
        assert listed["state"] == "ready"
        assert (await cluster.speak("Hello.")).status == 200
        # Its place becomes free: the one that waits for it takes it.
        await first.stop()

        async def taken_over() -> bool:
            return [worker["epoch"] for worker in await cluster.listed()] not in ([], [listed["epoch"]])

        await until(taken_over, "the second worker to be linked")
        await cluster.wait_ready(1)


async def test_workers_find_a_gateway_that_was_started_again(tmp_path: Path):
    async with Cluster(tmp_path) as cluster:
        gateway = await cluster.start_gateway()
        await cluster.start_workers(2)
        before = {worker["id"]: worker["epoch"] for worker in await cluster.listed()}
        ports = {
            "public_port": int(cluster.url.rpartition(":")[2]),
            "internal_port": int(cluster.internal_url.rpartition(":")[2]),
        }
        for is_orderly in (True, False):
            await (gateway.stop() if is_orderly else gateway.kill())
            gateway = await cluster.start_gateway(**ports)
            await cluster.wait_ready(2)
            assert {worker["id"]: worker["epoch"] for worker in await cluster.listed()} == before
            assert (await cluster.speak("Hello again.")).status == 200


# ── Ends ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_worker_that_is_told_to_stop_finishes_its_segment_first(tmp_path: Path):
    async with Cluster(tmp_path) as cluster:
        gateway = await cluster.start_gateway()
        [worker] = await cluster.start_workers(1, *PACED)
        async with cluster.streaming(SENTENCE, format="pcm") as response:
            heard = bytearray(await response.content.readexactly(3200))
            ending = asyncio.create_task(worker.stop())
            heard += await response.content.read()
        assert decode(bytes(heard)) == SENTENCE
        assert await ending == 0
        assert await cluster.metric("tts_retries_total") == 0
        assert await cluster.listed() == []
        assert "after=draining" in await said(gateway, "after=draining")
        assert "Traceback" not in worker.log_text() + gateway.log_text()


async def test_a_gateway_that_is_told_to_stop_finishes_what_is_heard_and_what_open_connections_bring(tmp_path: Path):
    async with Cluster(tmp_path) as cluster:
        gateway = await cluster.start_gateway()
        [worker] = await cluster.start_workers(1)
        # 25 MB: as long as the listener does not read on, the end of it is not sent.
        text = SENTENCE * 80
        # A connection of its own for each: one that listens, one that was kept alive.
        async with aiohttp.ClientSession() as other, cluster.streaming(text, format="pcm") as response:
            heard = bytearray(await response.content.readexactly(3200))
            async with other.get(cluster.url + "/livez") as alive:
                assert alive.status == 200
            ending = asyncio.create_task(gateway.stop())

            async def closed() -> bool:
                try:
                    async with aiohttp.ClientSession() as new, new.get(cluster.url + "/livez"):
                        return False
                except aiohttp.ClientConnectorError:
                    return True

            await until(closed, "new connections to be refused")
            assert (await get(cluster, cluster.internal_url + "/readyz")).json()["status"] == "stopping"
            assert (await get(cluster, cluster.internal_url + "/livez")).status == 200
            async with other.post(cluster.url + "/v1/tts", json={"text": "One more.", "format": "pcm"}) as late:
                assert (late.status, late.headers["Connection"]) == (200, "close")
                assert decode(await late.read()) == "One more."
            assert not ending.done()
            heard += await response.content.read()
        assert bare(decode(bytes(heard))) == bare(text)
        assert await ending == 0
        assert "Traceback" not in gateway.log_text()
        assert worker.is_running


async def test_a_gateway_that_waits_no_longer_cuts_off_what_is_heard(tmp_path: Path):
    async with Cluster(tmp_path) as cluster:
        gateway = await cluster.start_gateway("--drain-timeout", "0")
        await cluster.start_workers(1, "--tone-realtime-factor", "5")
        async with cluster.streaming(SENTENCE, format="pcm") as response:
            await response.content.readexactly(3200)
            ending = asyncio.create_task(gateway.stop())
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.content.read()
        assert await ending == 0
        assert "1 requests unfinished" in gateway.log_text()


async def test_two_gateways_cannot_have_one_port(fleet: Cluster):
    second = await fleet.start("second", "tts-gateway", "--listen", fleet.url.removeprefix("http://"))
    assert await second.process.wait() == 1
    assert "cannot listen" in second.log_text()
    assert "Traceback" not in second.log_text()
