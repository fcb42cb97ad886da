"""Log-probabilities of completions, against a plain forward."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support import folders
from trimtab.evaluate.completion_logps import distance, summed_logps
from trimtab.models.load import LM, ModelSpec, renderer_for
from trimtab.rollout.engine import generate
from trimtab.rollout.engines.native import NativeEngine
from trimtab.sample.sampler import Request, SamplingConfig
from trimtab.types import Completion, Group


def test_they_are_those_of_separate_forwards(tmp_path: Path) -> None:
    lm = LM.load(ModelSpec(path=str(folders.model_folder(tmp_path)), device="cpu"), train=False)
    rng = np.random.default_rng(0)

    def ids(n: int) -> np.ndarray:
        return rng.integers(0, 26, n)

    groups = [
        Group(str(i), ids(3 + i), [Completion(ids(n), np.ones(n, bool)) for n in (4, 1, 6)])
        for i in range(3)
    ]
    expected: list[float] = []
    for g in groups:
        for c in g.completions:
            row = torch.from_numpy(np.concatenate([g.prompt, c.ids]))[None]
            with torch.no_grad():
                logits = lm.plain_attention()(input_ids=row).logits[0] / 0.7
            at = logits.log_softmax(-1)[len(g.prompt) - 1 : -1]
            expected.append(float(at.gather(1, row[0, len(g.prompt) :, None]).sum()))
    assert summed_logps(lm, groups, 24, 0.7) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingConfig(temperature=0.7),
        SamplingConfig(temperature=0.0),
        SamplingConfig(temperature=0.7, top_k=5),
    ],
    ids=["temperature", "greedy", "top-k"],
)
def test_the_distance_of_what_a_model_sampled(tmp_path: Path, sampling: SamplingConfig) -> None:
    """It is the same with the sampler's log-probabilities; a filtered sampler's are not used."""
    specs = [
        ModelSpec(path=str(folders.model_folder(tmp_path / str(seed), seed=seed)), device="cpu")
        for seed in (0, 1)
    ]
    lm, start = (LM.load(spec, train=False) for spec in specs)
    engine = NativeEngine.of(lm, renderer_for(specs[0]))
    requests = [Request(np.arange(3, 6 + i), (i,), 4) for i in range(3)]
    groups = [
        Group(str(i), r.prompt, [
            Completion(x.ids, np.ones(len(x.ids), bool), tokens={"sampler_logp": x.logp})
            for x in drawn
        ])
        for i, (r, drawn) in enumerate(
            zip(requests, generate(engine, requests, sampling), strict=True)
        )
    ]  # fmt: skip
    tau = sampling.temperature
    expected = np.subtract(
        *(np.array(summed_logps(model, groups, 64, tau)) for model in (lm, start))
    )
    far = distance(lm, start, start, groups, 64, sampling)
    np.testing.assert_allclose(far.log_ratio, expected, atol=1e-3)
    assert far.kl is not None and abs(far.kl) > 1e-3
    assert distance(start, start, start, groups, 64, sampling).log_ratio is None
    # Fluency, under the baseline or another model, is the likelihood at temperature 1.
    for judge in (start, lm):
        judged = distance(lm, start, judge, groups, 64, sampling)
        plain = -np.array(summed_logps(judge, groups, 64, 1.0))
        np.testing.assert_allclose(judged.nll, plain, rtol=1e-5)
