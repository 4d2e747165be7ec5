"""The pipeline: text, tokens, pretraining, finetuning, tables. The layers themselves are in fff."""
