"""Accuracy on rows of RewardBench 2, loaded by its own loader: the best of all is a chosen one.

Arguments: folder, rows. Prints {"accuracy": …, "rows": …}.
"""

import json
import logging
import sys


def main(folder: str, rows: str) -> None:
    import torch
    import transformers
    from rewardbench.utils import load_bon_dataset_v2

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    log = logging.getLogger("reward_bench_2")
    dataset, _, totals, correct = load_bon_dataset_v2(rows, tokenizer=tokenizer, logger=log)
    tokens = tokenizer(dataset["text"][:], return_tensors="pt", padding=True)
    with torch.no_grad():
        scores = iter(model(**tokens).logits[:, 0].tolist())
    wins = 0
    for total, good in zip(totals[:], correct[:], strict=True):
        own = [next(scores) for _ in range(total)]
        wins += own.index(max(own)) < good
    print(json.dumps({"accuracy": wins / len(totals), "rows": len(totals)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
