"""Headless Chromium, driven by its DevTools protocol: what a person would do with a page."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from PIL import Image

START_WITHIN_S = 60.0
SHOWN_WITHIN_S = 60.0
WIDTH, HEIGHT = 1200, 900


class Page:
    """One open page."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._last_id = 0

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Return the result of a DevTools method."""
        self._last_id += 1
        await self._socket.send_json({"id": self._last_id, "method": method, "params": params})
        while True:
            answer = await self._socket.receive_json(timeout=SHOWN_WITHIN_S)
            if answer.get("id") == self._last_id:
                assert "error" not in answer, answer["error"]
                result: dict[str, Any] = answer["result"]
                return result

    async def value(self, expression: str) -> Any:
        """Return what a JavaScript expression is worth on the page."""
        done = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    async def open(self, url: str) -> None:
        """Go to another page; return once it is loaded."""
        await self.call("Page.navigate", url=url)
        here = f"location.href === {json.dumps(url)}"
        await self.wait_for(f"{here} && document.readyState === 'complete'")

    async def wait_for(self, expression: str) -> None:
        """Wait until an expression is true on the page."""
        async with asyncio.timeout(SHOWN_WITHIN_S):
            while not await self.value(f"!!({expression})"):
                await asyncio.sleep(0.1)

    async def click(self, selector: str) -> None:
        """Press and release the left button in the middle of the first element found."""
        where = await self.value(
            f"""(() => {{
              const found = document.querySelector({json.dumps(selector)});
              found.scrollIntoView({{ block: "center" }});
              const box = found.getBoundingClientRect();
              return {{ x: box.x + box.width / 2, y: box.y + box.height / 2 }};
            }})()"""
        )
        for kind in ("mousePressed", "mouseReleased"):
            await self.call(
                "Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **where
            )

    async def text(self, selector: str = "body") -> str:
        """Return what a person reads in an element."""
        found: str = await self.value(f"document.querySelector({json.dumps(selector)}).innerText")
        return found

    async def screenshot(self) -> bytes:
        """Return the whole page as a PNG."""
        done = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        return base64.b64decode(done["data"])


@asynccontextmanager
async def browse(chromium: str, folder: Path) -> AsyncIterator[Page]:
    """Open an empty page in a browser of its own, whose profile lies in *folder*."""
    command = [
        chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
        "--remote-debugging-port=0", f"--user-data-dir={folder}",
        f"--window-size={WIDTH},{HEIGHT}", "about:blank",
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *command, stdout=log, stderr=asyncio.subprocess.STDOUT
        )
    try:
        async with asyncio.timeout(START_WITHIN_S):
            while not (told := folder / "DevToolsActivePort").is_file():
                assert process.returncode is None, (folder / "log").read_text()
                await asyncio.sleep(0.1)
        port = told.read_text().split()[0]
        # No proxy of the environment knows this port: aiohttp asks none unless told to.
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                targets = await answer.json(content_type=None)
            (target,) = [t for t in targets if t["type"] == "page"]
            address = target["webSocketDebuggerUrl"]
            async with session.ws_connect(address, max_msg_size=0) as socket:
                yield Page(socket)
    finally:
        process.terminate()
        await process.wait()


def looks_drawn(png: bytes, path: Path) -> None:
    """Assert that a screenshot is one of the whole page, and that its charts are not blank."""
    path.write_bytes(png)
    with Image.open(path) as opened:
        assert opened.format == "PNG"
        image = opened.convert("RGB")
    assert image.width == WIDTH
    assert image.height > 2 * HEIGHT, "all sections, not what fits the window"
    colours = {colour for _, colour in image.getcolors(image.width * image.height) or ()}
    charts = {(0x1F, 0x7A, 0x8C), (0xE4, 0x57, 0x2E), (0xE0, 0xA0, 0x30)}
    assert charts <= colours
    assert len(colours) > 100, "text has shades"
