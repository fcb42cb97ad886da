"""What transformers 4 computes with exported folders.

Arguments: JSON file of jobs (folder, token ids, text, messages), .npz file to write. Prints the number of jobs.
"""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer


def logits(folder, ids):
    """Logits of the class that the config names, one row at a time."""
    names = AutoConfig.from_pretrained(folder).architectures
    kind = getattr(transformers, names[0]) if names else AutoModelForCausalLM
    model = kind.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0].float().numpy()


def adapter_logits(folder, ids):
    from peft import AutoPeftModelForCausalLM

    model = AutoPeftModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0].float().numpy()


def main(jobs_file, out):
    assert transformers.__version__.startswith("4."), transformers.__version__
    arrays = {}
    for name, job in json.loads(Path(jobs_file).read_text()).items():
        run = adapter_logits if job.get("adapter") else logits
        arrays[f"{name}/logits"] = run(job["folder"], job["ids"])
        tokenizer = AutoTokenizer.from_pretrained(job["folder"])
        encoded = tokenizer(job["text"], return_tensors="pt")
        assert set(encoded) == {"input_ids", "attention_mask"}, set(encoded)
        arrays[f"{name}/text"] = encoded["input_ids"][0].numpy()
        arrays[f"{name}/messages"] = np.array(tokenizer.apply_chat_template(job["messages"]))
        arrays[f"{name}/special"] = np.array(tokenizer.all_special_ids)
    np.savez(out, **arrays)
    print(len(arrays) // 4)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(*sys.argv[1:])
