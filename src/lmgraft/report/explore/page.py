"""The page on which runs are explored, by Gradio, on this machine alone.

It serves loopback, asks nothing of any other machine, reads no file but those that were uploaded to it, and removes
these when it ends.
"""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lmgraft.errors import LmgraftError, RecipeError
from lmgraft.report.explore.view import problem_html, view_html
from lmgraft.studies.explore import ATTENTION, LAST, Choice, Explorer
from lmgraft.versions import optional
from lmgraft.words.explore import head_title, upload_label

HOST = "127.0.0.1"
_ALL_HEADS = -1
_POLICY = "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; frame-ancestors 'none'; form-action 'self'"
_CSS = """
.explored img { max-width: 100%; background: #fff; border-radius: 8px; padding: 6px; }
.explored h2 { font-size: 1.1rem; margin: 0 0 .3rem; overflow-wrap: anywhere; }
.explored .truth { margin: 0 0 .6rem; }
.explored ul { margin: .8rem 0; padding-left: 1.2rem; list-style: disc; }
.explored table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.explored caption { text-align: left; font-weight: 600; padding-bottom: .3rem; }
.explored table th, .explored table td { text-align: left; padding: .3rem .8rem .3rem 0;
  border-style: solid !important; border-width: 0 0 1px !important;
  border-color: var(--border-color-primary) !important; }
.explored table { min-width: min(100%, 26rem); }
.explored table, .explored tr { border: 0 !important; }
.explored .right { font-weight: 600; }
.explored .problem { white-space: pre-line; border-left: 5px solid #b23a1e; padding: .6rem .8rem; }
#upload .download { display: none; }
:focus-visible { outline: 3px solid #2f6f9f !important; outline-offset: 2px; }
"""


def serve(explorer: Explorer, port: int, largest: int, ready: Callable[[str], None]) -> None:
    """Serve the page until it is interrupted.

    Args:
        explorer: What is shown.
        port: On 127.0.0.1; 0: any that is free.
        largest: Megabytes that an uploaded file may have.
        ready: Is told the page's address once it can be opened.

    Raises:
        RecipeError: If the port is taken.
        VersionError: If Gradio is missing.
    """
    uvicorn = optional("uvicorn", "explore", "lmgraft explore")
    with _listening(port) as listener, _uploads():
        taken = listener.getsockname()[1]
        app = application(explorer, taken, largest)
        config = uvicorn.Config(app, log_level="warning", server_header=False, timeout_graceful_shutdown=1, ws="none")
        ready(f"http://{HOST}:{taken}/")
        with suppress(KeyboardInterrupt):  # the way to end it
            uvicorn.Server(config).run(sockets=[listener])


@contextmanager
def _listening(port: int) -> Iterator[socket.socket]:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise RecipeError(f"--port {port} cannot be listened on ({error})", "give another, or 0 for any") from None
        yield listener


@contextmanager
def _uploads() -> Iterator[None]:
    """A folder for what is uploaded, which is gone at the end."""
    before = os.environ.get("GRADIO_TEMP_DIR")
    with TemporaryDirectory(prefix="lmgraft-explore-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            yield
        finally:
            os.environ.pop("GRADIO_TEMP_DIR")
            if before is not None:
                os.environ["GRADIO_TEMP_DIR"] = before


def application(explorer: Explorer, port: int, largest: int) -> Any:
    """The page as an ASGI application that answers loopback alone; uploads go to the folder GRADIO_TEMP_DIR.

    Args:
        explorer: What is shown.
        port: On which it will be asked.
        largest: Megabytes that an uploaded file may have.
    """
    gradio = _gradio()
    fastapi = optional("fastapi", "explore", "lmgraft explore")
    app = gradio.mount_gradio_app(
        fastapi.FastAPI(openapi_url=None),
        blocks(explorer),
        app_kwargs={"openapi_url": None},
        path="",
        server_name=HOST,
        server_port=port,
        footer_links=[],
        run_history=False,
        allowed_paths=[],
        max_file_size=largest * 2**20,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css=_CSS,
    )
    return guarded(app, port)


def _gradio() -> Any:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    return optional("gradio", "explore", "lmgraft explore")


def guarded(app: Any, port: int) -> Callable[..., Awaitable[None]]:
    """An application that refuses what no page of its own asks for: other hosts' names, other pages, any file.

    A page elsewhere that has its name point to 127.0.0.1 is refused by the host's name; Gradio's ways to read a file or
    an address are closed, since pictures stand in the page itself.
    """
    hosts = {f"{name}:{port}".encode() for name in (HOST, "localhost")}
    origins = {b"http://" + host for host in hosts}

    def is_ours(scope: Any) -> bool:
        headers = dict(scope["headers"])
        parts = [part for part in scope["path"].split("/") if part not in ("", "gradio_api")]
        reads = bool(parts) and parts[0].startswith(("file", "proxy=", "stream", "deep_link", "custom_component"))
        return not reads and headers.get(b"host") in hosts and headers.get(b"origin") in (None, *origins)

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and not is_ours(scope):
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"refused"})
            return

        async def send_on(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", ()), (b"content-security-policy", _POLICY.encode()),
                    (b"referrer-policy", b"no-referrer"), (b"x-content-type-options", b"nosniff"),
                ]  # fmt: skip
            await send(message)

        await app(scope, receive, send_on)

    return answer


