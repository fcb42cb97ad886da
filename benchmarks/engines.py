"""Other samplers: transformers' ``generate`` and vLLM, on the same requests."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from benchmarks.sampling_requests import requests
from benchmarks.side import Phases


class Generate:
    """transformers' own ``generate``: rows padded to one length, until the last one ends."""

    def __init__(self, spec: dict[str, Any], phases: Phases) -> None:
        from transformers import AutoModelForCausalLM

        self.spec = spec
        self.limits, prompts = requests(spec)
        self.prompts = [p for p in prompts for _ in range(spec.get("n", 1))]
        self.limits = [x for x in self.limits for _ in range(spec.get("n", 1))]
        kind = getattr(torch, spec["dtype"])
        self.model = AutoModelForCausalLM.from_pretrained(spec["model"], dtype=kind)
        self.model = self.model.to(spec["device"]).eval()
        self.model.generation_config.eos_token_id = None

    def versions(self) -> dict[str, str]:
        """What was measured."""
        return {"transformers": version("transformers")}

    @torch.no_grad()
    def run(self) -> dict[str, Any]:
        """All requests once; tokens past a request's own limit are not counted."""
        slots = self.spec.get("slots", 128)
        for start in range(0, len(self.prompts), slots):
            part = np.stack(self.prompts[start : start + slots])
            ids = torch.from_numpy(part).to(self.spec["device"])
            most = max(self.limits[start : start + slots])
            self.model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=1.0,
                top_k=0, max_new_tokens=most, min_new_tokens=most, pad_token_id=0,
            )  # fmt: skip
        return {"work": sum(self.limits)}


class VLLM:
    """vLLM, whichever build is in the interpreter that runs this."""

    def __init__(self, spec: dict[str, Any], phases: Phases) -> None:
        from vllm import LLM, SamplingParams

        limits, prompts = requests(spec)
        self.llm = LLM(
            spec["model"], dtype=spec["dtype"], enforce_eager=spec["device"] == "cpu",
            max_model_len=len(prompts[0]) + max(limits) + 8, max_num_seqs=spec.get("slots", 128),
            enable_prefix_caching=spec.get("n", 1) > 1, disable_log_stats=True,
        )  # fmt: skip
        self.prompts: list[Any] = [{"prompt_token_ids": p.tolist()} for p in prompts]
        self.params = [
            SamplingParams(n=spec.get("n", 1), temperature=1.0, max_tokens=x, ignore_eos=True)
            for x in limits
        ]

    def versions(self) -> dict[str, str]:
        """What was measured."""
        import vllm

        return {"vllm": vllm.__version__}

    def run(self) -> dict[str, Any]:
        """All requests once."""
        got = self.llm.generate(self.prompts, self.params, use_tqdm=False)
        return {"work": sum(len(o.token_ids) for one in got for o in one.outputs)}
