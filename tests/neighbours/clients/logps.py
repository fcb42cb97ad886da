"""Log-probabilities of token ids in this environment's transformers, adapters included.

Arguments: JSON of {"folders": […], "rows": [{"prompt": ids, "completion": ids, "messages": …}]}.
Prints {"folder": [log-prob of each completion, nats]}; fails where the chat template gives other ids.
"""

import json
import sys
from pathlib import Path


def main(file: str) -> None:
    import torch
    import transformers

    task = json.loads(Path(file).read_text())
    result = {}
    for folder in task["folders"]:
        if (Path(folder) / "adapter_config.json").is_file():
            import peft

            model = peft.AutoPeftModelForCausalLM.from_pretrained(folder)
        else:
            model = transformers.AutoModelForCausalLM.from_pretrained(folder)
        model = model.float().eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        logps = []
        for row in task["rows"]:
            ids = row["prompt"] + row["completion"]
            text = tokenizer.apply_chat_template(row["messages"], tokenize=False)
            rendered = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert rendered[: len(ids)] == ids, (folder, text)
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            start = len(row["prompt"])
            own = torch.tensor(row["completion"])[:, None]
            logps.append(logits[start - 1 : -1].gather(1, own).sum().item())
        result[folder] = logps
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