def shown(
    explorer: Explorer, number: float | None, file: str | list[str] | None, runs: list[str], stage: str, measure: str,
    head: int, threshold: float,
) -> str:  # fmt: skip
    """What the page shows for what is set on it: an item, or what is wrong, in words."""
    try:
        files = [file] if isinstance(file, str) else file or []
        if not files and (number is None or not math.isfinite(number)):
            raise RecipeError("no item is chosen", f"give a number from 0 to {explorer.count - 1}, or a file")
        seen = explorer.item(int(number or 0)) if not files else explorer.file(*map(uploaded, files))
        choice = Choice(
            stage=stage, measure=measure, head=None if head == _ALL_HEADS else int(head), threshold=threshold  # type: ignore[arg-type]
        )  # fmt: skip
        ordered = [label for label in explorer.labels if label in runs]
        return view_html(explorer.view(seen, ordered, choice), explorer.things, explorer.stages)
    except LmgraftError as error:
        return problem_html(str(error))


def blocks(explorer: Explorer) -> Any:
    """The page's controls and what they show, as Gradio's Blocks."""
    gr = _gradio()
    one = explorer.things.removesuffix("s")
    with gr.Blocks(title="lmgraft explore", analytics_enabled=False) as page:
        gr.Markdown("# What stands out\nEvery control can be reached by Tab; arrow keys move the threshold.")
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                number = gr.Number(0, minimum=0, maximum=explorer.count - 1, precision=0, label=_number_label(explorer))
                file = gr.File(
                    file_count="multiple" if explorer.beside else "single",
                    file_types=[*explorer.endings, *explorer.beside],
                    type="filepath",
                    label=upload_label(one, explorer.beside),
                    elem_id="upload",
                    visible=bool(explorer.endings),
                    height=170,
                )
                file.async_move_resource_to_block_cache = _uploaded
                runs = gr.CheckboxGroup(explorer.labels, value=explorer.labels, label="Runs")
                stages = [(title, name) for name, title in explorer.stages.items()]
                stage = gr.Dropdown(stages, value=LAST, label="Stage", filterable=False)
                measure = gr.Radio(["magnitude", "frequency"], value="magnitude", label="Measure")
                heads = [(head_title(None), _ALL_HEADS), *((head_title(i), i) for i in range(explorer.heads))]
                head = gr.Dropdown(heads, value=_ALL_HEADS, label="Attention head", visible=False, filterable=False)
                threshold = gr.Slider(0, 1, 0.5, step=0.05, label="Threshold: tokens above it stand out")
            with gr.Column(scale=3, min_width=320):
                result = gr.HTML(shown(explorer, 0, None, explorer.labels, LAST, "magnitude", _ALL_HEADS, 0.5))
        controls = [number, file, runs, stage, measure, head, threshold]
        gr.on(
            [control.change for control in controls],
            lambda *values: shown(explorer, *values),
            controls,
            result,
            concurrency_limit=1,  # a pass notes what goes through the model, one at a time
            trigger_mode="always_last",
            show_progress="minimal",
            api_visibility="private",
        )
        stage.change(
            lambda name: (gr.update(visible=name not in ATTENTION), gr.update(visible=name in ATTENTION)),
            stage,
            [measure, head],
            show_progress="hidden",
            api_visibility="private",
        )
    return page


def _number_label(explorer: Explorer) -> str:
    return f"Test item, 0 to {explorer.count - 1}"


def uploaded(file: str) -> str:
    """A path as it is, if it is one of a file that was uploaded: Gradio checks that only of pages it launches itself.

    Raises:
        RecipeError: If it is an address, or lies elsewhere.
    """
    folder = os.environ.get("GRADIO_TEMP_DIR")
    if folder is None or not Path(file).resolve().is_relative_to(Path(folder).resolve()):
        raise RecipeError("this file was not uploaded here", "choose it again")
    return file


async def _uploaded(file: str) -> str:
    """In the place of a method of Gradio's that fetches an address or copies a file from anywhere."""
    return uploaded(file)
