"""Talk to a model folder in the terminal."""

from __future__ import annotations

from trimtab.config import Config
from trimtab.data.formats import Example
from trimtab.data.render import Renderer, load_tokenizer
from trimtab.errors import DataError
from trimtab.models.load import LM, ModelSpec
from trimtab.runs.console import console
from trimtab.sample.sampler import Request, Sampler, SamplingConfig


class ChatConfig(Config):
    """Configuration of ``trimtab chat``."""

    model: str
    """A model folder or hub id."""
    prompt: str | None = None
    """Answer this and stop, instead of asking."""
    chat_template: str | None = None
    """For a tokenizer without one: a file, or "plain"."""
    sampling: SamplingConfig = SamplingConfig(max_new_tokens=256, temperature=0.7)
    seed: int = 0


def main(config: ChatConfig) -> None:
    """One answer, or a conversation until an empty line or end of input."""
    tokenizer = load_tokenizer(config.model, config.chat_template)
    renderer = Renderer(tokenizer)
    lm = LM.load(ModelSpec(path=config.model), train=False)
    sampler = Sampler(lm.plain_attention(), tokenizer, stop_ids=renderer.stop_ids)
    turns: list[dict[str, str]] = []
    while True:
        try:
            said = (
                config.prompt if config.prompt is not None else console.input("[bold]you[/bold]: ")
            )
        except EOFError:
            return
        if not said.strip():
            return
        turns.append({"role": "user", "content": said})
        asked: str | list[dict[str, str]] = turns if tokenizer.chat_template else said
        group = renderer.prompt(Example("chat", asked, []))
        if group is None:
            raise DataError("the conversation has grown beyond what the model can read; start anew")
        answer = sampler([Request(group.prompt, (config.seed, len(turns)))], config.sampling)[0][0]
        text = renderer.completion(answer.ids, answer.finish).text
        # Model text is data: no markup is read from it.
        console.print(text, markup=False)
        if config.prompt is not None:
            return
        turns.append({"role": "assistant", "content": text})
