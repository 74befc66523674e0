"""Starts a real ComfyUI server with this pack, and drives it over HTTP and its websocket."""

from __future__ import annotations

import atexit
import io
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import requests
import websocket

from .fetch import cache_folder, comfyui_folder

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parent.parent
PACK_NAME = "comfyui-lorweb"
Graph = dict[str, dict[str, Any]]
Outputs = dict[str, dict[str, Any]]
OnProgress = Callable[[str, int, int], None]

_START_SECONDS = 300
_STOP_SECONDS = 10
_REPLY_SECONDS = 120
_HOST = "127.0.0.1"
_http = requests.Session()
_http.trust_env = False  # a proxy of the machine does not know this server
_POLL_SECONDS = 1.0
_NOT_IN_A_COPY = (".git", ".venv", ".*_cache", "__pycache__", "demo_output", "runs")

__all__ = ["ComfyServer", "GraphError", "GraphInterrupted", "ServerError", "cache_folder", "comfyui_folder"]


class ServerError(RuntimeError):
    """The server did not start, or died; the message ends with the tail of its log."""


class GraphError(RuntimeError):
    """ComfyUI refused a graph, or a node of it failed.

    Attributes:
        node_id: the node's id in the graph, or None when the graph as a whole is at fault.
        node_type: its class, or None.
        exception_type: of the exception inside the node; of the first validation error otherwise.
        details: what the server sent, unabridged.
    """

    def __init__(self, message: str, node_id: str | None, node_type: str | None, exception_type: str, details: dict):
        where = f"node {node_id} ({node_type}): " if node_id is not None else ""
        super().__init__(f"{where}{message}")
        self.node_id = node_id
        self.node_type = node_type
        self.exception_type = exception_type
        self.details = details

    @classmethod
    def from_execution(cls, data: dict) -> GraphError:
        """From the websocket message ``execution_error``."""
        message = str(data.get("exception_message", "")).strip()
        return cls(message, data["node_id"], data["node_type"], data.get("exception_type", ""), data)

    @classmethod
    def from_validation(cls, reply: dict) -> GraphError:
        """From the reply of POST /prompt that lists what is wrong with the graph before it runs."""
        for node_id, node in (reply.get("node_errors") or {}).items():
            reasons = node["errors"]
            message = "; ".join(f"{reason['message']}: {reason['details']}" for reason in reasons)
            return cls(message, node_id, node["class_type"], reasons[0]["type"], reply)
        error = reply.get("error") or {}
        if isinstance(error, str):
            error = {"message": error}
        extra = error.get("extra_info") or {}
        message = f"{error.get('message', reply)} {error.get('details', '')}".strip()
        return cls(message, extra.get("node_id"), extra.get("class_type"), error.get("type", ""), reply)


class GraphInterrupted(GraphError):
    """The run was stopped by ``interrupt()``."""


