"""The control link against a real WebSocket server that welcomes, refuses, drops and orders."""

import asyncio

from tests.worker.harness import config, eventually, gateway, running, segment
from wire.link import Command, WorkerState
from worker.config import Address, ToneOptions
from worker.models.tone import decode


def at(*ports: int) -> tuple[Address, ...]:
    return tuple(Address("127.0.0.1", port) for port in ports)


async def test_a_worker_says_hello_and_then_its_status_again_and_again() -> None:
    async with gateway() as peer, running(config(id="worker-5", gateways=at(peer.port))) as (worker, _):
        await eventually(lambda: len(peer.statuses) >= 3)
        (hello,) = peer.hellos
        assert (hello.worker, hello.port, hello.slots, hello.device) == ("worker-5", worker.port, 4, "cpu")
        assert [model.id for model in hello.models] == ["tone"]
        assert hello.epoch == worker.report()["epoch"]
        status = peer.statuses[-1]
        assert (status.state, status.in_flight, status.slots) == (WorkerState.READY, 0, 4)
        assert status.voices == ("alto", "tenor", "bass")


async def test_a_change_of_state_is_reported_at_once() -> None:
    async with gateway(interval_seconds=60) as peer, running(config(gateways=at(peer.port))) as (_, client):
        await eventually(lambda: peer.states[-1:] == ["ready"])
        await peer.order(Command.DRAIN)
        await eventually(lambda: peer.states[-1] == "draining")
        assert (await client.speak(segment())).status == 503
        await peer.order(Command.UNDRAIN)
        await eventually(lambda: peer.states[-1] == "ready")
        assert (await client.speak(segment())).status == 200


async def test_in_flight_and_steps_are_reported() -> None:
    async with (
        gateway() as peer,
        running(config(ToneOptions(stall_after_chunks=1), gateways=at(peer.port))) as (_, client),
        client.speaking(segment()) as frames,
    ):
        await anext(frames)
        await eventually(lambda: peer.statuses and peer.statuses[-1].in_flight == 1 and peer.statuses[-1].steps > 0)


async def test_unload_and_load_are_obeyed_and_an_order_at_the_wrong_time_is_answered() -> None:
    async with gateway() as peer, running(config(gateways=at(peer.port))) as (_, client):
        await eventually(lambda: peer.states[-1:] == ["ready"])
        await peer.order(Command.UNLOAD)
        await eventually(lambda: peer.states[-1] == "unloaded")
        assert peer.statuses[-1].voices == ()
        await client.wait_metric('tts_worker_model_loaded{model="tone"}', 0)
        await peer.order(Command.DRAIN)
        await eventually(lambda: peer.statuses[-1].detail == "a worker that is unloaded cannot drain")
        await peer.order(Command.LOAD)
        await eventually(lambda: peer.states[-1] == "ready")
        assert decode((await client.speak(segment("back again"))).pcm) == "back again"


async def test_a_model_that_nobody_wants_is_unloaded_and_never_under_a_segment() -> None:
    text = "x" * 40
    async with gateway(interval_seconds=0.01) as peer:
        settings = config(ToneOptions(realtime_factor=0.2), gateways=at(peer.port), unload_after_seconds=0.1)
        async with running(settings) as (_, client):
            await eventually(lambda: peer.states[-1:] == ["unloaded"])
            assert peer.hellos[0].loads_on_demand
            assert peer.statuses[-1].detail == "unused for 0.1 s"
            await client.wait_metric('tts_worker_model_loaded{model="tone"}', 0)
            answer = await client.speak(segment(text))
            while answer.status == 503:  # unloaded, or unloaded again before the segment came
                for _ in range(2):  # two gateways in which something waits for it
                    await peer.order(Command.LOAD)
                await eventually(lambda: peer.states[-1] == "ready" or peer.states.count("unloaded") > 1)
                answer = await client.speak(segment(text))
            # Half a second of work, five times its patience.
            assert decode(answer.pcm) == text
            await eventually(lambda: peer.states[-1] == "unloaded")
    assert max(status.in_flight for status in peer.statuses) == 1
    assert not any(status.in_flight for status in peer.statuses if status.state == "unloaded")


