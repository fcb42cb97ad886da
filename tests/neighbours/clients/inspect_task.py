"""A task of Inspect with two models whose answers are fixed.

Arguments: folder for the logs. Prints the files.
"""

import json
import sys


def main(folder: str) -> None:
    import tiktoken

    # Inspect counts tokens with a vocabulary that it downloads.
    class Words:
        def encode(self, text: str, **_: object) -> list:
            return text.split()

    tiktoken.get_encoding = lambda name: Words()
    from inspect_ai import Task, eval
    from inspect_ai.dataset import Sample
    from inspect_ai.model import ModelOutput, get_model
    from inspect_ai.scorer import includes, match

    questions = {
        "What is 2+2?": "4",
        "The capital of France?": "Paris",
        "3*3?": "9",
        "A colour?": "red",
    }
    samples = [Sample(input=q, target=a) for q, a in questions.items()]
    answers = {
        "mockllm/good": ["4", "It is Paris", "9", "blue"],
        "mockllm/poor": ["5", "London", "9", "4"],
    }
    files = []
    for name, texts in answers.items():
        outputs = [ModelOutput.from_content(name, text) for text in texts]
        task = Task(dataset=samples, scorer=[match(), includes()])
        [log] = eval(task, model=get_model(name, custom_outputs=outputs), log_dir=folder,
                     log_format="json", display="none", max_samples=1)  # fmt: skip
        assert log.status == "success", log.error
        files.append(str(log.location).removeprefix("file://"))
    print(json.dumps(files))


if __name__ == "__main__":
    main(*sys.argv[1:])
