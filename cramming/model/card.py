"""The card of a saved model: what it is, how it is loaded, its numbers. Not the weights (saved.py)."""

from collections.abc import Mapping

from transformers import PreTrainedModel

from fff.feedforward import settings_from

TASKS = {"CrammedForMaskedLM": ("AutoModelForMaskedLM", "fill-mask")}
OTHER = ("AutoModelForSequenceClassification", "text-classification")


def model_card(model: PreTrainedModel, numbers: Mapping[str, str]) -> str:
    """A README.md for the folder, as the Hugging Face hub shows it.

    Args:
        numbers: what -> how much, e.g. {"validation loss": "4.370 nats"}; without any the card says so.
    """
    config = model.config
    settings = settings_from(config.ffn, "ffn")
    auto, task = TASKS.get(type(model).__name__, OTHER)
    rows = "\n".join(f"| {what} | {value} |" for what, value in numbers.items())
    results = f"| what | value |\n|---|---|\n{rows}" if numbers else "None are known for these weights."
    return f"""---
library_name: transformers
pipeline_tag: {task}
tags: [fast-feedforward, fff]
---

# {settings.tag}: a crammed BERT with fast feedforward layers

{config.num_hidden_layers} layers of width {config.hidden_size}, {config.num_attention_heads} heads, vocabulary \
{config.vocab_size:,}, at most {config.max_position_embeddings} tokens, {model.num_parameters():,} parameters.
Feedforward layers `{settings.specification()}`: a token uses {settings.neurons_used:,} of \
{settings.neurons_trained:,} neurons in each (arXiv 2311.10770, 2308.14711).

## Loading

With the project installed, `import cramming.model` and

```python
from transformers import AutoTokenizer, {auto}

model = {auto}.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
```

Where only its package of layers (module `fff` of the distribution fff-cramming) can be imported, add
`trust_remote_code=True`: the model's code lies beside the weights. The package `fff` of the public index is another
project.

## Results

{results}
"""
