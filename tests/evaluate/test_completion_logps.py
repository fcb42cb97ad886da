"""Log-probabilities of completions, against a plain forward."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support import folders
from trimtab.evaluate.completion_logps import summed_logps
from trimtab.models.load import LM, ModelSpec
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
