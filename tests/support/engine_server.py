"""A small HTTP server with vLLM's routes over our own sampler, for tests of the client side."""

from __future__ import annotations

import json
import math
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import torch
from safetensors.torch import load_file

from trimtab.models.load import LM, base_of
from trimtab.models.model_spec import ModelSpec
from trimtab.sample.draw import SamplingConfig
from trimtab.sample.sampler import Request, Sampler

_LOADING = threading.Lock()
"""transformers loads models with global state, so two servers of a process must not load at once."""


def _load(path: str) -> LM:
    with _LOADING:
        return LM.load(ModelSpec(path=path, device="cpu"), train=False)


class EngineServer:
    """Serves the model in ``folder`` on a port of its own, with weights of its own.

    Args:
        stale_head: Leave the output head as it is when weights are loaded.
        raw: Report logprobs before filters, as ``--logprobs-mode raw_logprobs`` does.
        spans: Know /inference/v1/generate.
        seconds: Per completion.
    """

    def __init__(
        self,
        folder: Path,
        *,
        stale_head: bool = False,
        raw: bool = False,
        spans: bool = True,
        version: str = "0.32.0",
        max_length: int = 128,
        seconds: float = 0.0,
        port: int = 0,
    ) -> None:
        self.folder, self.stale_head, self.raw, self.spans = folder, stale_head, raw, spans
        self.version, self.max_length, self.seconds = version, max_length, seconds
        self.lm = _load(str(folder))
        if base_of(self.lm.model).config.tie_word_embeddings and stale_head:
            head: Any = base_of(self.lm.model).get_output_embeddings()
            head.weight = torch.nn.Parameter(head.weight.detach().clone())
        self.label = "default"
        self.adapters: dict[str, LM] = {}
        self.seeds: list[int] = []
        """Seeds of the completions that were sampled."""
        self.dies_after = math.inf
        """Completions after which it is killed, with those that it still has."""
        self.calls: list[str] = []
        self.running = threading.Event()
        self.running.set()
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                self._reply(outer.get(urlparse(self.path).path))

            def do_POST(self) -> None:
                size = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(size) or b"{}")
                self._reply(outer.post(urlparse(self.path).path, body))

            def _reply(self, answer: tuple[int, Any]) -> None:
                data = json.dumps(answer[1]).encode()
                self.send_response(answer[0])
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                if not isinstance(
                    sys.exc_info()[1], OSError
                ):  # the client's or ``kill``'s end of it
                    super().handle_error(request, client_address)

            def process_request(self, request: Any, client_address: Any) -> None:
                outer.sockets.append(request)
                super().process_request(request, client_address)

        self.sockets: list[Any] = []
        self.http = Server(("127.0.0.1", port), Handler)
        self.port = self.http.server_address[1]
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def kill(self) -> None:
        """As if the process had been killed: no reply to what runs, no listener."""
        self.http.shutdown()
        self.http.server_close()
        for one in self.sockets:
            try:
                one.shutdown(2)
                one.close()
            except OSError:
                pass

    def get(self, path: str) -> tuple[int, Any]:
        if path == "/version":
            return 200, {"version": self.version}
        if path == "/health":
            return 200, {}
        if path == "/weight_info":
            return 200, {"weight_version": self.label}
        if path == "/v1/models":
            return 200, {"data": [{"id": "policy", "max_model_len": self.max_length}]}
        return 404, {"detail": "Not Found"}

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        self.calls.append(path)
        if path == "/inference/v1/generate" and self.spans:
            return self._generate(body, body.get("token_ids"), body.get("sampling_params", {}))
        if path == "/v1/completions":
            if "prompt_logprobs" in body:
                return self._prompt_logps(body)
            return self._generate(body, body.get("prompt"), body)
        if path == "/pause":
            self.running.clear()
        elif path == "/resume":
            self.running.set()
        elif path == "/collective_rpc":
            self._reload(Path(body["kwargs"]["weights_path"]))
        elif path == "/update_weight_version":
            self.label = body["new_version"]
        elif path == "/v1/load_lora_adapter":
            if body["lora_name"] in self.adapters:
                return 400, {"error": "has already been loaded"}
            self.adapters[body["lora_name"]] = _load(body["lora_path"])
        elif path == "/v1/unload_lora_adapter":
            self.adapters.pop(body["lora_name"])
        elif path != "/reset_prefix_cache":
            return 404, {"detail": "Not Found"}
        return 200, {"success": True}

    def _reload(self, folder: Path) -> None:
        model: Any = base_of(self.lm.model)
        weights: dict[str, torch.Tensor] = {}
        for file in sorted(folder.glob("*.safetensors")):
            weights |= load_file(file)
        if self.stale_head:
            weights.pop("lm_head.weight", None)
        own = model.state_dict(keep_vars=True)
        with torch.no_grad():
            for name, tensor in weights.items():
                own[name].copy_(tensor)

    def _generate(
        self, body: dict[str, Any], prompt: list[int] | None, settings: dict[str, Any]
    ) -> tuple[int, Any]:
        if prompt is None:
            return 400, {"error": "no prompt"}
        lm = self.lm if body["model"] == "policy" else self.adapters.get(body["model"])
        if lm is None:
            return 404, {"error": f"no model {body['model']}"}
        vocab = base_of(lm.model).config.vocab_size
        if max(prompt) >= vocab:
            return 400, {"error": f"Token id {max(prompt)} is out of vocabulary"}
        time.sleep(self.seconds)
        self.running.wait()
        config = SamplingConfig(
            max_new_tokens=settings["max_tokens"],
            temperature=settings["temperature"],
            top_k=settings["top_k"],
        )
        with self.lock:
            if len(self.seeds) >= self.dies_after:
                self.kill()
                raise ConnectionAbortedError("killed")
            self.seeds.append(settings["seed"])
            label = self.label
            sampler = Sampler(lm.plain_attention(), stop_ids=settings["stop_token_ids"])
            request = Request(np.array(prompt), (settings["seed"],))
            ((sampled,),) = sampler([request], config)
        logp = sampled.logp - (1.0 if self.raw else 0.0)
        count = len(sampled.ids)
        choice = {
            "token_ids": sampled.ids.tolist(),
            "finish_reason": sampled.finish,
            "logprobs": {"content": [{"logprob": x} for x in logp.tolist()]},
            "weight_versions": [{"version": label, "start": 0, "end": count}],
        }
        if not self.spans:
            del choice["weight_versions"]
        return 200, {"choices": [choice]}

    @torch.no_grad()
    def _prompt_logps(self, body: dict[str, Any]) -> tuple[int, Any]:
        lm = self.lm if body["model"] == "policy" else self.adapters[body["model"]]
        model: Any = lm.plain_attention()
        ids = torch.tensor([body["prompt"]])
        with self.lock:
            logp = model(input_ids=ids).logits[0].log_softmax(-1)
        entries: list[Any] = [None]
        for i, token in enumerate(body["prompt"][1:]):
            entries.append({str(token): {"logprob": float(logp[i, token])}})
        return 200, {"choices": [{"prompt_logprobs": entries}]}


if __name__ == "__main__":  # a server in a process of its own: folder, port, seconds per completion
    EngineServer(Path(sys.argv[1]), port=int(sys.argv[2]), seconds=float(sys.argv[3]))
    threading.Event().wait()
