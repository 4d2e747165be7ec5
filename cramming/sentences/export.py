"""A model folder that sentence-transformers loads, from a sentence encoder. That library itself is not needed."""

from pathlib import Path
from typing import Any

import fff.surgery
from cramming.errors import UserError
from cramming.files import new_folder, write_json
from cramming.model import CrammedConfig
from cramming.model.saved import quiet, save_model
from cramming.sentences.encoder import SentenceEncoder

MODULES = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
CARD = """---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags: [sentence-transformers, fast-feedforward, fff]
---

# A sentence encoder{layers}

Vectors of {width} numbers and of length 1: the mean over the last hidden states of at most {length} tokens.

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("FOLDER"{code})
vectors = model.encode(["one text", "another text"])
```
{needs}"""
NEEDS = """
The code beside the weights needs the layers, package `fff` of the distribution fff-cramming, which needs torch alone:
the folder `fff` of its source on PYTHONPATH is enough. The package `fff` of the public index is another project.
"""


def write_sentence_model(encoder: SentenceEncoder, folder: Path) -> None:
    """Write weights, configuration, tokenizer, pooling and card, complete or absent.

    Raises:
        UserError: something is at `folder` already, the encoder is in int8 or made fast, or its tokenizer has no
            padding token.
    """
    for how, words in (("int8", "in int8"), ("fast", "made fast")):
        if encoder.identity.get(how):
            raise UserError(f"{folder} cannot hold a model {words}, which is done when one is loaded; leave {how} out.")
    if encoder.tokenizer.pad_token is None:
        raise UserError("the tokenizer has no padding token, which sentence-transformers needs; set its pad_token.")
    config: Any = encoder.model.config
    with new_folder(folder) as beside:
        _save(encoder.model, beside)
        encoder.tokenizer.save_pretrained(beside)
        names = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in MODULES]
        write_json(beside / "modules.json", [{"idx": at, "name": str(at), **each} for at, each in enumerate(names)])
        write_json(beside / "sentence_bert_config.json", {"max_seq_length": encoder.max_length, "do_lower_case": False})
        pooling = {"word_embedding_dimension": config.hidden_size, "pooling_mode_mean_tokens": True}
        write_json(beside / "1_Pooling" / "config.json", {**pooling, "pooling_mode_cls_token": False})
        (beside / "2_Normalize").mkdir()
        own = isinstance(config, CrammedConfig) or replaced(config)
        card = CARD.format(
            layers=" with fast feedforward layers" if own else "",
            width=config.hidden_size,
            length=encoder.max_length,
            code=", trust_remote_code=True" if own else "",
            needs=NEEDS if own else "",
        )
        (beside / "README.md").write_text(card)


def _save(model: Any, folder: Path) -> None:
    if isinstance(model.config, CrammedConfig):
        save_model(model, folder)
        return
    with quiet():
        (fff.surgery.save if replaced(model.config) else type(model).save_pretrained)(model, folder)


def replaced(config: Any) -> bool:
    """Whether layers of a model stand where `fff.surgery` put them."""
    return bool(getattr(config, "fff", None))
