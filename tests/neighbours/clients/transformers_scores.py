"""Scores of conversations by a sequence classifier in this environment's transformers.

Arguments: folder, JSON lines of {"messages": …}. Prints {"version": …, "scores": […]}.
"""

import json
import sys
from pathlib import Path


def main(folder: str, rows: str) -> None:
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    conversations = [json.loads(line)["messages"] for line in Path(rows).read_text().splitlines()]
    texts = [tokenizer.apply_chat_template(m, tokenize=False) for m in conversations]
    tokens = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    with torch.no_grad():
        scores = model(**tokens).logits[:, 0].tolist()
    print(json.dumps({"version": transformers.__version__, "scores": scores}))


if __name__ == "__main__":
    main(*sys.argv[1:])
