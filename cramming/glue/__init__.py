"""Finetuning and scoring a pretrained model on GLUE, or on the embedded tasks. Not its pretraining."""