class ComfyServer:
    """A running ComfyUI; use it as a context manager, so that no process is left behind.

    Args:
        base: the server's own folder (models/, input/, output/, custom_nodes/, user/); made when missing.
        models: a folder of models (diffusion_models/, vae/, ...) to offer besides ``base / "models"``.
        pack: the pack under test, linked into custom_nodes; None for a server without it.
        extra_packs: folders of further packs to link.
        arguments: further arguments of ComfyUI's main.py.
    """

    def __init__(
        self,
        base: str | os.PathLike,
        models: str | os.PathLike | None = None,
        pack: Path | None = ROOT,
        extra_packs: Iterable[Path] = (),
        arguments: Sequence[str] = (),
    ):
        self.base = Path(base).resolve()
        self.models = None if models is None else Path(models).resolve()
        self.packs = {path.name: path for path in extra_packs}
        if pack is not None:
            self.packs[PACK_NAME] = pack
        self.arguments = list(arguments)
        self.log_path = self.base / "comfyui.log"
        self.port = 0
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> ComfyServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Where the frontend and the API are."""
        return f"http://{_HOST}:{self.port}"

    @property
    def output_folder(self) -> Path:
        """Where nodes write their files."""
        return self.base / "output"

    @property
    def pid(self) -> int | None:
        """Process id of the server, None when it is not running."""
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Start the server and wait until it answers.

        Raises:
            ServerError: when it dies, or does not answer in time.
        """
        self._prepare_base()
        self.port = _free_port()
        command = [sys.executable, str(ROOT / "harness" / "launch.py"), "--end-with-stdin"]
        command += [str(comfyui_folder() / "main.py"), *self._server_arguments()]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"}
        with self.log_path.open("wb") as sink:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=sink, stderr=subprocess.STDOUT, env=environment
            )
        atexit.register(self.stop)
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the server; does nothing when it is not running."""
        atexit.unregister(self.stop)
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdin.close()

    def log_tail(self, lines: int = 40) -> str:
        """The last lines of the server's log."""
        return "\n".join(self.log_path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])

    def object_info(self) -> dict[str, dict[str, Any]]:
        """Every node class that the server knows, with its inputs and outputs."""
        return self._request("GET", "/object_info").json()

    def upload(self, image: np.ndarray | str | os.PathLike, name: str | None = None) -> str:
        """Put an image into the input folder.

        Args:
            image: a file, or an array [H, W, 3] or [H, W]: uint8, or float in 0..1.
            name: its file name there; made up for an array, the file's own otherwise.

        Returns:
            The name for ``LoadImage``.
        """
        if isinstance(image, (str, os.PathLike)):
            name, content = name or Path(image).name, Path(image).read_bytes()
        else:
            name, content = name or f"{uuid.uuid4().hex}.png", _png(image)
        reply = self._request("POST", "/upload/image", files={"image": (name, content)}, data={"overwrite": "true"})
        return reply.json()["name"]

    def run(self, graph: Graph, on_progress: OnProgress | None = None, timeout: float = 600.0) -> Outputs:
        """Run an API-format graph to its end.

        Args:
            graph: node id -> {"class_type", "inputs"}.
            on_progress: called with (node id, value, maximum); (node id, 0, 0) when a node starts.
            timeout: seconds; the run is interrupted after them.

        Returns:
            Node id -> what the node showed (for SaveImage: {"images": [...]}), for nodes that show anything.

        Raises:
            GraphError: when the graph is refused, or one of its nodes fails; the server goes on serving.
            GraphInterrupted: after ``interrupt()``.
            TimeoutError: when it takes longer than ``timeout``.
            ServerError: when the server dies.
        """
        self._check_alive()
        client = uuid.uuid4().hex
        address = f"ws://{_HOST}:{self.port}/ws?clientId={client}"
        direct = socket.create_connection((_HOST, self.port), _REPLY_SECONDS)  # never through a proxy
        with closing(websocket.create_connection(address, socket=direct)) as connection:
            connection.settimeout(_POLL_SECONDS)
            prompt_id = self._queue(graph, client)
            self._follow(connection, prompt_id, on_progress, time.monotonic() + timeout)
        return self._outputs(prompt_id)

    def images(self, outputs: Outputs, node_id: str) -> list[np.ndarray]:
        """The images that a node saved or previewed, uint8 [H, W, 3] each."""
        import numpy as np
        from PIL import Image

        images = []
        for image in outputs[node_id]["images"]:
            reply = self._request("GET", "/view", params=image)
            images.append(np.asarray(Image.open(io.BytesIO(reply.content)).convert("RGB")))
        return images

    def interrupt(self) -> None:
        """Stop the graph that is running."""
        self._request("POST", "/interrupt")

    def _prepare_base(self) -> None:
        for name in ("models", "input", "output", "custom_nodes", "user"):
            (self.base / name).mkdir(parents=True, exist_ok=True)
        for name, source in self.packs.items():
            _link(source, self.base / "custom_nodes" / name)

    def _server_arguments(self) -> list[str]:
        import torch

        arguments = ["--base-directory", str(self.base), "--listen", _HOST, "--port", str(self.port)]
        arguments += ["--disable-auto-launch", "--disable-api-nodes", "--database-url", "sqlite:///:memory:"]
        if not torch.cuda.is_available():
            arguments.append("--cpu")
        if self.models is not None:
            arguments += ["--extra-model-paths-config", str(self._write_model_paths(self.models))]
        return arguments + self.arguments

    def _write_model_paths(self, models: Path) -> Path:
        categories = {folder.name: folder.name for folder in models.iterdir() if folder.is_dir()}
        config = self.base / "model_paths.yaml"
        config.write_text(json.dumps({"harness": {"base_path": str(models), **categories}}))  # JSON is YAML
        return config

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            self._check_alive()
            try:
                _http.get(f"{self.url}/system_stats", timeout=5).raise_for_status()
                return
            except requests.RequestException:
                time.sleep(0.2)
        raise ServerError(f"ComfyUI did not answer within {_START_SECONDS} s; its log ends with:\n{self.log_tail()}")

    def _check_alive(self) -> None:
        if self._process is None:
            raise ServerError("ComfyUI is not running")
        status = self._process.poll()
        if status is not None:
            raise ServerError(f"ComfyUI ended with exit status {status}; its log ends with:\n{self.log_tail()}")

    def _request(self, method: str, path: str, **arguments: Any) -> requests.Response:
        self._check_alive()
        reply = _http.request(method, self.url + path, timeout=_REPLY_SECONDS, **arguments)
        reply.raise_for_status()
        return reply

    def _queue(self, graph: Graph, client: str) -> str:
        content = {"prompt": graph, "client_id": client}
        reply = _http.post(f"{self.url}/prompt", json=content, timeout=_REPLY_SECONDS)
        if reply.status_code >= 500:
            reply.raise_for_status()
        answer = reply.json()
        # A graph with one good output among bad ones is queued all the same; a caller wants all of it or an error.
        if reply.status_code != 200 or answer.get("node_errors"):
            if "prompt_id" in answer:
                self._request("POST", "/queue", json={"delete": [answer["prompt_id"]]})
                self.interrupt()
            raise GraphError.from_validation(answer)
        return answer["prompt_id"]

    def _follow(
        self, connection: websocket.WebSocket, prompt_id: str, on_progress: OnProgress | None, deadline: float
    ) -> None:
        report = on_progress or (lambda node, value, maximum: None)
        for event, data in self._events(connection, deadline):
            if data.get("prompt_id") != prompt_id:
                continue
            if event == "execution_success":
                return
            if event == "execution_error":
                raise GraphError.from_execution(data)
            if event == "execution_interrupted":
                raise GraphInterrupted("interrupted", data.get("node_id"), data.get("node_type"), event, data)
            if event == "executing" and data.get("node") is not None:
                report(data["node"], 0, 0)
            elif event == "progress":
                report(data["node"], data["value"], data["max"])

    def _events(self, connection: websocket.WebSocket, deadline: float) -> Iterator[tuple[str, dict]]:
        while True:
            if time.monotonic() > deadline:
                self.interrupt()
                raise TimeoutError(f"the graph took too long; ComfyUI's log ends with:\n{self.log_tail()}")
            try:
                message = connection.recv()
            except websocket.WebSocketTimeoutException:
                self._check_alive()
                continue
            except (websocket.WebSocketConnectionClosedException, OSError) as error:
                time.sleep(_POLL_SECONDS)  # the exit status of a dying process comes a moment later
                self._check_alive()
                raise ServerError(f"ComfyUI closed the connection; its log ends with:\n{self.log_tail()}") from error
            if isinstance(message, str) and message:  # binary messages are previews
                event = json.loads(message)
                yield event["type"], event["data"]

    def _outputs(self, prompt_id: str) -> Outputs:
        """From the history, which also holds what cached nodes showed; it is written just after the last event."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            entry = self._request("GET", f"/history/{prompt_id}").json().get(prompt_id)
            if entry is not None:
                return entry["outputs"]
            time.sleep(0.05)
        raise ServerError(f"ComfyUI finished the graph but keeps no history of it; its log:\n{self.log_tail()}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return probe.getsockname()[1]


def _link(source: Path, target: Path) -> None:
    """Link a pack into custom_nodes; where links are not allowed (Windows without the privilege), copy it."""
    if target.is_symlink():
        target.unlink()
    elif target.exists():
        shutil.rmtree(target)
    try:
        target.symlink_to(source, target_is_directory=True)
    except OSError:
        shutil.copytree(source, target, ignore=shutil.ignore_patterns(*_NOT_IN_A_COPY))


def _png(image: np.ndarray) -> bytes:
    import numpy as np
    from PIL import Image

    if image.dtype != np.uint8:
        image = (np.clip(image, 0.0, 1.0) * 255).round().astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()
