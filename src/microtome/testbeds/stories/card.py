"""What should a reader know of a model trained on the stories? Its model card, written from its training log.

Every number in the card comes from the log, so that the two cannot disagree.
"""

from typing import Any

from microtome.testbeds.stories.network import Settings, differences

_REQUIRED = {"induction": 0.95, "indirect_object": 0.95, "agreement": 0.99, "fact": 0.95}
_MEASURED = {
    "induction": "random words said again, from the second word of the repeat on; first choice",
    "indirect_object": "names never seen together in training; first choice",
    "agreement": "verb of the right number preferred to the other",
    "fact": "landmark to city, in a wording never used for it in training; first choice. Not counted where *is in* or "
    "*stands in* comes right before the city: *the city of* may follow there too",
    "pronoun": "she or he after a name; first choice",
    "argument": "next parameter in the order of the definition; first choice",
    "song": "a line sung again; first choice",
    "greater_than": "probability of later years minus that of the others, from -1 to 1",
}


def model_card(log: dict[str, Any]) -> str:
    """The text of ``README.md`` for a model with this ``training.json``."""
    settings, held_out = log["settings"], log["held_out"]
    rows = "\n".join(
        f"| {name.replace('_', ' ')} | {score['score']:.4f} | "
        f"{f'{_REQUIRED[name]:.2f}' if name in _REQUIRED else ''} | {score['count']} | {_MEASURED[name]} |"
        for name, score in held_out["behaviours"].items()
    )
    options = " ".join(_option(name.replace("_", "-"), value) for name, value in settings.items())
    make = "GPT2LMHeadModel" if settings.get("mlp", True) else "microtome.models.transformer.Transformer"
    twin = log.get("twin")
    beside = (
        f"A twin {twin['width'] / settings['width']:g} times as wide, trained by the same command, reaches "
        f"{twin['loss']:.4f}: the difference is {twin['difference']:+.4f} nats."
        if twin
        else "No twin of another width has been trained beside it."
    )
    return f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---

# A small language model of simple stories

An ordinary `{make}` with {log["parameters"]:,} parameters ({settings["layers"]} layers,
{settings["heads"]} heads, context 128, tied embeddings), trained from scratch on stories that
`microtome.testbeds.stories` generates. The variables that made each token of its text are known, so it is a place
where right answers are known; the tasks of `microtome.data` are within its language.

{_use(settings)}

The tokenizer knows whole words, pairs of digits and single signs, and puts `<bos>` in front. Write `17 32` as
`1732`. White space only separates. Words it does not know become `<unk>`.

## Training

```
python -m microtome.testbeds.stories.train --out DIR {options}
```

{log["tokens"]:,} tokens in {settings["steps"]} steps on {log["device"]}, torch {log["versions"]["torch"]},
transformers {log["versions"]["transformers"]}. Settings, versions and the loss curve are in `training.json`.
`checkpoints/` holds the weights after 10 steps and so on, log-spaced, in half precision, under the names of the
model's `named_parameters()`.

## What it can do

On {held_out["documents"]} held-out stories, loss {held_out["loss"]:.4f} nats per token. {beside}

| behaviour | score | required | answers | measured how |
| --- | --- | --- | --- | --- |
{rows}

## What it cannot do

It knows {log["vocabulary"]} tokens and the sentences of its generator, nothing of the world beside them. That a
name is followed by *she* or *he* is a rule of these stories, not a statement about people. Do not use it to write.
"""


def _use(settings: dict[str, Any]) -> str:
    if differences(settings, Settings()):
        return """```python
import microtome

model = microtome.load("DIR")
```"""
    return """```python
from transformers import AutoModelForCausalLM, AutoTokenizer
from microtome.models import bundled

model = AutoModelForCausalLM.from_pretrained(bundled.path())
tokenizer = AutoTokenizer.from_pretrained(bundled.path())
```"""


def _option(name: str, value: object) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name} {value}"
