"""Talk to a model folder in the terminal."""

from trimtab.config import Config
from trimtab.data.formats import Example
from trimtab.errors import DataError
from trimtab.models.load import ModelSpec, renderer_for
from trimtab.rollout.engine import generate
from trimtab.rollout.engines.native import NativeEngine
from trimtab.sample.sampler import Request, SamplingConfig


class ChatConfig(Config):
    """Configuration of ``trimtab chat``."""

    model: str
    """A model folder or hub id."""
    prompt: str | None = None
    """Complete this and stop, instead of holding a conversation."""
    chat_template: str | None = None
    """For a tokenizer without one: a file, or "plain"."""
    sampling: SamplingConfig = SamplingConfig(max_new_tokens=256, temperature=0.7)
    seed: int = 0


def main(config: ChatConfig) -> None:
    """Print one completion of ``prompt``, or hold a conversation until an empty line.

    Raises:
        DataError: the conversation is longer than the model can read.
    """
    spec = ModelSpec(path=config.model, chat_template=config.chat_template)
    renderer = renderer_for(spec)
    tokenizer = renderer.tokenizer
    engine = NativeEngine.load(spec, renderer)
    turns: list[dict[str, str]] = []
    while True:
        try:
            user = config.prompt if config.prompt is not None else input("you: ")
        except EOFError:
            return
        if not user.strip():
            return
        turns.append({"role": "user", "content": user})
        group = renderer.prompt(Example("chat", turns if tokenizer.chat_template else user, []))
        if group is None:
            raise DataError("the conversation is longer than the model can read; start a new one")
        request = Request(group.prompt, (config.seed, len(turns)))
        sampled = generate(engine, [request], config.sampling)[0][0]
        text = renderer.completion(sampled.ids, sampled.finish).text
        print(text)
        if config.prompt is not None:
            return
        turns.append({"role": "assistant", "content": text})
