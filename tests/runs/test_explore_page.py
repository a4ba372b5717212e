"""The page of `lmgraft explore`, served by the command itself: what it refuses, and how it is in a browser."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from chromium import CHROMIUM, Chromium
from image_trees import encoded, picture, write_folder
from PIL import Image
from test_explore import IMAGES

from lmgraft.cli.main import main

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(find_spec("gradio") is None, reason="Gradio is not installed: the extra explore"),
]

GUARD = """
import socket, sys
connect = socket.socket.connect
def only_here(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1"):
        sys.stderr.write(f"LEFT LOOPBACK {address}\\n")
    return connect(self, address)
socket.socket.connect = only_here
from lmgraft.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, llama_folder: Path) -> Iterator[str]:
    """The address of the command on two trained runs, which may reach nothing else and leaves nothing behind."""
    folder = tmp_path_factory.mktemp("served")
    root = write_folder(folder / "photos", {"": 8}, classes=("cat", "dog", "bird", "horse", "boat", "cup"))
    (folder / "recipe.yaml").write_text(IMAGES.format(llm=llama_folder, root=root))
    for arm in ("plain", "llm"):
        assert main(["train", str(folder / "recipe.yaml"), "--arm", arm, "--out", str(folder / arm)]) == 0
    log = folder / "stderr.txt"
    options = [str(folder / "plain"), str(folder / "llm"), "--port", "0", "--largest", "1"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "TMPDIR": str(folder)}
    with (
        open(log, "w") as stderr,
        subprocess.Popen([sys.executable, "-c", GUARD, "explore", *options], stderr=stderr, env=environment) as server,
    ):
        try:
            while "Open http" not in (text := log.read_text()):
                assert server.poll() is None, text
                time.sleep(0.1)
            yield text.partition("Open ")[2].partition(" ")[0]
        finally:
            server.send_signal(signal.SIGINT)
            assert server.wait(20) == 0
    assert not list(folder.glob("lmgraft-explore-*"))
    assert "LEFT LOOPBACK" not in log.read_text()


def asked(address: str, data: bytes | None = None, **headers: str) -> tuple[int, str]:
    """Status and text of an answer."""
    try:
        with urlopen(Request(address, data, headers), timeout=30) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()


def shown_of(address: str, file: dict[str, Any]) -> str:
    """What the page shows, or says, for a file as a browser names it."""
    session = uuid.uuid4().hex
    body = {"data": [0, file, ["plain", "llm"], "last", "magnitude", -1, 0.5], "fn_index": 0, "session_hash": session}
    join = f"{address}gradio_api/queue/join"
    assert asked(join, json.dumps(body).encode(), **{"content-type": "application/json"})[0] == 200
    _, stream = asked(f"{address}gradio_api/queue/data?session_hash={session}")
    messages = [json.loads(line.removeprefix("data: ")) for line in stream.splitlines() if line]
    (output,) = [message["output"] for message in messages if message["msg"] == "process_completed"]
    return str(output.get("error") or output["data"][0])


def file_of(path: object) -> dict[str, Any]:
    return {"path": str(path), "meta": {"_type": "gradio.FileData"}}


def upload(address: str, name: str, content: bytes) -> tuple[int, str]:
    head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
    body = head.encode() + content + b"\r\n--x--\r\n"
    return asked(f"{address}gradio_api/upload", body, **{"content-type": "multipart/form-data; boundary=x"})


def uploaded(address: str, name: str, content: bytes) -> str:
    status, text = upload(address, name, content)
    assert status == 200
    (path,) = json.loads(text)
    return str(path)


def test_no_file_of_the_machine_is_read(served: str, tmp_path: Path) -> None:
    picture(1).save(tmp_path / "secret.png")
    mine = uploaded(served, "mine.png", encoded(1, "PNG"))
    beside = f"{Path(mine).parent}/../../../{tmp_path}/secret.png"
    for place in ("/etc/passwd", "../../etc/passwd", str(tmp_path / "secret.png"), mine):
        for route in ("gradio_api/file=", "file=", "gradio_api/file/", "gradio_api/proxy=http://127.0.0.1/", "static/"):
            assert asked(f"{served}{route}{place}")[0] in (403, 404), (route, place)
    for place in ("/etc/passwd", "../../etc/passwd", tmp_path / "secret.png", beside, "http://127.0.0.1:1/a.png"):
        for file in (file_of(place), {"path": str(place)}):
            assert "<img" not in shown_of(served, file), place
    assert "not uploaded here" in shown_of(served, file_of(tmp_path / "secret.png"))
    assert 'alt="mine.png' in shown_of(served, file_of(mine))


