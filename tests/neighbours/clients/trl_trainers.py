"""Every trainer of TRL on folders that trimtab exported: two steps each.

Arguments: policy folder, reward folder, pairs, held-out pairs, output folder. Writes sft, sft_lora,
dpo, grpo and reward there. Prints TRL's accuracy of the exported reward model and of its own.
"""

import json
import sys
from pathlib import Path


def main(policy: str, reward: str, pairs: str, held_out: str, out: str) -> None:
    import datasets
    import peft
    import torch
    import trl
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    def read(file: str) -> list:
        return [json.loads(line) for line in Path(file).read_text().splitlines()]

    rows = read(pairs)
    preferences, held = datasets.Dataset.from_list(rows), datasets.Dataset.from_list(read(held_out))
    chats = datasets.Dataset.from_list([{"messages": r["prompt"] + r["chosen"]} for r in rows])
    prompts = datasets.Dataset.from_list([{"prompt": r["prompt"]} for r in rows])

    def options(name: str, **more: object) -> dict:
        return {"output_dir": f"{out}/{name}", "max_steps": 2, "per_device_train_batch_size": 4,
                "report_to": "none", "use_cpu": True, "save_strategy": "no", "bf16": False,
                "learning_rate": 1e-3, "disable_tqdm": True, **more}  # fmt: skip

    def save(name: str, trainer: object) -> None:
        trainer.train()
        trainer.save_model(f"{out}/{name}")
        AutoTokenizer.from_pretrained(policy).save_pretrained(f"{out}/{name}")

    lora = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    save("sft", trl.SFTTrainer(policy, trl.SFTConfig(**options("sft")), train_dataset=chats))
    save("sft_lora", trl.SFTTrainer(policy, trl.SFTConfig(**options("sft_lora")), train_dataset=chats,
                                    peft_config=lora))  # fmt: skip
    save(
        "dpo",
        trl.DPOTrainer(policy, args=trl.DPOConfig(**options("dpo")), train_dataset=preferences),
    )
    grpo = trl.GRPOConfig(**options("grpo"), num_generations=4, max_completion_length=16)
    save("grpo", trl.GRPOTrainer(policy, reward, grpo, train_dataset=prompts))

    def trainer(model: str) -> object:
        config = trl.RewardConfig(**options("reward"), per_device_eval_batch_size=8)
        loaded = AutoModelForSequenceClassification.from_pretrained(
            model, num_labels=1, dtype=torch.float32
        )
        return trl.RewardTrainer(loaded, config, train_dataset=preferences, eval_dataset=held,
                                 processing_class=AutoTokenizer.from_pretrained(model))  # fmt: skip

    exported = trainer(reward).evaluate()["eval_accuracy"]
    own = trainer(policy)
    own.args.max_steps = 20
    save("reward", own)
    print(json.dumps({"exported": exported, "own": own.evaluate()["eval_accuracy"]}))


if __name__ == "__main__":
    main(*sys.argv[1:])
