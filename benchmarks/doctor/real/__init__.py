"""The doctor's benchmark on a pretrained chat model, SmolLM2-135M-Instruct."""
