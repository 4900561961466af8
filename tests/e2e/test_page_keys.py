"""The live page of a gateway with keys: what a stranger sees of it, and where a key goes that is given to it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext

from tests.e2e.browser import PATIENCE_MS, Visit, chromium
from tests.e2e.test_keys import Fleet, add, keys

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

EVERYTHING_STORED = "JSON.stringify([Object.entries(localStorage), document.cookie, location.href])"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    async with Fleet(tmp_path_factory.mktemp("page-keys")) as made:
        made.file = made.directory / "keys.json"
        made.key = {
            "ann": await add(made.file, "ann"),
            "bob": await add(made.file, "bob"),
            "voices": await add(made.file, "voices", "--scope", "voices"),
        }
        await made.start_gateway("--keys-file", str(made.file))
        await made.start_workers(2)
        yield made


@contextlib.asynccontextmanager
async def tab(browser: Browser, fleet: Fleet) -> AsyncIterator[tuple[Visit, BrowserContext]]:
    """Open the page in a browser that knows no key, and wait until it asks for one."""
    context = await browser.new_context()
    try:
        context.set_default_timeout(PATIENCE_MS)
        visiting = Visit(await context.new_page(), fleet.url)
        await visiting.page.goto(fleet.url)
        await visiting.page.locator("#key-form").wait_for()
        yield visiting, context
    finally:
        await context.close()


async def give(visiting: Visit, key: str) -> None:
    await visiting.page.fill("#key", key)
    await visiting.page.press("#key", "Enter")


async def live(visiting: Visit) -> None:
    await visiting.page.locator('#link[data-state="live"]').wait_for()
    await visiting.page.locator("#voice option").first.wait_for(state="attached")


async def test_a_stranger_is_asked_for_a_key_and_is_told_nothing_else(fleet: Fleet, browser: Browser):
    async with tab(browser, fleet) as (visiting, _):
        await visiting.page.locator('#link[data-state="key"]').wait_for()
        assert await visiting.text("#link-words") == "a key is needed"
        assert await visiting.page.evaluate("document.activeElement.id") == "key"
        assert await visiting.page.get_attribute("#key", "type") == "password"
        assert "kept until this tab is closed" in await visiting.text("#key-words")
        shown = await visiting.text("body")
        assert not any(worker["id"] in shown for worker in await fleet.listed())
        assert await visiting.page.locator("#voice option, #model option").count() == 0
        await visiting.page.fill("#text", "Let me in.")
        await visiting.page.click("#speak")
        await visiting.page.locator("#spoken-words", has_text="A key is missing").wait_for()


async def test_a_key_opens_everything_and_goes_nowhere_but_into_the_header(fleet: Fleet, browser: Browser):
    key = fleet.key["ann"]
    async with tab(browser, fleet) as (visiting, context):
        sent: list[str | None] = []
        visiting.page.on("request", lambda request: sent.append(request.headers.get("authorization")))
        await give(visiting, f" {key} ")  # pasted with a blank or two
        await live(visiting)
        assert not await visiting.page.locator("#key-form").is_visible()
        await visiting.page.fill("#text", "Now I may speak.")
        await visiting.page.click("#speak")
        await visiting.page.locator("#spoken-words", has_text="real time").wait_for()
        assert "$TTS_KEY" in await visiting.text("#curl")
        assert set(filter(None, sent)) == {f"Bearer {key}"}
        assert key not in "".join(visiting.asked)
        assert key not in await visiting.page.content()
        assert key not in await visiting.page.evaluate(EVERYTHING_STORED)
        await visiting.page.reload()
        await live(visiting)
        another = await context.new_page()
        await another.goto(fleet.url)
        await another.locator("#key-form").wait_for()


async def test_a_wrong_key_is_said_to_be_wrong_and_the_next_one_counts(fleet: Fleet, browser: Browser):
    async with tab(browser, fleet) as (visiting, _):
        await give(visiting, "tts_wrong")
        await visiting.page.locator("#key-words", has_text="not known here").wait_for()
        assert await visiting.page.locator("#key-form").is_visible()
        await give(visiting, fleet.key["ann"])
        await live(visiting)


async def test_a_key_for_something_else_is_told_what_it_is_for(fleet: Fleet, browser: Browser):
    async with tab(browser, fleet) as (visiting, _):
        await give(visiting, fleet.key["voices"])
        await visiting.page.locator("#key-words", has_text="needs one for speak").wait_for()
        assert await visiting.page.locator("#key-form").is_visible()
        await give(visiting, fleet.key["ann"])
        await live(visiting)


async def test_what_cannot_be_a_key_is_not_sent(fleet: Fleet, browser: Browser):
    async with tab(browser, fleet) as (visiting, _):
        await give(visiting, "ключ")
        assert await visiting.page.locator("#key:invalid").count() == 1
        assert await visiting.page.evaluate("sessionStorage.length") == 0


async def test_a_key_that_is_revoked_is_asked_for_anew(fleet: Fleet, browser: Browser):
    async with tab(browser, fleet) as (visiting, _):
        await give(visiting, fleet.key["bob"])
        await live(visiting)
        code, _, errors = await keys("revoke", "bob", "--keys-file", fleet.file)
        assert code == 0, errors
        await fleet.reload()
        await visiting.page.fill("#text", "Am I still known?")
        await visiting.page.click("#speak")
        await visiting.page.locator("#spoken-words", has_text="not known here").wait_for()
        await visiting.page.locator("#key-form").wait_for()