async def test_a_link_that_drops_is_dialled_again_and_disturbs_no_segment() -> None:
    async with (
        gateway() as peer,
        running(config(ToneOptions(realtime_factor=0.02), gateways=at(peer.port))) as (_, client),
    ):
        await eventually(lambda: peer.statuses)
        text = "this goes on whatever happens to the link " * 5
        speaking = asyncio.create_task(client.speak(segment(text)))
        await eventually(lambda: peer.statuses[-1].in_flight == 1)
        await peer.sockets[-1].close()
        await eventually(lambda: len(peer.hellos) == 2)
        assert len({hello.epoch for hello in peer.hellos}) == 1
        assert decode((await speaking).pcm) == text


async def test_a_gateway_that_comes_back_is_found_again() -> None:
    async with gateway() as peer, running(config(gateways=at(peer.port))) as (worker, _):
        await eventually(lambda: peer.statuses)
        await peer.close()
        await eventually(lambda: not worker.report()["links"][0]["up"])
        await eventually(lambda: worker.report()["links"][0]["trouble"])
        peer.heard.clear()
        await peer.open()
        await eventually(lambda: peer.statuses)
        assert worker.report()["links"][0] == {"gateway": f"127.0.0.1:{peer.port}", "up": True, "trouble": ""}


async def test_a_refusal_is_remembered_and_tried_again() -> None:
    async with (
        gateway(refusing="another worker has that name") as peer,
        running(config(gateways=at(peer.port))) as (worker, client),
    ):
        await eventually(lambda: len(peer.hellos) >= 2)
        await eventually(lambda: "another worker has that name" in worker.report()["links"][0]["trouble"])
        assert peer.statuses == []
        assert (await client.speak(segment())).status == 200
        peer.refusing = ""
        await eventually(lambda: peer.statuses)


async def test_the_link_carries_the_fleets_token() -> None:
    async with (
        gateway(token="s3cret") as peer,
        running(config(token="s3cret", gateways=at(peer.port))),
        running(config(token="wrong", gateways=at(peer.port))) as (stranger, _),
    ):
        await eventually(lambda: peer.statuses)
        await eventually(lambda: "401" in stranger.report()["links"][0]["trouble"])
        assert len(peer.hellos) == 1


async def test_every_gateway_has_its_own_link_and_one_that_is_away_matters_to_none() -> None:
    async with gateway() as one, gateway() as other, gateway() as away:
        await away.close()
        async with running(config(gateways=at(one.port, away.port, other.port))) as (worker, _):
            await eventually(lambda: one.statuses and other.statuses)
            assert [link["up"] for link in worker.report()["links"]] == [True, False, True]
            await one.order(Command.DRAIN)
            await eventually(lambda: other.states[-1] == "draining")


async def test_rubbish_from_a_gateway_closes_the_link_and_no_more() -> None:
    async with gateway() as peer, running(config(gateways=at(peer.port))) as (_, client):
        await eventually(lambda: peer.statuses)
        for rubbish in ("not json", '{"type": "order", "command": "explode"}'):
            count = len(peer.hellos)
            await peer.sockets[-1].send_str(rubbish)
            await eventually(lambda count=count: len(peer.hellos) == count + 1)
        await eventually(lambda: peer.sockets)
        await peer.sockets[-1].send_str('{"type": "from-the-future"}')
        assert (await client.speak(segment())).status == 200


async def test_the_last_word_of_a_worker_that_stops_is_stopped_and_it_does_not_come_back() -> None:
    async with gateway() as peer:
        async with running(config(gateways=at(peer.port))) as (worker, _):
            await eventually(lambda: peer.statuses)
            worker.request_stop()
            await eventually(lambda: peer.states[-1] == "stopped")
        assert peer.states[-3:] == ["ready", "draining", "stopped"]
        assert len(peer.hellos) == 1
