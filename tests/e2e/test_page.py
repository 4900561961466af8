"""The live page in a real browser: what is typed is heard, what happens is seen, and everybody can use it."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import re
import shlex
import sys
import wave
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser

from tests.clips import clip
from tests.e2e.browser import Visit, chromium, visit
from tests.e2e.cluster import Cluster, until
from tests.e2e.gpu_faults import FAULTS, LOST, mend, others, start_on_gpu
from tests.fakes.gpus import FakeGpus
from worker.models.tone import SAMPLE_RATE, SAMPLES_A_CHARACTER, decode, heard_pitch_hz

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

TEXT = (
    "The first words are heard while the rest is still being made. Each sentence goes to a worker that is free. "
    "They are spoken at the same time, and heard in order."
)
LONG = f"{TEXT} {TEXT} {TEXT}"
# Seconds of sound that have come and are not heard yet, as the page shows them.
AHEAD = "(([at, all]) => all - at)(document.getElementById('clock').textContent.split('/').map(parseFloat))"
# Two and a half times as fast as people speak: time enough to pull a plug while the sound lasts.
PACED = ("--tone-realtime-factor", "0.4")
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """Two workers that every test leaves as it found them."""
    async with Cluster(tmp_path_factory.mktemp("page")) as made:
        await made.start_gateway()
        await made.start_workers(2, "--slots", "2", *PACED)
        yield made


def bare(text: str) -> str:
    return "".join(text.split())


async def heard(visiting: Visit) -> tuple[str, float]:
    """Return the text that went to the sound card, and for how many seconds it fell silent in between."""
    samples = await visiting.scheduled()
    text = decode(samples.tobytes())
    # Each character lasts for so many samples; silence between two is skipped when they are read.
    return text, (len(samples) - len(text) * SAMPLES_A_CHARACTER) / SAMPLE_RATE


async def spoken(visiting: Visit) -> str:
    """Wait until the page says that all of it has come; return what it says."""
    await visiting.page.locator("#spoken-words", has_text="real time").wait_for()
    return await visiting.text("#spoken-words")


# ── Speaking ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("format_", ["wav", "pcm"])
async def test_what_is_typed_is_heard_as_it_comes_to_the_last_sample(
    fleet: Cluster, browser: Browser, format_: str, record_property: pytest.RecordProperty
):
    async with visit(browser, fleet.url) as visiting:
        await visiting.type(LONG, format=format_)
        before = await visiting.page.evaluate("performance.now()")
        await visiting.page.click("#speak")
        await visiting.wait_started()
        first_sound = (await visiting.sound())["started"] - before
        still_coming = await visiting.page.locator("#stop").is_visible()
        said = await spoken(visiting)
        text, _ = await heard(visiting)
        sound = await visiting.sound()
    record_property("first_sound_ms", first_sound)
    sys.stdout.write(f"{format_}: first sound {first_sound:.0f} ms after the click. {said} {sound}\n")
    assert still_coming, "it was heard only when all of it was there"
    assert bare(text) == bare(LONG)
    assert said.startswith("First audio after ")
    assert 0.1 < sound["peak"] < 0.6
    assert 280 <= sound["hertz"] <= 7_930  # to the width of a bin
    assert visiting.troubles == []


@pytest.mark.parametrize("format_", ["mp3", "aac", "opus", "flac"])
async def test_every_format_is_heard(fleet: Cluster, browser: Browser, format_: str):
    async with visit(browser, fleet.url) as visiting:
        await visiting.type("Heard in every format.", format=format_)
        await visiting.page.click("#speak")
        await visiting.wait_started()
        await spoken(visiting)
        assert 0.1 < (await visiting.sound())["peak"] < 0.8
        download = visiting.page.locator("#download")
        assert format_ in await download.inner_text()
        assert visiting.troubles == []


async def test_the_download_is_a_whole_file_and_the_curl_gives_the_same_bytes(
    fleet: Cluster, browser: Browser, tmp_path: Path
):
    text = "It's a text with 'quotes', \"more quotes\", a $variable and a \\ in it."
    async with visit(browser, fleet.url) as visiting:
        await visiting.type(text, format="wav", voice="bass")
        await visiting.page.click("#speak")
        await spoken(visiting)
        async with visiting.page.expect_download() as coming:
            await visiting.page.click("#download")
        downloaded = await asyncio.to_thread(Path(await (await coming.value).path()).read_bytes)
        curl = (await visiting.text("#curl")).replace("-o speech.wav", f"-o {shlex.quote(str(tmp_path / 'c.wav'))}")
    with wave.open(io.BytesIO(downloaded)) as file:
        pcm = file.readframes(file.getnframes())
        assert file.getnframes() == (len(downloaded) - 44) // 2
    assert bare(decode(pcm)) == bare(text)
    process = await asyncio.create_subprocess_shell(curl)
    assert await process.wait() == 0
    assert (tmp_path / "c.wav").read_bytes()[44:] == pcm


async def test_the_text_is_shown_as_it_was_cut_and_each_part_names_who_spoke_it(fleet: Cluster, browser: Browser):
    async with visit(browser, fleet.url) as visiting:
        await visiting.type(TEXT, format="wav")
        await visiting.page.click("#speak")
        await spoken(visiting)
        parts = visiting.page.locator("#segments .segment")
        texts = [text.lstrip("0123456789").strip() for text in await parts.all_inner_texts()]
        assert len(texts) > 1
        assert bare("".join(texts)) == bare(TEXT)
        assert all(text.endswith((".", ",")) for text in texts), f"cut in a word: {texts}"
        workers = [await part.get_attribute("title") for part in await parts.all()]
        assert set(workers) == {"w0", "w1"}


async def test_what_the_gateway_says_no_to_is_shown_in_its_own_words(fleet: Cluster, browser: Browser):
    async with visit(browser, fleet.url) as visiting:
        await visiting.type("***")
        await visiting.page.click("#speak")
        said = visiting.page.locator("#spoken-words")
        answer = await fleet.speak("***")
        assert answer.status == 422
        await said.filter(has_text=answer.error["message"]).wait_for()


async def test_stop_hangs_up_and_frees_the_worker(fleet: Cluster, browser: Browser):
    async with visit(browser, fleet.url) as visiting:
        await visiting.type(TEXT * 20)
        await visiting.page.click("#speak")
        await visiting.wait_started()
        await visiting.page.click("#stop")
        await fleet.wait_idle()
        assert "Stopped" in await visiting.text("#spoken-words")
        assert not await visiting.page.locator("#stop").is_visible()


async def test_a_voice_is_added_used_and_deleted(tmp_path: Path, browser: Browser):
    async with Cluster(tmp_path) as fleet:
        await fleet.start_gateway("--data-directory", str(tmp_path / "data"))
        await fleet.start_workers(1)
        async with visit(browser, fleet.url) as visiting:
            page = visiting.page
            await page.fill("#voice-name", "Anna Müller")
            sample = {"name": "a.wav", "mimeType": "audio/wav", "buffer": clip(440)}
            await page.set_input_files("#voice-sample", files=[sample])
            await page.click("#voice-form button")
            await page.locator("#voice-words", has_text="Anna Müller can be chosen now.").wait_for()
            await visiting.type("Hello from me.")
            await page.get_by_role("button", name="Listen to Anna Müller").click()
            await spoken(visiting)
            assert (await heard(visiting))[0] == "Hello from me."
            pcm = (await visiting.scheduled()).tobytes()
            assert heard_pitch_hz(pcm) == pytest.approx(440, abs=8)
            assert '"voice":"anna-muller"' in await visiting.text("#curl")
            await page.get_by_role("button", name="Delete Anna Müller").click()
            await page.locator("#voice-words", has_text="Anna Müller is deleted.").wait_for()
            assert await page.locator("#voice option", has_text="Anna").count() == 0
            assert visiting.troubles == []
        async with fleet.session.get(f"{fleet.url}/v1/voices/anna-muller") as response:
            assert response.status == 404


async def test_where_no_voice_can_be_added_nothing_offers_it(fleet: Cluster, browser: Browser):
    async with visit(browser, fleet.url) as visiting:
        assert not await visiting.page.locator("#voices").is_visible()


# ── The fleet ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_worker_that_is_killed_under_the_sound_is_not_heard(cluster_of_two: Cluster, browser: Browser):
    fleet = cluster_of_two
    async with visit(browser, fleet.url) as visiting:
        await visiting.type(LONG, format="wav")
        await visiting.page.click("#speak")
        # Enough lies ready that a busy machine is not taken for the death of a worker.
        await visiting.wait_true(f"{AHEAD} > 3")
        _, silent_before = await heard(visiting)
        busy = next(worker["id"] for worker in await fleet.listed() if worker["in_flight"])
        await fleet.workers[busy].kill()
        await visiting.page.locator(".worker", has_text=busy).filter(has_text="gone for").wait_for()
        await spoken(visiting)
        text, silent = await heard(visiting)
        assert bare(text) == bare(LONG)
        assert silent == pytest.approx(silent_before, abs=1e-3), "it fell silent after the worker died"
        assert await fleet.metric("tts_retries_total") >= 1
        await visiting.page.locator("#summary", has_text="1 of 2 workers is ready.").wait_for()
        at = await visiting.page.evaluate("parseFloat(document.getElementById('clock').textContent)")
        await visiting.wait_true(f"parseFloat(document.getElementById('clock').textContent) > {at} + 1")


@pytest_asyncio.fixture(loop_scope="module")
async def cluster_of_two(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with Cluster(tmp_path) as made:
        await made.start_gateway()
        await made.start_workers(2, "--slots", "1", *PACED)
        yield made


async def test_the_line_says_how_many_are_ahead(cluster_of_two: Cluster, browser: Browser):
    fleet = cluster_of_two
    async with visit(browser, fleet.url) as visiting:
        # Shorter ones go first, so these two hold the slots and the next three are ahead of the page's longer text.
        crowd = [asyncio.create_task(fleet.speak("b" * 250)) for _ in range(2)]
        await until(lambda: all_busy(fleet), "both workers to be busy")
        crowd += [asyncio.create_task(fleet.speak("a" * 60)) for _ in range(3)]
        await until(lambda: waiting(fleet, 3), "three to wait")
        await visiting.type("c" * 120)
        await visiting.page.click("#speak")
        await visiting.page.locator("#spoken-words", has_text="3 ahead of you.").wait_for()
        await visiting.page.locator("#line-words", has_text="3 ahead of you.").wait_for()
        assert await visiting.page.locator("#line li").count() == 4
        assert await visiting.page.locator("#line li").nth(3).inner_text() == "you"
        await visiting.page.click("#stop")
        await asyncio.gather(*crowd)
        await visiting.page.locator("#line-words", has_text="Nothing waits.").wait_for()


async def all_busy(fleet: Cluster) -> bool:
    return all(worker["in_flight"] == worker["slots"] for worker in await fleet.listed())


async def waiting(fleet: Cluster, segments: int) -> bool:
    return bool((await fleet.health())["queue"]["segments"] == segments)


async def test_draining_is_told_in_words(fleet: Cluster, browser: Browser):
    async with visit(browser, fleet.url) as visiting:
        card = visiting.page.locator(".worker", has_text="w1")
        async with fleet.session.post(f"{fleet.internal_url}/admin/workers/w1/drain") as response:
            assert response.status == 202
        await card.filter(has_text="drained: gets nothing new").wait_for()
        async with fleet.session.post(f"{fleet.internal_url}/admin/workers/w1/undrain") as response:
            assert response.status == 202
        await card.filter(has_text="ready").wait_for()


async def test_a_worker_put_aside_says_why_and_until_when(cluster_of_two: Cluster, browser: Browser):
    fleet = cluster_of_two
    await fleet.start_worker("--tone-reject", name="sick")
    await fleet.wait_ready(3)
    async with visit(browser, fleet.url) as visiting, asking(fleet, "It will be asked.", "often"):
        await visiting.page.locator(".worker", has_text="put aside: it answered with errors").wait_for()


@contextlib.asynccontextmanager
async def asking(fleet: Cluster, text: str, request_id: str) -> AsyncIterator[None]:
    """Have four others speak all the time, for the length of the block."""

    async def forever() -> None:
        while True:
            async with fleet.session.post(
                f"{fleet.url}/v1/tts", json={"text": text}, headers={"X-Request-Id": request_id}
            ) as response:
                assert response.status == 200
                await response.read()

    tasks = [asyncio.create_task(forever()) for _ in range(4)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(end, asyncio.CancelledError) for end in ends), ends


async def test_the_page_names_the_sick_gpu_for_as_long_as_it_is_sick(tmp_path: Path, browser: Browser):
    gpus = FakeGpus(tmp_path, 2)
    async with Cluster(tmp_path) as fleet:
        await fleet.start_gateway()
        for gpu in range(2):
            await start_on_gpu(fleet, gpus, gpu)
        await fleet.wait_ready(2)
        async with visit(browser, fleet.url) as visiting:
            sick, sound = (visiting.page.locator(".worker", has_text=name) for name in ("w1", "w0"))
            await sick.filter(has_text="NVIDIA GeForce RTX 3090 · 40 °C · 0.5 of 24 GiB · 0 % busy · 30 W").wait_for()
            for fault in (*others(LOST), LOST):  # the figures of a GPU that is lost cannot be had
                gpus.set_gpu(1, **fault.figures)
                await sick.locator(".trouble", has_text=fault.words).wait_for()
                assert await sound.locator(".trouble").count() == 0
            await mend(FAULTS, fleet, gpus, 1)
            await sick.filter(has_text="40 °C").wait_for()
            assert await sick.locator(".trouble").count() == 0


async def test_the_page_comes_back_by_itself_when_the_gateway_does(cluster_of_two: Cluster, browser: Browser):
    fleet = cluster_of_two
    async with visit(browser, fleet.url) as visiting:
        port, internal = (urlsplit(url).port for url in (fleet.url, fleet.internal_url))
        assert fleet.gateway is not None
        assert await fleet.gateway.stop() == 0
        await visiting.page.locator('#link[data-state="waiting"]').wait_for()
        await fleet.start_gateway(public_port=port or 0, internal_port=internal or 0)
        await visiting.page.locator('#link[data-state="live"]').wait_for()
        await visiting.page.locator("#summary", has_text="All 2 workers are ready.").wait_for()


# ── For everybody ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("device", [{"viewport": {"width": 1440, "height": 900}}, PHONE], ids=["desk", "phone"])
async def test_axe_finds_nothing_serious(fleet: Cluster, browser: Browser, scheme: str, device: dict[str, object]):
    async with visit(browser, fleet.url, color_scheme=scheme, bypass_csp=True, **device) as visiting:
        await visiting.page.click("#more summary")
        await visiting.type(TEXT)
        await visiting.page.click("#speak")
        await spoken(visiting)
        found = (await Axe().run(visiting.page)).response["violations"]
        serious = [
            f"{fault['id']}: {fault['help']}: {[node['html'] for node in fault['nodes']]}"
            for fault in found
            if fault["impact"] in ("serious", "critical")
        ]
        assert serious == []
        wide = await visiting.page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert wide <= 0, "it must be scrolled sideways"


async def test_it_is_used_without_a_mouse(fleet: Cluster, browser: Browser):
    async with visit(browser, fleet.url, reduced_motion="reduce") as visiting:
        keys = visiting.page.keyboard
        await keys.press("Tab")
        assert await focused(visiting) == "Skip to the text to speak"
        await keys.press("Enter")
        await keys.press("Control+A")
        await keys.type("Nobody touched a mouse.")
        await keys.press("Control+Enter")
        await spoken(visiting)
        assert bare((await heard(visiting))[0]) == bare("Nobody touched a mouse.")
        await visiting.page.focus("#wave")
        await keys.press("Home")
        await visiting.page.locator('#play[aria-label="Pause"]').wait_for()


async def focused(visiting: Visit) -> str:
    text: str = await visiting.page.evaluate("document.activeElement.innerText")
    return text


async def test_nothing_comes_from_elsewhere(fleet: Cluster, browser: Browser):
    async with visit(browser, fleet.url) as visiting:
        await visiting.type("Hello.", format="mp3")
        await visiting.page.click("#speak")
        await spoken(visiting)
        assert {urlsplit(url).netloc for url in visiting.asked if not url.startswith("blob:")} == {
            urlsplit(fleet.url).netloc
        }
        blocked = await visiting.page.evaluate("fetch('http://127.0.0.1:9/').then(() => 'went', (error) => error.name)")
        assert blocked == "TypeError"
        assert any("Content Security Policy" in trouble for trouble in visiting.troubles)


async def test_what_others_say_is_not_shown(fleet: Cluster, browser: Browser):
    async with visit(browser, fleet.url) as visiting, asking(fleet, "Sesame, open. " * 20, "patient-4711"):
        await visiting.page.locator(".now", has_text=re.compile(r"#\d+, segment \d")).first.wait_for()
        everything = await visiting.page.content()
    assert "Sesame" not in everything
    assert "4711" not in everything


# ── The stream behind it ─────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_stream_has_no_text_no_address_and_no_foreign_id(fleet: Cluster):
    async with fleet.session.get(f"{fleet.url}/v1/live") as stream:
        headers = {"X-Request-Id": "patient-4711"}
        async with fleet.session.post(
            f"{fleet.url}/v1/tts", json={"text": "Sesame, open. " * 20}, headers=headers
        ) as response:
            seen = b""
            while b"#" not in seen or seen.count(b"event: snapshot") < 2:
                seen += await stream.content.readany()
            await response.read()
    assert b"Sesame" not in seen
    assert b"4711" not in seen
    assert b"127.0.0.1" not in seen
    snapshot = json.loads(seen.split(b"data: ")[1].split(b"\n\n")[0])
    assert [worker["id"] for worker in snapshot["workers"]] == ["w0", "w1"]


async def test_a_gateway_does_not_wait_for_pages_when_it_stops(cluster_of_two: Cluster):
    fleet = cluster_of_two
    pages = [await fleet.session.get(f"{fleet.url}/v1/live") for _ in range(3)]
    for page in pages:
        await page.content.readuntil(b"\n\n")
    assert fleet.gateway is not None
    assert await fleet.gateway.stop() == 0
    assert "unfinished" not in fleet.gateway.log_text()
    for page in pages:  # each was ended in order, not cut off
        await page.read()
