"""An exported policy and reward model in vLLM's CPU build.

Arguments: "generate" or "score", folder, JSON lines of {"messages": …}. Prints the greedy token ids or the
scores, as {"version": …, "values": […]}.
"""

import json
import os
import sys
from pathlib import Path


def main(task: str, folder: str, rows: str) -> None:
    # One process with a small cache, on the CPU.
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    import vllm
    from vllm.config import PoolerConfig

    conversations = [json.loads(line)["messages"] for line in Path(rows).read_text().splitlines()]
    options = {"dtype": "float32", "enforce_eager": True, "max_model_len": 256}
    if task == "generate":
        llm = vllm.LLM(folder, **options)
        greedy = vllm.SamplingParams(temperature=0.0, max_tokens=24)
        outputs = llm.chat(conversations, greedy, use_tqdm=False)
        values = [list(o.outputs[0].token_ids) for o in outputs]
    else:
        # Without use_activation, vLLM applies a sigmoid to a model of one label.
        pooler = PoolerConfig(use_activation=False)
        llm = vllm.LLM(folder, runner="pooling", pooler_config=pooler, **options)
        tokenizer = llm.get_tokenizer()
        texts = [tokenizer.apply_chat_template(m, tokenize=False) for m in conversations]
        tokens = [
            {"prompt_token_ids": tokenizer.encode(t, add_special_tokens=False)} for t in texts
        ]
        values = [o.outputs.probs[0] for o in llm.classify(tokens, use_tqdm=False)]
    print(json.dumps({"version": vllm.__version__, "values": values}))


if __name__ == "__main__":
    main(*sys.argv[1:])
