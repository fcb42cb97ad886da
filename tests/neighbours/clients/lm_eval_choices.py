"""lm-eval's accuracy and log-probs on a task of two choices from local rows.

Arguments: policy folder, JSON lines of {"question", "choices", "answer"}, a folder for the task. Prints
{"accuracy": …, "logps": [[…]]}.
"""

import json
import sys
from pathlib import Path

TASK = """
task: trimtab_pairs
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: question
doc_to_choice: choices
doc_to_target: answer
target_delimiter: ""
metric_list: [{{metric: acc}}]
"""


def main(folder: str, rows: str, where: str) -> None:
    import lm_eval
    from lm_eval.tasks import TaskManager

    (Path(where) / "trimtab_pairs.yaml").write_text(TASK.format(rows=rows))
    result = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": folder, "dtype": "float32"},
        tasks=["trimtab_pairs"],
        task_manager=TaskManager(include_path=where),
        device="cpu",
        apply_chat_template=True,
        bootstrap_iters=0,
    )
    samples = sorted(result["samples"]["trimtab_pairs"], key=lambda s: s["doc_id"])
    logps = [[float(r[0]) for r in s["filtered_resps"]] for s in samples]
    print(json.dumps({"accuracy": result["results"]["trimtab_pairs"]["acc,none"], "logps": logps}))


if __name__ == "__main__":
    main(*sys.argv[1:])
