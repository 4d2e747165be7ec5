"""The card of a saved model: what it is, how it is loaded, its numbers. Not the weights (saved.py)."""

from collections.abc import Mapping

from transformers import PreTrainedModel

from cramming.model.remote import AUTO_MAP
from fff.feedforward import settings_from

# Auto class -> what the hub calls its task.
TASKS = {
    "AutoModel": "feature-extraction",
    "AutoModelForCausalLM": "text-generation",
    "AutoModelForMaskedLM": "fill-mask",
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForTokenClassification": "token-classification",
    "AutoModelForQuestionAnswering": "question-answering",
    "AutoModelForMultipleChoice": "multiple-choice",
}
SAMPLE = 40  # tokens of a text that the card's lines generate

GENERATING = """
Text goes on by

```python
inputs = tokenizer(["The number of"], return_tensors="pt", padding=True)
print(tokenizer.batch_decode(model.generate(**inputs, max_length={}), skip_special_tokens=True))
```
"""


def model_card(model: PreTrainedModel, numbers: Mapping[str, str]) -> str:
    """A README.md for the folder, as the Hugging Face hub shows it.

    Args:
        numbers: what -> how much, e.g. {"validation loss": "4.370 nats"}; without any the card says so.
    """
    config = model.config
    settings = settings_from(config.ffn, "ffn")
    (auto,) = (auto for auto, place in AUTO_MAP.items() if place.endswith(f".{type(model).__name__}"))
    kind = "decoder" if config.causal else "BERT"
    generates = auto == "AutoModelForCausalLM"
    generating = GENERATING.format(min(SAMPLE, config.max_position_embeddings)) if generates else ""
    rows = "\n".join(f"| {what} | {value} |" for what, value in numbers.items())
    results = f"| what | value |\n|---|---|\n{rows}" if numbers else "None are known for these weights."
    return f"""---
library_name: transformers
pipeline_tag: {TASKS[auto]}
tags: [fast-feedforward, fff]
---

# {settings.tag}: a crammed {kind} with fast feedforward layers

{config.num_hidden_layers} layers of width {config.hidden_size}, {config.num_attention_heads} heads, vocabulary \
{config.vocab_size:,}, at most {config.max_position_embeddings} tokens, {model.num_parameters():,} parameters.
Feedforward layers `{settings.specification()}`: a token uses {settings.neurons_used:,} of \
{settings.neurons_trained:,} neurons in each (arXiv 2311.10770, 2308.14711).

## Loading

With the project installed:

```python
import cramming.model
from transformers import AutoTokenizer, {auto}

model = {auto}.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
```

Without it, by the model's code that lies beside the weights:

```python
from transformers import AutoTokenizer, {auto}

model = {auto}.from_pretrained("FOLDER", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("FOLDER", trust_remote_code=True)
```

That code needs the layers, package `fff` of the distribution fff-cramming, which needs torch alone: the folder `fff`
of its source on PYTHONPATH is enough. The package `fff` of the public index is another project.
{generating}
## Results

{results}
"""
