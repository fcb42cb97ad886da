"""A short SFT run that reports to mlflow in this environment, and what mlflow stored.

Arguments: model configuration, tokenizer, rows, output folder. Prints {"runs": …, "loss": [[step, value]]}.
"""

import json
import os
import sys


def main(model: str, tokenizer: str, rows: str, out: str) -> None:
    os.chdir(out)
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{out}/mlflow.db"
    import mlflow

    import trimtab as tt

    spec = {"path": model, "tokenizer": tokenizer, "device": "cpu"}
    loop = {"report_to": "mlflow"}
    tt.sft(model=spec, data=rows, epochs=1, loop=loop, out=f"{out}/sft")
    client = mlflow.MlflowClient()
    experiments = [e.experiment_id for e in client.search_experiments()]
    runs = client.search_runs(experiments)
    loss = [[m.step, m.value] for m in client.get_metric_history(runs[0].info.run_id, "loss")]
    print(json.dumps({"runs": len(runs), "loss": loss}))


if __name__ == "__main__":
    main(*sys.argv[1:])