def test_uploads_are_bounded_in_size_and_kind(served: str) -> None:
    good = encoded(2, "PNG")
    assert upload(served, "a.png", bytes(2**20 + 1))[0] == 413
    outside = uploaded(served, "../../../good.png", good)
    assert ".." not in outside
    assert "lmgraft-explore-" in outside
    assert "Invalid file type" in shown_of(served, file_of(uploaded(served, "a.txt", good)))
    broken = shown_of(served, file_of(uploaded(served, "b.png", good[:100])))
    assert 'role="alert">b.png cannot be read' in broken
    assert "lmgraft-explore-" not in broken


def test_the_page_names_no_other_host_to_load_from(served: str) -> None:
    status, page = asked(served)
    assert status == 200
    assert asked(served, origin="http://evil.example")[0] == 403
    loaded = re.findall(r'<(?:script|link|img|iframe)[^>]*(?:src|href)="((?:https?:)?//[^"]*)"', page)
    assert [one for one in loaded if not one.startswith(served.rstrip("/"))] == []
    assert "fonts.googleapis" not in page


def brightness(file: Path) -> float:
    """Of a page's left third, where the controls are."""
    with Image.open(file) as page:
        return float(np.asarray(page.convert("L"))[:, : page.width // 3].mean())


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_in_a_browser(served: str, tmp_path: Path) -> None:
    picture(5).save(tmp_path / "mine.png")
    (tmp_path / "broken.png").write_bytes(b"x")
    browser = Chromium(Path(tempfile.mkdtemp(dir=tmp_path)))

    def text() -> str:
        return str(browser.value("document.querySelector('.explored')?.innerText ?? ''"))

    def focused() -> str:
        script = (
            "(e => (e.getAttribute('aria-label') ?? '') + (e.labels?.[0]?.innerText ?? ''))(document.activeElement)"
        )
        return str(browser.value(script))

    def tab_to(label: str) -> None:
        for _ in range(30):
            browser.press("Tab", 9)
            if label in focused():
                return
        raise AssertionError(f"Tab does not reach {label}")

    try:
        browser.load("Page.navigate", url=served)
        browser.until(lambda: "test item 0" in text(), "the first item")
        assert browser.value("document.querySelectorAll('.explored img[alt]').length") == 1
        assert "plain, encoder" in text()
        assert "llm, W2" in text()
        tab_to("Test item")
        browser.press("ArrowUp", 38)
        browser.until(lambda: "test item 1" in text(), "the next item, by keyboard")
        tab_to("llm")
        browser.press(" ", 32)
        browser.until(lambda: "llm, W2" not in text(), "one run, by keyboard")
        browser.press(" ", 32)
        browser.until(lambda: "llm, W2" in text(), "both runs")
        tab_to("range slider")
        browser.press("ArrowRight", 39, times=4)
        browser.until(lambda: "above 0.70" in text(), "a higher threshold, by keyboard")
        tab_to("Stage")
        chosen = "document.querySelector('[role=option].active')?.ariaLabel ?? ''"

        def go_down() -> bool:
            there = bool(browser.value(chosen) == "attention of the block")
            if not there:
                browser.press("ArrowDown", 40)
            return there

        browser.until(go_down, "the last stage of the list")
        browser.press("Enter", 13)
        browser.until(lambda: "attention of the block" in text(), "the block's attention, by keyboard")
        browser.until(lambda: browser.value("document.body.innerText.includes('Attention head')"), "a choice of heads")
        browser.give_file("input[type=file]", tmp_path / "mine.png")
        browser.until(lambda: "mine.png" in text(), "the uploaded image")
        light = brightness(browser.screenshot(tmp_path / "light.png"))
        browser("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
        browser.load("Page.reload")
        browser.until(lambda: "test item 0" in text(), "the page again, in the dark")
        browser.give_file("input[type=file]", tmp_path / "broken.png")
        browser.until(lambda: "broken.png cannot be read" in text(), "what is wrong with a file")
        assert brightness(browser.screenshot(tmp_path / "dark.png")) < light / 2
        assert [asked for asked in browser.asked if not asked.startswith((served, "data:", "blob:"))] == []
        assert browser.errors == []
    finally:
        browser.close()
